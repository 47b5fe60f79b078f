//! Leases and offers that ran out. A worker that died says nothing; its silence is what counts.

use domain::job_event::JobEvent;
use domain::time::Timestamp;
use metrics::counter;

use crate::error::{PassError, applied};
use crate::scheduler::{Scheduler, seconds};

/// A reaper that could not work for longer than this was blind: workers may have been unable to
/// renew for the same reason, so every lease is first pushed out once. Seconds.
const BLIND_AFTER_S: i64 = 10;
/// Rows a pass takes at a time.
const BATCH: u64 = 100;

impl Scheduler {
    /// Takes jobs back whose lease ran out and offers that nobody claimed. Returns how many.
    pub async fn reap_pass(&self) -> Result<usize, PassError> {
        let now = self.now().await?;
        self.forgive_own_outage(now).await?;
        let reaped = self.expire_leases(now).await? + self.expire_offers(now).await?;
        *self.last_reap() = Some(now);
        Ok(reaped)
    }

    fn last_reap(&self) -> std::sync::MutexGuard<'_, Option<Timestamp>> {
        self.shared
            .last_reap
            .lock()
            .expect("no holder panics — a bug in the reaper")
    }

    /// A database that was away, or this process, must not cost every worker its job.
    async fn forgive_own_outage(&self, now: Timestamp) -> Result<(), PassError> {
        let last = *self.last_reap();
        let blind_after_s = BLIND_AFTER_S.max(3 * seconds(self.shared.config.reaper_interval_s));
        let blind = match last {
            Some(last) => now.0 - last.0 > blind_after_s * 1_000_000,
            // On one machine the workers went down with us: their leases are void indeed.
            None => !self.shared.store.is_embedded(),
        };
        if blind {
            let extended = self
                .shared
                .store
                .jobs()
                .extend_leases(self.lease_until(now))
                .await?;
            tracing::info!(extended, "leases extended: nobody watched them for a while");
        }
        Ok(())
    }

    async fn expire_leases(&self, now: Timestamp) -> Result<usize, PassError> {
        let jobs = self.shared.store.jobs();
        let mut n_expired = 0;
        for job in jobs.leases_expired(now, BATCH).await? {
            let (attempt, worker) = (job.progress().attempt, job.progress().worker_id.clone());
            let retry_backoff_max_s = self.retry_backoff_max_s();
            let event = JobEvent::LeaseExpired {
                attempt,
                retry_backoff_max_s,
            };
            let Some(next) = applied(jobs.apply(&job.id, event, now).await)? else {
                continue;
            };
            n_expired += 1;
            counter!("luthier_leases_expired_total").increment(1);
            tracing::warn!(
                job = %job.id,
                attempt,
                worker = worker.as_ref().map(|w| w.as_str()),
                state = next.state().as_str(),
                checkpoint_step = next.progress().checkpoint_step,
                "lease expired"
            );
            self.announce(&next);
        }
        Ok(n_expired)
    }

    async fn expire_offers(&self, now: Timestamp) -> Result<usize, PassError> {
        let jobs = self.shared.store.jobs();
        let before = now.plus_s(-seconds(self.shared.config.dispatch_timeout_s));
        let mut n_expired = 0;
        for job in jobs.offers_older_than(before, BATCH).await? {
            let Some(dispatch_id) = job.progress().dispatch_id.clone() else {
                continue;
            };
            let event = JobEvent::OfferExpired { dispatch_id };
            let Some(next) = applied(jobs.apply(&job.id, event, now).await)? else {
                continue;
            };
            n_expired += 1;
            counter!("luthier_offers_expired_total").increment(1);
            tracing::info!(job = %job.id, "offer expired unclaimed");
            self.announce(&next);
        }
        Ok(n_expired)
    }
}
