//! Who may still spend. What a project has spent this month is known for some seconds at a time, so that a request asks
//! nobody; a project without a limit is never counted.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use domain::price::{Spent, usd};
use domain::project::Project;
use domain::time::Timestamp;

use super::store_error;
use crate::error::{ApiError, Kind};
use crate::state::State;

/// How long an answer holds. What all processes spend meanwhile, and in the seconds until they store it, goes beyond the limit.
const HOLDS: Duration = Duration::from_secs(5);
/// At most this share of the time is spent counting: where a count takes long its answer holds so much longer.
const WORK_SHARE: u32 = 50;
/// Bound on the memory for what projects have spent: beyond it everything is counted again.
const MAX_PROJECTS: usize = 10_000;

/// What projects have spent, as this process last counted it.
#[derive(Default)]
pub struct Spendings {
    of_projects: Mutex<HashMap<String, Arc<Counted>>>,
}

#[derive(Default)]
struct Counted {
    last: Mutex<Option<Count>>,
    /// Held by the one that counts; the others wait for what it finds.
    counting: tokio::sync::Mutex<()>,
}

#[derive(Clone)]
struct Count {
    spent: Spent,
    month: Range<i64>,
    holds_until: Instant,
}

impl Count {
    fn is_of(&self, now: Timestamp) -> bool {
        self.month.contains(&now.unix_s())
    }
}

impl Spendings {
    /// Lets pass what costs something. Errors: 429 `insufficient_quota` where the project has spent, and reserved for jobs, what it
    /// may spend this month; 503 where that was never counted and the database cannot be asked.
    pub async fn check(&self, state: &State, project: &Project) -> Result<(), ApiError> {
        let Some(limit) = project.caps.spend_limit() else {
            return Ok(());
        };
        let spent = self.known(state, project).await?;
        if spent.total() < limit {
            return Ok(());
        }
        Err(exceeded(project, limit, spent, state.now()))
    }

    async fn known(&self, state: &State, project: &Project) -> Result<Spent, ApiError> {
        let counted = self.counted(project);
        let fresh = || {
            let last = locked(&counted.last);
            let fresh = last.as_ref().filter(|count| count.is_of(state.now()));
            let fresh = fresh.filter(|count| Instant::now() < count.holds_until);
            fresh.map(|count| count.spent)
        };
        if let Some(spent) = fresh() {
            return Ok(spent);
        }
        let _counting = counted.counting.lock().await;
        // Another request may have counted for this one, too.
        if let Some(spent) = fresh() {
            return Ok(spent);
        }
        let (begun, now) = (Instant::now(), state.now());
        let spent = match count(state, project, now).await {
            Ok(spent) => spent,
            // What was known a moment ago is better than no answer.
            Err(error) => match locked(&counted.last).as_ref() {
                Some(last) if last.is_of(now) => {
                    let detail = error.detail.as_deref();
                    tracing::warn!(project = %project.id, detail, "spending not counted again");
                    last.spent
                }
                _ => return Err(error),
            },
        };
        let end = Instant::now();
        *locked(&counted.last) = Some(Count {
            spent,
            month: now.month(),
            holds_until: end + HOLDS.max((end - begun) * WORK_SHARE),
        });
        Ok(spent)
    }

    fn counted(&self, project: &Project) -> Arc<Counted> {
        let mut of_projects = locked(&self.of_projects);
        if let Some(counted) = of_projects.get(project.id.as_str()) {
            return Arc::clone(counted);
        }
        if of_projects.len() >= MAX_PROJECTS {
            of_projects.clear();
        }
        let counted = of_projects.entry(project.id.to_string()).or_default();
        Arc::clone(counted)
    }
}

/// What the project has spent and reserved in this month, as of now. Errors: 503.
pub async fn count(state: &State, project: &Project, now: Timestamp) -> Result<Spent, ApiError> {
    let usage = state.store.usage();
    let spending = usage.spending(&project.id, now.month()).await;
    Ok(spending.map_err(store_error)?.priced(&state.prices))
}

fn exceeded(project: &Project, limit: f64, spent: Spent, now: Timestamp) -> ApiError {
    let id = &project.id;
    let reserved = match spent.reserved > 0.0 {
        true => format!(
            " and {} is reserved for its unfinished fine-tuning jobs",
            usd(spent.reserved)
        ),
        false => String::new(),
    };
    let message = format!(
        "You exceeded your current quota, please check the spend limit of your project: {id} may spend {} a month, {} is \
         spent{reserved}. It may spend again from {} (UTC) on, or when an administrator raises the limit at \
         /v1/organization/projects/{id}/spend_limit.",
        usd(limit),
        usd(spent.taken),
        Timestamp::from_unix_s(now.month().end).day(),
    );
    ApiError::new(Kind::InsufficientQuota, message).code("insufficient_quota")
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
