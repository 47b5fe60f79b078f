//! Owns which threads the system runs first.

/// Steps below the others: those that read a request, look something up for it or send a token are then run the moment they can, instead of
/// after what a computing thread has left of its few milliseconds, several times for each request.
#[cfg(target_os = "linux")]
const STEPS: i32 = 10;

/// Lets every other thread of the machine go before the calling one, which computes for a long time.
#[cfg(target_os = "linux")]
pub(super) fn yield_to_others() {
    use rustix::process::setpriority_process;
    use rustix::thread::gettid;
    // On Linux a thread has a priority of its own, and anybody may lower one.
    if let Err(error) = setpriority_process(Some(gettid()), STEPS) {
        tracing::debug!(%error, "a computing thread keeps its priority");
    }
}

/// Where threads have no priority of their own, nothing.
#[cfg(not(target_os = "linux"))]
pub(super) fn yield_to_others() {}
