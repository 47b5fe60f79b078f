//! Who may ask for generated text now. Each process draws a small share of a project's limit from the database at a
//! time and spends it by itself, so that all processes together keep the limit and most requests ask nobody.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use domain::generation::Priority;
use domain::id::ProjectId;
use domain::project::Project;
use domain::rate_limit::{Amount, Bucket, Dimension, RateLimit, RateStatus};
use futures::StreamExt;
use platform::config::LimitsConfig;
use store::rate_limits::Draw;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::store_error;
use super::tokens_taken::TokensTaken;
use super::workers::Events;
use crate::error::{ApiError, Kind};
use crate::state::State;
use crate::wire::decode::echo;

/// What a process draws at once, of a minute's limit: two processes that have just drawn hold back a twentieth.
const SHARE: f64 = 1.0 / 40.0;
/// How long a process keeps what it drew without spending it: by then the bucket has refilled by more than a share.
const KEEPS: Duration = Duration::from_secs(10);
/// Bound on the memory of the gate: beyond it, what nobody uses at the moment is forgotten.
const MAX_PURSES: usize = 10_000;

/// Lets requests pass while their project's limits last.
pub struct Gate {
    default: RateLimit,
    max_concurrent: usize,
    purses: Mutex<HashMap<(ProjectId, String), Arc<Purse>>>,
    running: Mutex<HashMap<ProjectId, Arc<Semaphore>>>,
}

/// What this process may spend of one limit.
struct Purse {
    state: Mutex<Spendable>,
    /// Held by the one that draws; the others wait for what it brings.
    drawing: tokio::sync::Mutex<()>,
}

struct Spendable {
    held: Amount,
    drawn_at: Instant,
    limit: RateLimit,
    /// What all processes may still draw, as the last draw left it.
    left: Option<Bucket>,
    /// After a draw that brought too little: no other one before.
    next_draw_at: Instant,
}

/// Leave to ask for one answer. What it took beyond or below what was reckoned is settled when the last copy is dropped.
pub struct Admission {
    /// `None`: no limit was asked.
    taken: Option<Taken>,
    spent: Mutex<u64>,
}

struct Taken {
    purse: Arc<Purse>,
    reckoned: u64,
    status: RateStatus,
    _place: OwnedSemaphorePermit,
}

impl Gate {
    pub fn new(config: &LimitsConfig) -> Self {
        Self {
            default: RateLimit {
                requests_per_minute: config.requests_per_minute,
                tokens_per_minute: config.tokens_per_minute,
            },
            max_concurrent: config.concurrent_requests,
            purses: Mutex::default(),
            running: Mutex::default(),
        }
    }

    /// What holds for a project without limits of its own.
    pub fn default(&self) -> RateLimit {
        self.default
    }

    /// Takes one request and `tokens`, reckoned in advance, from the limit of `project` on `base_model`. What is answered
    /// where there is room to spare passes freely, but for the project's spend limit. Errors: 429 with the wait, or
    /// `insufficient_quota`; 503 where the database cannot be asked.
    pub async fn admit(
        &self,
        state: &State,
        project: &Project,
        base_model: &str,
        priority: Priority,
        tokens: u64,
    ) -> Result<Arc<Admission>, ApiError> {
        state.spendings.check(state, project).await?;
        if !priority.is_live() {
            return Ok(Admission::new(None));
        }
        let place = self.place(project)?;
        let purse = self.purse(&project.id, base_model);
        let cost = Amount {
            requests: 1.0,
            tokens: tokens as f64,
        };
        let admit = |status| {
            Admission::new(Some(Taken {
                purse: Arc::clone(&purse),
                reckoned: tokens,
                status,
                _place: place,
            }))
        };
        if let Some(status) = purse.spend(cost) {
            return Ok(admit(status));
        }
        let drawing = purse.drawing.lock().await;
        // Another request may have drawn for this one, too.
        if let Some(status) = purse.spend(cost) {
            return Ok(admit(status));
        }
        if purse.may_draw() {
            let draw = purse.draw_for(cost);
            let rates = state.store.rate_limits();
            let drawn = rates
                .draw(&project.id, base_model, self.default, draw, state.now())
                .await
                .map_err(store_error)?;
            purse.fill(drawn);
        }
        drop(drawing);
        match purse.spend(cost) {
            Some(status) => Ok(admit(status)),
            None => Err(purse.refusal(cost, base_model, project)),
        }
    }

    fn place(&self, project: &Project) -> Result<OwnedSemaphorePermit, ApiError> {
        let mut running = locked(&self.running);
        if running.len() >= MAX_PURSES {
            running.retain(|_, places| places.available_permits() < self.max_concurrent);
        }
        let places = running
            .entry(project.id.clone())
            .or_insert_with(|| Arc::new(Semaphore::new(self.max_concurrent)));
        Arc::clone(places).try_acquire_owned().map_err(|_full| {
            let message = format!(
                "Rate limit reached in project {}: {} requests are being answered at the same time. Please try again \
                 when one of them has ended.",
                project.id, self.max_concurrent
            );
            ApiError::new(Kind::RequestLimit, message)
                .code("rate_limit_exceeded")
                .retry_after(1)
        })
    }

    fn purse(&self, project: &ProjectId, base_model: &str) -> Arc<Purse> {
        let mut purses = locked(&self.purses);
        if purses.len() >= MAX_PURSES {
            purses.retain(|_, purse| Arc::strong_count(purse) > 1);
        }
        let key = (project.clone(), base_model.to_owned());
        let made = || Arc::new(Purse::empty(self.default));
        Arc::clone(purses.entry(key).or_insert_with(made))
    }
}

