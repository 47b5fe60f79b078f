//! From the deliveries to the receivers: what a transaction wanted a project to be told is told once it is committed,
//! again and again until the receiver took it.

use domain::time::Timestamp;
use domain::webhook::{DISABLED_AFTER_S, next_try};
use futures::StreamExt;
use metrics::counter;
use platform::webhook::{Message, SigningSecret, send};
use store::DueDelivery;

use crate::error::PassError;
use crate::scheduler::Scheduler;

/// Deliveries taken at a time, all of them tried beside each other: a pass lasts as long as its slowest receiver.
const BATCH: u64 = 64;
/// How long a scheduler may hold a delivery before another one tries it; above what a try may last. Seconds.
const CLAIM_S: i64 = 60;

impl Scheduler {
    /// Tries every delivery that is due, once. Returns how many receivers took theirs.
    pub async fn webhook_pass(&self) -> Result<usize, PassError> {
        let now = self.now().await?;
        let webhooks = self.shared.store.webhooks();
        let due = webhooks.claim_due(now, BATCH, now.plus_s(CLAIM_S)).await?;
        let n = due.len().max(1);
        let tried =
            futures::stream::iter(due).map(|due| async move { self.try_delivery(&due, now).await });
        // One that cannot be noted does not break off the others.
        let tried: Vec<Result<bool, PassError>> = tried.buffer_unordered(n).collect().await;
        let taken = tried.into_iter().collect::<Result<Vec<bool>, _>>()?;
        Ok(taken.into_iter().filter(|taken| *taken).count())
    }

    /// Whether the receiver took it. Errors: the store's.
    async fn try_delivery(&self, due: &DueDelivery, now: Timestamp) -> Result<bool, PassError> {
        let webhooks = self.shared.store.webhooks();
        let Err(reason) = self.deliver(due, now).await else {
            webhooks.delivered(due, self.now().await?).await?;
            counter!("luthier_webhooks_total", "outcome" => "delivered").increment(1);
            tracing::info!(delivery = %due.id, endpoint = %due.endpoint_id, "webhook delivered");
            return Ok(true);
        };
        let now = self.now().await?;
        let next = next_try(due.n_tries + 1, rand::random(), now);
        let given_up_since = now.plus_s(-DISABLED_AFTER_S);
        let failed = webhooks.failed(due, &reason, next, given_up_since, now);
        let is_disabled = failed.await?;
        counter!("luthier_webhooks_total", "outcome" => "failed").increment(1);
        tracing::warn!(
            delivery = %due.id,
            endpoint = %due.endpoint_id,
            project = %due.project_id,
            n_tries = due.n_tries + 1,
            is_disabled,
            reason,
            "webhook not delivered"
        );
        Ok(false)
    }

    /// Sends it once. Errors: why the receiver did not take it.
    async fn deliver(&self, due: &DueDelivery, now: Timestamp) -> Result<(), String> {
        let vault = &self.shared.vault;
        let secrets = due.secrets.iter();
        let secrets = secrets.map(|secret| SigningSecret::open(vault, &secret.id, &secret.sealed));
        let secrets: Vec<SigningSecret> = secrets
            .collect::<Result<_, _>>()
            .map_err(|error| error.to_string())?;
        let message = Message {
            id: due.id.as_str(),
            sent_at: now,
            body: &due.body,
        };
        match send(&self.shared.outbound, &due.url, &message, &secrets).await {
            Ok(200..=299) => Ok(()),
            Ok(status) => Err(format!("the receiver answered {status}")),
            Err(error) => Err(error.to_string()),
        }
    }
}
