//! The allocator of the process, and what it says of its memory.

use std::time::Duration;

use tikv_jemalloc_ctl::{epoch, stats};

/// glibc's allocator keeps what long-lived threads have freed between what they still hold (`docs/decisions/0012`).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const EVERY: Duration = Duration::from_secs(1);

/// Records, for as long as the process lives, what it has allocated and what the allocator holds of the system for it: the
/// difference is what was freed and has not gone back yet, and the gaps between what is held.
pub async fn record() {
    let error = loop {
        match record_once() {
            Ok(()) => tokio::time::sleep(EVERY).await,
            Err(error) => break error,
        }
    };
    tracing::warn!(%error, "the allocator does not tell what it holds");
}

fn record_once() -> tikv_jemalloc_ctl::Result<()> {
    // Its figures are those of the last time that it was asked to count.
    epoch::advance()?;
    metrics::gauge!("luthier_allocated_bytes").set(stats::allocated::read()? as f64);
    metrics::gauge!("luthier_resident_bytes").set(stats::resident::read()? as f64);
    Ok(())
}
