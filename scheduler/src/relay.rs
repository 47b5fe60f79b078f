//! From the outbox to the queue: what a transaction wanted to say is said once it is committed.

use std::sync::atomic::Ordering;

use domain::job::JobState;
use domain::message::OfferMessage;
use metrics::counter;
use store::OutboxMessage;

use crate::error::PassError;
use crate::scheduler::Scheduler;

/// Messages taken at a time.
const BATCH: u64 = 100;
/// How long a relay may hold messages before another one takes them. Seconds.
const CLAIM_S: i64 = 15;
/// The broadcast's place in the outbox.
const CONTROL: &str = "control";
/// Refusals in a row after which the broker is taken to be down, not one queue to be missing.
const REFUSALS_IN_A_ROW: u32 = 2;

impl Scheduler {
    /// Publishes what the outbox holds; a message may go out twice, never not at all. Returns how
    /// many are done. Errors: the broker took none of the rest, which stays in the outbox.
    pub async fn relay_pass(&self) -> Result<usize, PassError> {
        let outbox = self.shared.store.outbox();
        if outbox.n_unsent().await? == 0 {
            self.shared.broker_down.store(false, Ordering::Relaxed);
            return Ok(0);
        }
        let now = self.now().await?;
        let messages = outbox.claim_unsent(now, BATCH, now.plus_s(CLAIM_S)).await?;
        let (mut done, mut kept) = (Vec::new(), Vec::new());
        let mut refusal = None;
        let mut n_refused = 0;
        for message in &messages {
            if n_refused >= REFUSALS_IN_A_ROW {
                kept.push(message.id);
                continue;
            }
            match self.relay(message).await? {
                Ok(()) => {
                    n_refused = 0;
                    done.push(message.id);
                }
                Err(error) => {
                    n_refused += 1;
                    refusal = Some(error);
                    kept.push(message.id);
                }
            }
        }
        outbox.mark_sent(&done, now).await?;
        outbox.release(&kept).await?;
        self.shared
            .broker_down
            .store(refusal.is_some(), Ordering::Relaxed);
        match refusal {
            Some(error) => Err(error.into()),
            None => Ok(done.len()),
        }
    }

    /// The outer error is the store's, the inner one the broker's.
    async fn relay(
        &self,
        message: &OutboxMessage,
    ) -> Result<Result<(), crate::hints::HintError>, PassError> {
        let body = message.body.to_string();
        if message.queue == CONTROL {
            return Ok(self.shared.hints.broadcast(body.as_bytes()).await);
        }
        if !self.is_open(message).await? {
            tracing::debug!(queue = message.queue, "offer withdrawn before it was sent");
            return Ok(Ok(()));
        }
        let sent = self
            .shared
            .hints
            .publish(&message.queue, body.as_bytes())
            .await;
        if sent.is_ok() {
            counter!("luthier_hints_sent_total").increment(1);
        }
        Ok(sent)
    }

    /// After a long outage most offers in the outbox were withdrawn long ago.
    async fn is_open(&self, message: &OutboxMessage) -> Result<bool, PassError> {
        let Ok(offer) = serde_json::from_value::<OfferMessage>(message.body.clone()) else {
            return Ok(true);
        };
        let job = self.shared.store.jobs().get_internal(&offer.job_id).await?;
        Ok(job.is_some_and(|job| {
            job.state() == JobState::Dispatched
                && job.progress().dispatch_id.as_ref() == Some(&offer.dispatch_id)
        }))
    }
}
