//! The duties of a running scheduler: each repeats its pass, at once when woken, later after an
//! error. One scheduler of several leads and does them; the others stand by and answer the door.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use domain::id::base62;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::error::PassError;
use crate::scheduler::Scheduler;

/// Longest wait after repeated errors.
const MAX_BACKOFF: Duration = Duration::from_secs(15);
/// The one role there is to lead in.
const ROLE: &str = "scheduler";
/// Standing by longer than this after the leader died would be felt. Seconds.
const TERM_S: i64 = 15;
/// How often the leader renews, and the others look.
const RENEW: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Duty {
    Validate,
    Dispatch,
    Relay,
    Reap,
    Sweep,
    Webhooks,
}

impl Duty {
    const ALL: [Duty; 6] = [
        Duty::Validate,
        Duty::Dispatch,
        Duty::Relay,
        Duty::Reap,
        Duty::Sweep,
        Duty::Webhooks,
    ];

    fn name(self) -> &'static str {
        match self {
            Duty::Validate => "validate",
            Duty::Dispatch => "dispatch",
            Duty::Relay => "relay",
            Duty::Reap => "reap",
            Duty::Sweep => "sweep",
            Duty::Webhooks => "webhooks",
        }
    }
}

/// Starts every duty; they end when `stop` is cancelled, each after its current pass.
pub(crate) fn start(scheduler: &Scheduler, stop: &CancellationToken) -> JoinSet<()> {
    let leads = Arc::new(AtomicBool::new(false));
    let mut tasks = JoinSet::new();
    tasks.spawn(lead(scheduler.clone(), leads.clone(), stop.clone()));
    for duty in Duty::ALL {
        tasks.spawn(perform(
            scheduler.clone(),
            duty,
            leads.clone(),
            stop.clone(),
        ));
    }
    tasks
}

async fn perform(
    scheduler: Scheduler,
    duty: Duty,
    leads: Arc<AtomicBool>,
    stop: CancellationToken,
) {
    let period = scheduler.period(duty);
    let mut n_errors = 0;
    while !stop.is_cancelled() {
        let mut wait = period;
        if leads.load(Ordering::Relaxed) {
            match scheduler.pass(duty).await {
                Ok(()) => n_errors = 0,
                Err(error) => {
                    wait = (period.max(Duration::from_millis(500)) * (1 << n_errors))
                        .min(MAX_BACKOFF.max(period));
                    n_errors = (n_errors + 1).min(6);
                    tracing::warn!(duty = duty.name(), %error, "pass failed");
                }
            }
        } else {
            wait = wait.min(Duration::from_secs(1));
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = sleep(wait) => {}
            () = scheduler.woken(duty), if n_errors == 0 => {}
        }
    }
}

impl Scheduler {
    fn period(&self, duty: Duty) -> Duration {
        let config = &self.shared.config;
        match duty {
            Duty::Validate => Duration::from_millis(250),
            Duty::Dispatch | Duty::Relay => Duration::from_millis(500),
            Duty::Reap => Duration::from_secs(config.reaper_interval_s),
            Duty::Sweep => Duration::from_secs(config.sweep_interval_s),
            Duty::Webhooks => Duration::from_secs(1),
        }
    }

    async fn pass(&self, duty: Duty) -> Result<(), PassError> {
        match duty {
            // Long work goes on beside the loop, so that a large file holds nobody up.
            Duty::Validate => self.start_validations().await.map(drop),
            Duty::Dispatch => self.dispatch_pass().await.map(drop),
            Duty::Relay => self.relay_pass().await.map(drop),
            Duty::Reap => self.reap_pass().await.map(drop),
            Duty::Sweep => self.sweep_pass().await.map(drop),
            Duty::Webhooks => self.webhook_pass().await.map(drop),
        }
    }

    async fn woken(&self, duty: Duty) {
        let wake = &self.shared.wake;
        match duty {
            Duty::Validate => wake.validated.notified().await,
            Duty::Dispatch => wake.queued.notified().await,
            Duty::Relay => wake.outbox.notified().await,
            Duty::Webhooks => wake.ended.notified().await,
            Duty::Reap | Duty::Sweep => std::future::pending().await,
        }
    }
}

/// Keeps `leads` true while this process leads.
async fn lead(scheduler: Scheduler, leads: Arc<AtomicBool>, stop: CancellationToken) {
    let store = &scheduler.shared.store;
    // There is never another server on an embedded database: its successor leads at once.
    let holder = match store.is_embedded() {
        true => "embedded".to_owned(),
        false => base62(&rand::random::<[u8; 16]>()),
    };
    while !stop.is_cancelled() {
        let held = try_lead(&scheduler, &holder).await;
        if held != leads.swap(held, Ordering::Relaxed) {
            tracing::info!(holder, leads = held, "leadership changed");
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = sleep(RENEW) => {}
        }
    }
    leads.store(false, Ordering::Relaxed);
    if let Err(error) = store.leader().release(ROLE, &holder).await {
        tracing::warn!(%error, "leadership not handed over; its term runs out by itself");
    }
}

async fn try_lead(scheduler: &Scheduler, holder: &str) -> bool {
    let now = match scheduler.now().await {
        Ok(now) => now,
        Err(error) => {
            tracing::warn!(%error, "cannot lead");
            return false;
        }
    };
    match scheduler
        .shared
        .store
        .leader()
        .try_acquire(ROLE, holder, TERM_S, now)
        .await
    {
        Ok(term) => term.is_some(),
        Err(error) => {
            tracing::warn!(%error, "cannot lead");
            false
        }
    }
}
