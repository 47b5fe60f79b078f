//! What the door answers when it does not do what was asked. All of its status codes stand here.

use domain::job_event::Reject;
use platform::objects::ObjectsError;
use poem::error::ResponseError;
use poem::http::{StatusCode, header};
use poem::{Body, Response};
use store::{ApplyError, StoreError};

/// Why a call changed nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DoorError {
    #[error("a service token for this door is required")]
    Unauthorized,
    /// The worker must drop everything it holds for this attempt.
    #[error("attempt {named} is no longer current (it is {current})")]
    StaleAttempt { named: u32, current: u32 },
    #[error("no such job")]
    NotFound,
    /// The caller's mistake; repeating does not help.
    #[error("{0}")]
    BadRequest(String),
    /// The caller may repeat the call.
    #[error("try again: {0}")]
    Unavailable(String),
    /// A defect; the caller may still repeat the call.
    #[error("internal error: {0}")]
    Internal(String),
}

impl DoorError {
    fn code(&self) -> &'static str {
        match self {
            DoorError::Unauthorized => "unauthorized",
            DoorError::StaleAttempt { .. } => "stale_attempt",
            DoorError::NotFound => "not_found",
            DoorError::BadRequest(_) => "bad_request",
            DoorError::Unavailable(_) => "unavailable",
            DoorError::Internal(_) => "internal",
        }
    }

    /// The refusal as an answer, logged here and nowhere else.
    pub fn answer(&self) -> Response {
        let reason = self.to_string();
        match self {
            DoorError::StaleAttempt { .. } => tracing::info!(reason, "refused"),
            DoorError::Internal(_) => tracing::error!(reason, "refused"),
            _ => tracing::warn!(reason, "refused"),
        }
        metrics::counter!("luthier_door_refusals_total", "code" => self.code()).increment(1);
        let status = ResponseError::status(self);
        let error = serde_json::json!({ "error": { "code": self.code(), "message": reason } });
        let mut response = Response::builder()
            .status(status)
            .content_type("application/json");
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response = response.header(header::RETRY_AFTER, "1");
        }
        response.body(Body::from_string(error.to_string()))
    }
}

impl ResponseError for DoorError {
    fn as_response(&self) -> Response {
        self.answer()
    }

    fn status(&self) -> StatusCode {
        match self {
            DoorError::Unauthorized => StatusCode::UNAUTHORIZED,
            DoorError::StaleAttempt { .. } => StatusCode::CONFLICT,
            DoorError::NotFound => StatusCode::NOT_FOUND,
            DoorError::BadRequest(_) => StatusCode::BAD_REQUEST,
            DoorError::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            DoorError::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl From<StoreError> for DoorError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NotFound => DoorError::NotFound,
            StoreError::Invalid(reason) => DoorError::BadRequest(reason),
            StoreError::Unavailable(_) | StoreError::Conflict(_) => {
                DoorError::Unavailable(error.to_string())
            }
            _ => DoorError::Internal(error.to_string()),
        }
    }
}

impl From<ApplyError> for DoorError {
    fn from(error: ApplyError) -> Self {
        match error {
            ApplyError::NotFound => DoorError::NotFound,
            ApplyError::Rejected(Reject::StaleAttempt { named, current }) => {
                DoorError::StaleAttempt { named, current }
            }
            ApplyError::Rejected(refusal) => DoorError::BadRequest(refusal.to_string()),
            ApplyError::Store(error) => error.into(),
        }
    }
}

impl From<ObjectsError> for DoorError {
    fn from(error: ObjectsError) -> Self {
        match error {
            ObjectsError::Invalid { .. } => DoorError::BadRequest(error.to_string()),
            _ => DoorError::Unavailable(error.to_string()),
        }
    }
}
