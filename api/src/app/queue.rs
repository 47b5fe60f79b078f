//! Where jobs that wait stand, and when they will start. One look at the queue serves all requests of the next second, so
//! that a list costs what a single job does.

use std::collections::HashMap;
use std::sync::Arc;

use domain::id::JobId;
use domain::job::{FineTuningJob, JobState};
use domain::page::Page;
use domain::queue::{Place, Standing, starts};
use domain::time::Timestamp;
use domain::worker::Worker;
use store::StoreError;
use tokio::sync::Mutex;

use super::workers::alive_since;
use crate::state::State;
use crate::wire::fine_tuning_job::JobObject;

/// How long a look is good for, where no job that is asked about came to wait since. Seconds.
const FRESH_S: f64 = 1.0;
/// A job with more before it than this is told nothing.
const LOOK: u64 = 100_000;

/// The last look.
#[derive(Default)]
pub struct Queue(Mutex<Option<Look>>);

#[derive(Clone)]
struct Look {
    at: Timestamp,
    /// When it was done.
    until: Timestamp,
    standings: Arc<HashMap<JobId, Standing>>,
}

/// A job as its project sees it.
pub async fn shown(state: &State, job: FineTuningJob) -> JobObject {
    let standings = standings(state, std::slice::from_ref(&job)).await;
    with_standing(job, &standings)
}

/// A page of jobs as their project sees them.
pub async fn shown_page(state: &State, page: Page<FineTuningJob>) -> Page<JobObject> {
    let standings = standings(state, &page.items).await;
    page.map(|job| with_standing(job, &standings))
}

fn with_standing(job: FineTuningJob, standings: &HashMap<JobId, Standing>) -> JobObject {
    // A look may be older than the job's state.
    let standing = match waits(&job) {
        true => standings.get(&job.id).copied().unwrap_or_default(),
        false => Standing::default(),
    };
    JobObject::new(job, standing)
}

fn waits(job: &FineTuningJob) -> bool {
    matches!(job.state(), JobState::Queued | JobState::Dispatched)
}

/// Of the jobs that wait.
async fn standings(state: &State, jobs: &[FineTuningJob]) -> Arc<HashMap<JobId, Standing>> {
    let waiting = jobs.iter().filter(|job| waits(job));
    let Some(since) = waiting.map(|job| job.progress().state_since).max() else {
        return Arc::default();
    };
    let mut last = state.queue.0.lock().await;
    let now = state.now();
    if let Some(look) = last.as_ref()
        && look.at > since
        && now.since_s(look.until) < FRESH_S
    {
        return look.standings.clone();
    }
    // A job is shown without its place rather than not at all.
    let standings = look(state, now).await.unwrap_or_else(|error| {
        tracing::warn!(%error, "where jobs stand in the queue is not known");
        HashMap::new()
    });
    let look = Look {
        at: now,
        until: state.now(),
        standings: Arc::new(standings),
    };
    last.insert(look).standings.clone()
}

async fn look(state: &State, now: Timestamp) -> Result<HashMap<JobId, Standing>, StoreError> {
    let store = &state.store;
    let waiting = store.jobs().waiting(now, state.running_jobs, LOOK).await?;
    let workers = store.workers().alive(alive_since(now)).await?;
    let leased = store.jobs().leased(LOOK).await?;
    let starts = starts(places(workers, &leased, now), &waiting);
    let standings = waiting.into_iter().zip(starts).map(|(job, start)| {
        let standing = Standing {
            n_before: Some(job.n_before),
            start,
        };
        (job.id, standing)
    });
    Ok(standings.collect())
}

/// Each worker, and when the job that it has now will be through; it takes no other before.
fn places(workers: Vec<Worker>, leased: &[FineTuningJob], now: Timestamp) -> Vec<Place> {
    let jobs = leased.iter().map(FineTuningJob::progress);
    let holders = jobs.filter_map(|p| Some((p.worker_id.as_ref()?, p.estimated_finish)));
    let busy: HashMap<_, _> = holders.collect();
    let place = |worker: Worker| Place {
        free_at: match busy.get(&worker.status.worker_id) {
            None => Some(now),
            Some(finish) => finish.map(|at| at.max(now)),
        },
        base_models: worker.status.base_models,
    };
    workers.into_iter().map(place).collect()
}
