//! Webhooks: what a project is told of, where it hears it, and when a delivery that failed is tried again.

use crate::batch::BatchStatus;
use crate::id::{
    Entropy, InvalidId, ProjectId, WebhookDeliveryId, WebhookEndpointId, WebhookEventId, base62,
};
use crate::job::JobState;
use crate::time::Timestamp;
use crate::words::words;

/// Endpoints that a project may have: each one costs a row whenever something ends.
pub const MAX_ENDPOINTS: u64 = 20;
/// An endpoint at which every delivery failed for so long is disabled. Seconds.
pub const DISABLED_AFTER_S: i64 = 5 * 24 * 3600;
/// Waits between tries, those of the Standard Webhooks specification: three days in all. Seconds.
const RETRY_AFTER_S: [i64; 9] = [
    5,
    5 * 60,
    30 * 60,
    2 * 3600,
    5 * 3600,
    10 * 3600,
    14 * 3600,
    20 * 3600,
    24 * 3600,
];

words! {
    /// What an endpoint can be told of, with OpenAI's words.
    WebhookEventType {
        FineTuningJobSucceeded = "fine_tuning.job.succeeded",
        FineTuningJobFailed = "fine_tuning.job.failed",
        FineTuningJobCancelled = "fine_tuning.job.cancelled",
        BatchCompleted = "batch.completed",
        BatchFailed = "batch.failed",
        BatchExpired = "batch.expired",
        BatchCancelled = "batch.cancelled",
    }
}

impl WebhookEventType {
    /// What is told of a job that reached this state.
    pub fn of_job(state: JobState) -> Option<Self> {
        match state {
            JobState::Succeeded => Some(WebhookEventType::FineTuningJobSucceeded),
            JobState::Failed => Some(WebhookEventType::FineTuningJobFailed),
            JobState::Cancelled => Some(WebhookEventType::FineTuningJobCancelled),
            _ => None,
        }
    }

    /// What is told of a batch that reached this status.
    pub fn of_batch(status: BatchStatus) -> Option<Self> {
        match status {
            BatchStatus::Completed => Some(WebhookEventType::BatchCompleted),
            BatchStatus::Failed => Some(WebhookEventType::BatchFailed),
            BatchStatus::Expired => Some(WebhookEventType::BatchExpired),
            BatchStatus::Cancelled => Some(WebhookEventType::BatchCancelled),
            _ => None,
        }
    }

    /// The prefix of the ids of what it happens to.
    fn object_prefix(self) -> &'static str {
        match self.as_str().split_once('.') {
            Some(("batch", _)) => "batch_",
            Some(("response", _)) => "resp_",
            _ => "ftjob-",
        }
    }
}

/// Where a project hears of what it asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhookEndpoint {
    pub id: WebhookEndpointId,
    pub project_id: ProjectId,
    pub name: String,
    pub url: String,
    pub event_types: Vec<WebhookEventType>,
    /// Enough of the signing secret to recognise it.
    pub secret_hint: String,
    pub created_at: Timestamp,
    /// When the client last changed it.
    pub updated_at: Timestamp,
    /// Set: it failed for too long and hears nothing more until the client updates it.
    pub disabled_at: Option<Timestamp>,
}

/// Something that happened to an object of a project.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhookEvent {
    pub id: WebhookEventId,
    pub event_type: WebhookEventType,
    /// e.g. `ftjob-…`.
    pub object_id: String,
    pub created_at: Timestamp,
}

impl WebhookEvent {
    /// The end of an object. An object ends once, so its id makes the event's: whoever raises it twice raises one
    /// event. Errors: an id that is none of ours.
    pub fn new(
        event_type: WebhookEventType,
        object_id: &str,
        created_at: Timestamp,
    ) -> Result<Self, InvalidId> {
        Ok(Self {
            id: WebhookEventId::parse(&format!("evt_{}", own_part(object_id)))?,
            event_type,
            object_id: object_id.to_owned(),
            created_at,
        })
    }

    /// An event about nothing, to try an endpoint with.
    pub fn sample(event_type: WebhookEventType, entropy: Entropy, created_at: Timestamp) -> Self {
        Self {
            id: WebhookEventId::mint(entropy),
            event_type,
            object_id: format!("{}{}", event_type.object_prefix(), base62(&entropy)),
            created_at,
        }
    }

    /// What is sent and signed: OpenAI's JSON, some 200 bytes.
    pub fn body(&self) -> String {
        serde_json::json!({
            "id": self.id,
            "object": "event",
            "created_at": self.created_at.unix_s(),
            "type": self.event_type,
            "data": {"id": self.object_id},
        })
        .to_string()
    }

    /// The delivery of this event to this endpoint; its id stays the same however often it is tried.
    /// Errors: ids too long to stand side by side.
    pub fn delivery_id(
        &self,
        endpoint: &WebhookEndpointId,
    ) -> Result<WebhookDeliveryId, InvalidId> {
        let (event, endpoint) = (own_part(self.id.as_str()), own_part(endpoint.as_str()));
        WebhookDeliveryId::parse(&format!("wh_{event}-{endpoint}"))
    }
}

/// An id without its prefix.
fn own_part(id: &str) -> &str {
    id.split_once(['-', '_']).map_or(id, |(_, own)| own)
}

/// When a delivery of which `n_failed` tries failed is tried again; `None`: it is given up. `jitter` in [0, 1)
/// lengthens the wait by up to a tenth, so that endpoints that failed together are not tried together.
pub fn next_try(n_failed: u32, jitter: f64, now: Timestamp) -> Option<Timestamp> {
    let waited = usize::try_from(n_failed.checked_sub(1)?).ok()?;
    let wait_s = *RETRY_AFTER_S.get(waited)?;
    Some(Timestamp(
        now.plus_s(wait_s).0 + (wait_s as f64 * jitter * 1e5) as i64,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_has_openais_json_and_the_id_of_its_object() {
        let end = WebhookEventType::FineTuningJobSucceeded;
        let event = WebhookEvent::new(end, "ftjob-abc", Timestamp::from_unix_s(7)).unwrap();
        assert_eq!(
            event.body(),
            r#"{"id":"evt_abc","object":"event","created_at":7,"type":"fine_tuning.job.succeeded","data":{"id":"ftjob-abc"}}"#
        );
        let endpoint = WebhookEndpointId::mint([0; 24]);
        assert_eq!(
            event.delivery_id(&endpoint).unwrap().as_str(),
            "wh_abc-000000000000000000000000"
        );
        assert!(WebhookEvent::new(end, "ftjob-a b", Timestamp(0)).is_err());
    }

    #[test]
    fn tries_come_ever_later_over_three_days_and_then_no_more() {
        let waits: Vec<i64> = (1..20)
            .map_while(|n| next_try(n, 0.0, Timestamp(0)).map(Timestamp::unix_s))
            .collect();
        assert_eq!(waits, RETRY_AFTER_S);
        assert!(waits.is_sorted());
        assert_eq!(waits.iter().sum::<i64>() / 3600, 75);
        assert_eq!(
            next_try(1, 0.5, Timestamp(0)),
            Some(Timestamp(5_250_000)),
            "half of a tenth more"
        );
        assert_eq!(next_try(0, 0.0, Timestamp(0)), None);
    }
}