impl Purse {
    fn empty(limit: RateLimit) -> Self {
        let now = Instant::now();
        Self {
            state: Mutex::new(Spendable {
                held: Amount::default(),
                drawn_at: now,
                limit,
                left: None,
                next_draw_at: now,
            }),
            drawing: tokio::sync::Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, Spendable> {
        locked(&self.state)
    }

    fn spend(&self, cost: Amount) -> Option<RateStatus> {
        let mut state = self.state();
        if state.drawn_at.elapsed() > KEEPS {
            // A debt stays one.
            state.held.requests = state.held.requests.min(0.0);
            state.held.tokens = state.held.tokens.min(0.0);
        }
        if state.held.lacks(cost, state.limit).is_some() {
            return None;
        }
        state.held = state.held - cost;
        Some(state.status())
    }

    fn draw_for(&self, cost: Amount) -> Draw {
        let (held, none) = (self.state().held, Amount::default());
        Draw {
            of_limit: SHARE,
            debt: (none - held).max(none),
            needed: cost - held.max(none),
        }
    }

    fn may_draw(&self) -> bool {
        self.state().next_draw_at <= Instant::now()
    }

    fn fill(&self, drawn: store::rate_limits::Drawn) {
        let mut state = self.state();
        state.held = state.held + drawn.given;
        state.drawn_at = Instant::now();
        state.limit = drawn.limit;
        state.left = Some(drawn.left);
    }

    /// After a draw that did not suffice.
    fn refusal(&self, cost: Amount, model: &str, project: &Project) -> ApiError {
        let mut state = self.state();
        let now = Instant::now();
        // What a process does not get together with what is left to all, it may get later.
        let available = state.available();
        let lack = available.lacks(cost, state.limit);
        let (dimension, wait_s) = lack.unwrap_or((Dimension::Requests, 0.0));
        if state.next_draw_at <= now {
            // The next one that is as modest as can be; one second, so that a raised limit is soon seen.
            let one = Amount {
                requests: 1.0,
                tokens: 1.0,
            };
            let one = available.lacks(one, state.limit).map_or(0.0, |(_, s)| s);
            state.next_draw_at = now + Duration::from_secs_f64(one.clamp(0.0, 1.0));
        }
        refusal(dimension, wait_s, &state, cost, model, project)
    }

    fn settle(&self, reckoned: u64, spent: u64) {
        let mut state = self.state();
        state.held.tokens += reckoned as f64 - spent as f64;
    }
}

impl Spendable {
    /// What this process holds and what is left to all; below 0 in debt.
    fn available(&self) -> Amount {
        let shared = self.left.map_or(Amount::default(), |bucket| bucket.left);
        shared + self.held
    }

    fn status(&self) -> RateStatus {
        RateStatus {
            limit: self.limit,
            left: self.available().max(Amount::default()),
        }
    }
}

fn refusal(
    dimension: Dimension,
    wait_s: f64,
    state: &Spendable,
    cost: Amount,
    model: &str,
    project: &Project,
) -> ApiError {
    let full = state.limit.per_minute();
    let left = state.status().left;
    let (kind, on, limit, left, requested) = match dimension {
        Dimension::Requests => (
            Kind::RequestLimit,
            "requests per min (RPM)",
            full.requests,
            left.requests,
            cost.requests,
        ),
        Dimension::Tokens => (
            Kind::TokenLimit,
            "tokens per min (TPM)",
            full.tokens,
            left.tokens,
            cost.tokens,
        ),
    };
    let model = echo(model);
    if requested > limit {
        let message = format!(
            "Request too large for {model} in project {} on {on}: Limit {limit}, Requested {requested}. The messages or \
             the max_tokens must be reduced.",
            project.id
        );
        return ApiError::new(kind, message).code("rate_limit_exceeded");
    }
    let message = format!(
        "Rate limit reached for {model} in project {} on {on}: Limit {limit}, Used {used:.0}, Requested {requested}. \
         Please try again in {wait}.",
        project.id,
        used = limit - left.floor(),
        wait = crate::wire::rate_limits::go_duration(wait_s),
    );
    ApiError::new(kind, message)
        .code("rate_limit_exceeded")
        .retry_after(wait_s.ceil().clamp(1.0, 3600.0) as u32)
        .rate(state.status())
}

impl Admission {
    fn new(taken: Option<Taken>) -> Arc<Self> {
        Arc::new(Self {
            taken,
            spent: Mutex::new(0),
        })
    }

    /// How the limit stands, where one was asked.
    pub fn status(&self) -> Option<RateStatus> {
        self.taken.as_ref().map(|taken| taken.status)
    }

    /// So many more tokens were used.
    pub fn spend(&self, tokens: u64) {
        *locked(&self.spent) += tokens;
    }

    /// The same events; what they use is counted against what was reckoned.
    pub fn watch(self: &Arc<Self>, events: Events) -> Events {
        let mut answer = Watched {
            admission: Arc::clone(self),
            taken: TokensTaken::default(),
        };
        events.inspect(move |event| answer.taken.see(event)).boxed()
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        if let Some(taken) = &self.taken {
            taken.purse.settle(taken.reckoned, *locked(&self.spent));
        }
    }
}

/// An answer on its way; if it is given up, what was generated until then is what it used.
struct Watched {
    admission: Arc<Admission>,
    taken: TokensTaken,
}

impl Drop for Watched {
    fn drop(&mut self) {
        let taken = self.taken.tokens();
        self.admission
            .spend(taken.prompt_tokens + taken.completion_tokens);
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
