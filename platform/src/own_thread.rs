//! Long work on a thread of its own, for as long as it takes.

use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// Runs `work`, which computes for seconds or more, and which may wait for the runtime. Unlike `spawn_blocking`'s, the thread ends with
/// it, and with it what libraries keep for each thread: a tokenizer the words that it has met.
/// A panic of `work` is raised again here. If the caller leaves, the work goes on to its end.
pub async fn on_own_thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> std::io::Result<T> {
    let runtime = Handle::current();
    let (done, result) = oneshot::channel();
    let thread = std::thread::Builder::new().name(name.to_owned());
    let thread = thread.spawn(move || {
        let _runtime = runtime.enter();
        // Who left needs no result.
        let _ = done.send(work());
    })?;
    match result.await {
        Ok(result) => Ok(result),
        Err(_) => match thread.join() {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(()) => unreachable!("the work ended without a result and without a panic"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_result_comes_back_from_another_thread() {
        let here = std::thread::current().id();
        let ran = on_own_thread("test", move || {
            let waited = Handle::current().block_on(async {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                5
            });
            (waited, std::thread::current().id() != here)
        });
        assert_eq!(ran.await.unwrap(), (5, true));
    }

    #[tokio::test]
    #[should_panic(expected = "of its own")]
    async fn a_panic_is_raised_again() {
        let _ = on_own_thread("test", || panic!("of its own")).await;
    }
}
