//! Offering jobs on the queue: the fair pick, as many as there are free workers and a few more.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::Ordering;

use domain::id::DispatchId;
use domain::job::FineTuningJob;
use domain::job_event::JobEvent;
use domain::time::Timestamp;
use domain::worker::Worker;
use metrics::counter;

use crate::error::{PassError, applied};
use crate::scheduler::{Scheduler, seconds};

/// Rows looked at for who is busy and what is offered.
const LOOK: u64 = 10_000;

impl Scheduler {
    /// Offers queued jobs while workers have room. Returns how many were offered.
    ///
    /// Without a broker, or while it takes no hints, jobs stay queued: the door hands them out.
    pub async fn dispatch_pass(&self) -> Result<usize, PassError> {
        let cannot_offer = !self.shared.hints.has_broker()
            || self.shared.broker_down.load(Ordering::Relaxed)
            || self.shared.draining.is_cancelled();
        if cannot_offer {
            return Ok(0);
        }
        let now = self.now().await?;
        let mut room = self.room(now).await?;
        if room.total == 0 {
            return Ok(0);
        }
        let bases = room.bases();
        let jobs = self.shared.store.jobs();
        let mut n_offered = 0;
        let running_jobs = self.shared.running_jobs;
        let queued = jobs.queued_fair(now, Some(&bases), running_jobs, room.total);
        for job in queued.await? {
            if !room.take(&job.spec.model) {
                continue;
            }
            let dispatch_id = DispatchId::mint(rand::random());
            let event = JobEvent::Offered {
                dispatch_id: dispatch_id.clone(),
            };
            let Some(next) = applied(jobs.apply(&job.id, event, now).await)? else {
                continue;
            };
            n_offered += 1;
            counter!("luthier_offers_total").increment(1);
            tracing::info!(job = %job.id, dispatch = %dispatch_id, base = job.spec.model, "offered");
            self.announce(&next);
        }
        Ok(n_offered)
    }

    /// How many offers may be open: one for each free worker and the buffer, less those that are.
    async fn room(&self, now: Timestamp) -> Result<Room, PassError> {
        let store = &self.shared.store;
        let since = now.plus_s(-seconds(self.shared.config.lease_ttl_s));
        let alive = store.workers().alive(since).await?;
        let leased = store.jobs().leased(LOOK).await?;
        // A later instant than any offer was made at.
        let offered = store.jobs().offers_older_than(now.plus_s(1), LOOK).await?;
        Ok(Room::count(
            &alive,
            &leased,
            &offered,
            self.shared.config.dispatch_buffer,
        ))
    }
}

/// Offers that may still be made, in all and for each base model.
#[derive(Debug, PartialEq, Eq)]
struct Room {
    total: u64,
    by_base: HashMap<String, u64>,
}

impl Room {
    fn count(
        alive: &[Worker],
        leased: &[FineTuningJob],
        offered: &[FineTuningJob],
        buffer: u32,
    ) -> Self {
        let busy: HashSet<&str> = leased
            .iter()
            .filter_map(|job| job.progress().worker_id.as_ref())
            .map(|id| id.as_str())
            .collect();
        let is_free = |worker: &&Worker| !busy.contains(worker.status.worker_id.as_str());
        let bases: BTreeSet<&str> = alive
            .iter()
            .flat_map(|w| &w.status.base_models)
            .map(String::as_str)
            .collect();
        let room = |n_free: usize, n_offered: usize| {
            (n_free as u64 + u64::from(buffer)).saturating_sub(n_offered as u64)
        };
        let by_base = bases
            .into_iter()
            .map(|base| {
                let n_free = alive
                    .iter()
                    .filter(is_free)
                    .filter(|w| w.status.base_models.iter().any(|b| b == base))
                    .count();
                let n_offered = offered.iter().filter(|job| job.spec.model == base).count();
                (base.to_owned(), room(n_free, n_offered))
            })
            .collect();
        let n_free = alive.iter().filter(is_free).count();
        let total = if alive.is_empty() {
            0
        } else {
            room(n_free, offered.len())
        };
        Self { total, by_base }
    }

    /// Those with room: a job on another one must not take a place in the pick.
    fn bases(&self) -> Vec<String> {
        self.by_base
            .iter()
            .filter(|(_, left)| **left > 0)
            .map(|(base, _)| base.clone())
            .collect()
    }

    /// Takes one place for `base`, if there is one.
    fn take(&mut self, base: &str) -> bool {
        match self.by_base.get_mut(base) {
            Some(left) if *left > 0 && self.total > 0 => {
                *left -= 1;
                self.total -= 1;
                true
            }
            _ => false,
        }
    }
}
