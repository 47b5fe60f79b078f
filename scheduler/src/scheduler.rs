//! What every duty of the scheduler shares.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use domain::job::{FineTuningJob, JobState};
use domain::price::ModelPrice;
use domain::time::Timestamp;
use platform::config::{Config, SchedulerConfig};
use platform::objects::Objects;
use platform::outbound::{Lookup, Outbound};
use platform::vault::Vault;
use store::{Store, StoreError};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::base_text::BaseTexts;
use crate::clock::Clock;
use crate::hints::Hints;
use crate::server::StartError;
use crate::validate::Validations;

/// What a scheduler stands on.
#[derive(Debug)]
pub struct SchedulerOptions {
    pub config: Config,
    pub store: Store,
    pub objects: Objects,
    pub queue: Hints,
    pub clock: Clock,
}

/// The scheduler without its listener and its loops; clones share it. Each `…_pass` does what
/// is due now, once, and may run in several schedulers at a time.
#[derive(Clone)]
pub struct Scheduler {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub store: Store,
    pub objects: Objects,
    pub hints: Hints,
    pub clock: Clock,
    pub config: SchedulerConfig,
    pub prices: Vec<ModelPrice>,
    /// Of one project that has no number of its own; `None`: as many as there are workers.
    pub running_jobs: Option<u64>,
    pub base_texts: BaseTexts,
    /// Calls where projects say.
    pub outbound: Outbound,
    /// Opens what signs those calls.
    pub vault: Vault,
    pub wake: Wake,
    /// Set at shutdown: no more offers, claims, validations.
    pub draining: CancellationToken,
    /// The broker refused the last hint: jobs stay queued, where the door finds them.
    pub broker_down: AtomicBool,
    /// What this process is validating.
    pub validations: Mutex<Validations>,
    /// Held from the look at what a project may spend until the job is in the database.
    pub judging: tokio::sync::Mutex<()>,
    /// When the reaper last got through, by our clock.
    pub last_reap: Mutex<Option<Timestamp>>,
    /// From when on objects were not yet looked at by this process's sweep. Unix seconds.
    pub swept_until: Mutex<i64>,
}

/// Spares a loop its wait. Losing a wake-up costs one polling interval, never correctness.
#[derive(Default)]
pub(crate) struct Wake {
    /// A job was queued.
    pub queued: Notify,
    /// The outbox has a new message.
    pub outbox: Notify,
    /// A job ended: endpoints may have to be told.
    pub ended: Notify,
    /// A validation ended: there is room for the next.
    pub validated: Notify,
}

impl Scheduler {
    /// Errors: a secret is missing, or the system's certificates cannot be read.
    pub fn new(options: SchedulerOptions) -> Result<Self, StartError> {
        let SchedulerOptions {
            config,
            store,
            objects,
            queue,
            clock,
        } = options;
        let base_texts = BaseTexts::new(objects.clone(), config.cache_dir());
        let shared = Shared {
            store,
            objects,
            hints: queue,
            clock,
            base_texts,
            outbound: Outbound::new(config.webhook_rules(), Lookup::System)
                .map_err(StartError::Client)?,
            vault: config.vault()?,
            config: config.scheduler,
            prices: config.prices.models,
            running_jobs: config.limits.running_jobs(),
            wake: Wake::default(),
            draining: CancellationToken::new(),
            broker_down: AtomicBool::new(false),
            validations: Mutex::default(),
            judging: Default::default(),
            last_reap: Mutex::new(None),
            swept_until: Mutex::new(0),
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    pub(crate) async fn now(&self) -> Result<Timestamp, StoreError> {
        self.shared.clock.now(&self.shared.store).await
    }

    pub(crate) fn lease_until(&self, now: Timestamp) -> Timestamp {
        now.plus_s(seconds(self.shared.config.lease_ttl_s))
    }

    pub(crate) fn retry_backoff_max_s(&self) -> i64 {
        seconds(self.shared.config.retry_backoff_max_s)
    }

    /// Wakes whoever waits for what `job` just became.
    pub(crate) fn announce(&self, job: &FineTuningJob) {
        match job.state() {
            JobState::Queued => self.shared.wake.queued.notify_waiters(),
            JobState::Dispatched | JobState::Cancelling | JobState::Pausing => {
                self.shared.wake.outbox.notify_one();
            }
            state if state.is_terminal() => self.shared.wake.ended.notify_one(),
            _ => {}
        }
    }
}

/// Configured seconds as the clock counts them.
pub(crate) fn seconds(configured: u64) -> i64 {
    i64::try_from(configured).unwrap_or(i64::MAX / 2_000_000)
}
