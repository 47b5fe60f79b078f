//! What every request at the worker's door goes through: a token, a size, JSON.

use platform::service_token::{self, ServiceKey};
use poem::http::StatusCode;
use poem::{Body, IntoResponse, Request, Response};
use serde::de::DeserializeOwned;

/// Whom a caller's token must be for.
const AUDIENCE: &str = "worker";

/// What is asked. Errors: the reply to a caller without a token for a worker, to a body of more than `max_bytes`, and to
/// one that is no such request.
pub(crate) async fn asked<T: DeserializeOwned>(
    request: &Request,
    body: Body,
    key: &ServiceKey,
    max_bytes: usize,
) -> Result<T, Response> {
    let token = request
        .header("authorization")
        .and_then(|value| value.strip_prefix("Bearer "));
    if token.is_none_or(|token| service_token::verify(key, AUDIENCE, token).is_err()) {
        return Err(StatusCode::UNAUTHORIZED.into_response());
    }
    let bytes = body.into_bytes_limit(max_bytes).await;
    let bytes = bytes.map_err(|_| StatusCode::PAYLOAD_TOO_LARGE.into_response())?;
    serde_json::from_slice(&bytes).map_err(|error| {
        StatusCode::BAD_REQUEST
            .with_body(error.to_string())
            .into_response()
    })
}
