//! The heartbeat of one attempt: it renews the lease, carries measurements to the door and brings back what is
//! desired. When no beat was accepted for too long the attempt holds still, before anyone else may start; when the
//! door says that the attempt is stale it is over.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use domain::message::{Assignment, AttemptReply, BeatRequest, Desired};
use domain::metrics::StepMetrics;
use domain::time::Timestamp;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::door_client::{AttemptDoor, DoorError};
use crate::worker::Worker;

/// How long before the lease ends the attempt holds still. Seconds; a third of a lease shorter than 15 s.
const MARGIN_S: f64 = 5.0;
/// A beat that failed is tried again after this, if the usual interval is longer.
const RETRY: Duration = Duration::from_secs(1);
/// Measurements in one beat: a short job on a tiny model makes thousands a second.
const MAX_METRICS: usize = 500;

/// Why an attempt must be dropped where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Drop {
    /// Another attempt holds the job, or none.
    Stale,
    /// The client cancelled; the door still wants to hear `stopped`.
    Cancelled,
}

/// What to do between two steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Directive {
    GoOn,
    Pause,
    Drain,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Orders {
    desired: Desired,
    stale: bool,
    /// Until when this attempt may compute.
    until: Instant,
}

#[derive(Default)]
struct Report {
    metrics: Vec<StepMetrics>,
    estimated_finish: Option<Timestamp>,
}

/// The heartbeat; `run` keeps it going.
pub(crate) struct Heart {
    worker: Arc<Worker>,
    door: AttemptDoor,
    /// How long after an accepted beat was sent the attempt may compute.
    may_compute_for: Duration,
    orders: watch::Sender<Orders>,
    report: Mutex<Report>,
    /// One beat at a time, so that measurements arrive in order.
    beating: tokio::sync::Mutex<()>,
    wake: Notify,
}

impl Heart {
    /// `claimed_at`: just before the claim was sent, as the lease began some time after.
    pub(crate) fn new(
        worker: &Arc<Worker>,
        door: AttemptDoor,
        assignment: &Assignment,
        claimed_at: Instant,
    ) -> Self {
        let ttl_s = f64::from(assignment.lease_ttl_s);
        let may_compute_for = Duration::from_secs_f64(ttl_s - MARGIN_S.min(ttl_s / 3.0));
        let until = claimed_at + may_compute_for;
        let (orders, _) = watch::channel(Orders {
            desired: Desired::GoOn,
            stale: false,
            until,
        });
        Self {
            worker: Arc::clone(worker),
            door,
            may_compute_for,
            orders,
            report: Mutex::default(),
            beating: tokio::sync::Mutex::default(),
            wake: Notify::new(),
        }
    }

    /// Beats until the attempt is stale; dropped with the attempt.
    pub(crate) async fn run(&self) {
        let interval = self.worker.beat_interval;
        loop {
            let pause = match self.beat().await {
                Ok(()) => jittered(interval),
                Err(DoorError::Stale) => return,
                Err(error) => {
                    tracing::warn!(%error, "beat failed");
                    RETRY.min(interval)
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.wake.notified() => {}
            }
        }
    }

    /// Beats soon: something about the job changed.
    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }

    /// Adds the measurements of a step to the next beat.
    pub(crate) fn measured(&self, metrics: StepMetrics, estimated_finish: Option<Timestamp>) {
        let mut report = self.report();
        report.metrics.push(metrics);
        report.estimated_finish = estimated_finish;
    }

    /// Returns once every measurement was accepted; not where the attempt is stale, as `hear`. Errors: `Refused`.
    pub(crate) async fn flush(&self) -> Result<(), DoorError> {
        loop {
            match self.beat().await {
                Ok(()) if self.report().metrics.is_empty() => return Ok(()),
                Ok(()) => {}
                Err(DoorError::Unavailable(_)) => tokio::time::sleep(RETRY).await,
                Err(DoorError::Stale) => std::future::pending().await,
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes in what any call on this attempt was answered. Does not return where the attempt is stale: whoever
    /// waits for `dropped` ends it. Errors: `Refused`, `Unavailable`.
    pub(crate) async fn hear(
        &self,
        answer: Result<AttemptReply, DoorError>,
    ) -> Result<(), DoorError> {
        match answer {
            Ok(reply) => {
                self.orders
                    .send_modify(|orders| orders.desired = reply.desired);
                Ok(())
            }
            Err(DoorError::Stale) => {
                self.orders.send_modify(|orders| orders.stale = true);
                std::future::pending().await
            }
            Err(error) => Err(error),
        }
    }

    /// Returns when the attempt must be dropped.
    pub(crate) async fn dropped(&self) -> Drop {
        let mut orders = self.orders.subscribe();
        let over = orders
            .wait_for(|orders| orders.stale || orders.desired == Desired::Cancel)
            .await;
        if over.expect("the sender is in self — a bug in heart").stale {
            Drop::Stale
        } else {
            Drop::Cancelled
        }
    }

    /// What to do now; waits while no recent beat was accepted.
    pub(crate) async fn between_steps(&self) -> Directive {
        let mut orders = self.orders.subscribe();
        while orders.borrow_and_update().until <= Instant::now() {
            tracing::warn!("no beat was accepted in time: holding still until one is");
            self.wake();
            tokio::select! {
                changed = orders.changed() => changed.expect("the sender is in self — a bug in heart"),
                // Saving is no computing, and the door judges it.
                () = self.worker.draining.cancelled() => return Directive::Drain,
            }
        }
        let desired = orders.borrow().desired;
        match desired {
            Desired::Pause => Directive::Pause,
            _ if self.worker.draining.is_cancelled() => Directive::Drain,
            _ => Directive::GoOn,
        }
    }

    async fn beat(&self) -> Result<(), DoorError> {
        let _turn = self.beating.lock().await;
        let sent_at = Instant::now();
        let request = self.next_request();
        match self.door.beat(&request).await {
            Ok(reply) => {
                self.report().metrics.drain(..request.metrics.len());
                self.orders.send_modify(|orders| {
                    orders.desired = reply.desired;
                    orders.until = sent_at + self.may_compute_for;
                });
                Ok(())
            }
            Err(error) => {
                if matches!(error, DoorError::Stale) {
                    self.orders.send_modify(|orders| orders.stale = true);
                }
                Err(error)
            }
        }
    }

    fn next_request(&self) -> BeatRequest {
        let report = self.report();
        let n = report.metrics.len().min(MAX_METRICS);
        BeatRequest {
            status: self.worker.status(),
            metrics: report.metrics[..n].to_vec(),
            estimated_finish: report.estimated_finish,
        }
    }

    fn report(&self) -> MutexGuard<'_, Report> {
        self.report
            .lock()
            .expect("no panic while locked — a bug in heart")
    }
}

/// `interval` ± 20 %, so that many workers do not beat in step.
pub(crate) fn jittered(interval: Duration) -> Duration {
    interval.mul_f64(rand::random_range(0.8..1.2))
}
