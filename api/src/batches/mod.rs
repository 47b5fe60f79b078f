//! Runs batches: takes those that nobody holds, answers their requests through `app` as the live routes do, behind live
//! traffic, and writes their files. Any number of processes may do so at once; each batch is one's at a time.

mod answering;
mod files;
mod hold;
mod input;
mod turns;

use std::sync::Arc;
use std::time::Duration;

use platform::config::ApiConfig;
use platform::shutdown::Shutdown;
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::hold::{HoldError, hold};
use self::turns::Turns;
use crate::state::Shared;

/// How often batches are looked for that nobody holds.
const LOOK: Duration = Duration::from_secs(1);
/// Batches that one process holds: each renews its lease every two seconds, and most wait for their turn.
const MAX_HELD: usize = 64;
/// What is held when the process shall end is put down within this time, or its lease runs out by itself. More than
/// requests under way are given.
const DRAIN: Duration = Duration::from_secs(20);

/// What all batches of this process share.
pub struct Runner {
    state: Shared,
    turns: Turns,
    /// Requests under way, of all batches together and so of one.
    max_requests: usize,
    lease_ttl: Duration,
}

impl Runner {
    pub fn new(state: Shared, config: &ApiConfig) -> Self {
        let max_requests = config.batch_requests as usize;
        Self {
            state,
            turns: Turns::new(max_requests),
            max_requests,
            lease_ttl: Duration::from_secs(config.batch_lease_ttl_s.max(1)),
        }
    }

    /// Until `shutdown`; then what is held is put down, and others may take it at once.
    pub async fn run(self, shutdown: Shutdown) {
        if self.max_requests == 0 {
            return;
        }
        let runner = Arc::new(self);
        let mut held = JoinSet::new();
        while !shutdown.has_begun() {
            if let Err(error) = Self::take(&runner, &shutdown, &mut held).await {
                tracing::warn!(%error, "no batches can be taken");
            }
            tokio::select! {
                () = shutdown.begun() => {}
                () = runner.state.batch_made.notified() => {}
                () = tokio::time::sleep(LOOK) => {}
            }
            while held.try_join_next().is_some() {}
        }
        let put_down = async { while held.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN, put_down).await.is_err() {
            tracing::warn!("some batches were not put down in time: their leases run out");
        }
    }

    async fn take(
        self: &Arc<Self>,
        shutdown: &Shutdown,
        held: &mut JoinSet<()>,
    ) -> Result<(), HoldError> {
        let room = MAX_HELD.saturating_sub(held.len());
        if room == 0 {
            return Ok(());
        }
        let since = Instant::now();
        let (now, until) = self.term().await?;
        let batches = self.state.store.batches();
        for (lease, batch) in batches.take(room as u64, now, until).await? {
            held.spawn(hold(self.clone(), lease, batch, since, shutdown.token()));
        }
        Ok(())
    }

    /// Now, and until when a lease of now lasts, by the clock that all processes share.
    async fn term(&self) -> Result<(domain::time::Timestamp, domain::time::Timestamp), HoldError> {
        let now = self.state.store.now().await?;
        Ok((now, now.plus_s(self.lease_ttl.as_secs() as i64)))
    }
}
