//! The scheduler's door as a worker calls it. It owns retries and the meaning of status codes; it decides nothing
//! about a job.

use std::time::Duration;

use domain::id::JobId;
use domain::message::{
    AttemptReply, BeatRequest, CheckpointRequest, ClaimReply, ClaimRequest, FailRequest,
    FinishRequest, HelloReply, HelloRequest,
};
use platform::service_token::{self, ServiceKey};
use reqwest::StatusCode;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Whom our tokens are for.
const AUDIENCE: &str = "door";
/// The door must answer within this; a claim that waits gets its waiting time on top.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// A token outlives its call by the time that clocks may differ.
const TOKEN_TTL: Duration = Duration::from_secs(120);
/// The first pause between two tries; doubled up to [`RETRY_MAX`].
const RETRY_FIRST: Duration = Duration::from_millis(200);
/// An outage of the door is noticed as over within this.
const RETRY_MAX: Duration = Duration::from_secs(3);

/// Why the door did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum DoorError {
    /// Another attempt holds the job: drop everything.
    #[error("the attempt is stale")]
    Stale,
    /// Worth another try: no answer, or one that says it could not.
    #[error("the door does not answer: {0}")]
    Unavailable(String),
    /// Another try would be refused again.
    #[error("the door refuses {path}: {status} {reason}")]
    Refused {
        path: String,
        status: StatusCode,
        reason: String,
    },
}

/// A client of the door; clones share its connections.
#[derive(Clone)]
pub(crate) struct DoorClient {
    http: reqwest::Client,
    url: String,
    key: ServiceKey,
}

/// The calls of one attempt.
#[derive(Clone)]
pub(crate) struct AttemptDoor {
    door: DoorClient,
    path: String,
}

impl DoorClient {
    pub(crate) fn new(url: &str, key: ServiceKey) -> Result<Self, reqwest::Error> {
        let http = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(3))
            .no_proxy()
            .build()?;
        Ok(Self {
            http,
            url: url.trim_end_matches('/').to_owned(),
            key,
        })
    }

    /// Says who we are; one try.
    pub(crate) async fn hello(&self, request: &HelloRequest) -> Result<HelloReply, DoorError> {
        self.call("/door/v1/hello", request, CALL_TIMEOUT).await
    }

    /// Asks for a job; one try, at most `wait_s` longer than other calls.
    pub(crate) async fn claim(&self, request: &ClaimRequest) -> Result<ClaimReply, DoorError> {
        let timeout = CALL_TIMEOUT + Duration::from_secs(request.wait_s.into());
        self.call("/door/v1/claim", request, timeout).await
    }

    pub(crate) fn attempt(&self, job: &JobId, attempt: u32) -> AttemptDoor {
        AttemptDoor {
            door: self.clone(),
            path: format!("/door/v1/jobs/{job}/attempts/{attempt}"),
        }
    }

    async fn call<Q: Serialize, R: DeserializeOwned>(
        &self,
        path: &str,
        request: &Q,
        timeout: Duration,
    ) -> Result<R, DoorError> {
        let unavailable = |error: reqwest::Error| DoorError::Unavailable(describe(&error));
        let token = service_token::issue(&self.key, AUDIENCE, TOKEN_TTL);
        let reply = self
            .http
            .post(format!("{}{path}", self.url))
            .bearer_auth(token)
            .timeout(timeout)
            .json(request)
            .send()
            .await
            .map_err(unavailable)?;
        let status = reply.status();
        if status.is_success() {
            return reply.json().await.map_err(unavailable);
        }
        let text = reply.text().await.unwrap_or_default();
        let reason: String = text.chars().take(300).collect();
        Err(match status {
            StatusCode::CONFLICT | StatusCode::NOT_FOUND => DoorError::Stale,
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => {
                DoorError::Unavailable(reason)
            }
            _ if status.is_server_error() => DoorError::Unavailable(format!("{status} {reason}")),
            _ => DoorError::Refused {
                path: path.to_owned(),
                status,
                reason,
            },
        })
    }
}

impl AttemptDoor {
    /// One try: the next beat comes anyway.
    pub(crate) async fn beat(&self, request: &BeatRequest) -> Result<AttemptReply, DoorError> {
        self.once("beat", request).await
    }

    pub(crate) async fn checkpoint(
        &self,
        request: &CheckpointRequest,
    ) -> Result<AttemptReply, DoorError> {
        self.until_answered("checkpoint", request).await
    }

    pub(crate) async fn finalizing(&self) -> Result<AttemptReply, DoorError> {
        self.until_answered("finalizing", &Empty {}).await
    }

    pub(crate) async fn finish(&self, request: &FinishRequest) -> Result<AttemptReply, DoorError> {
        self.until_answered("finish", request).await
    }

    pub(crate) async fn fail(&self, request: &FailRequest) -> Result<AttemptReply, DoorError> {
        self.until_answered("fail", request).await
    }

    pub(crate) async fn stopped(&self) -> Result<AttemptReply, DoorError> {
        self.until_answered("stopped", &Empty {}).await
    }

    async fn once<Q: Serialize>(&self, verb: &str, request: &Q) -> Result<AttemptReply, DoorError> {
        self.door
            .call(&format!("{}/{verb}", self.path), request, CALL_TIMEOUT)
            .await
    }

    /// Every call is safe to repeat, so it is repeated while the door is away; the caller ends this by dropping it.
    async fn until_answered<Q: Serialize>(
        &self,
        verb: &str,
        request: &Q,
    ) -> Result<AttemptReply, DoorError> {
        let mut pause = RETRY_FIRST;
        loop {
            match self.once(verb, request).await {
                Err(DoorError::Unavailable(reason)) => {
                    tracing::warn!(verb, reason, "the door does not answer, trying again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(RETRY_MAX);
                }
                answer => return answer,
            }
        }
    }
}

/// The body of calls that say all with their path.
#[derive(Serialize)]
struct Empty {}

/// The error with its causes: reqwest's own text names only the outermost.
fn describe(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text += &format!(": {inner}");
        cause = inner.source();
    }
    text
}
