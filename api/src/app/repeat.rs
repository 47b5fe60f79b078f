//! Requests that come twice: by an `Idempotency-Key`, or because an SDK repeats a POST whose answer it lost.
//!
//! The SDKs send no key of their own, but they count their repetitions; so a repetition with the body of a request
//! that the same API key sent a moment ago is answered with what that one made. Here that is found by the object, which
//! remembers its request; [`crate::kept`] does the same for every other POST.

use domain::time::Timestamp;
use poem::Request as HttpRequest;
use serde_json::Value;
use sha2::{Digest, Sha256};
use store::IdempotencyEntry;

use super::store_error;
use crate::auth::Caller;
use crate::error::ApiError;
use crate::state::State;

/// How long a key is remembered. Seconds.
pub const REMEMBERED_S: i64 = 24 * 3600;
/// Above what an SDK needs for its two repetitions after its timeout of ten minutes each. Seconds.
pub const RETRY_S: i64 = 30 * 60;
const MAX_KEY: usize = 255;

/// When a request's head was there: the outermost endpoint puts it beside the request.
#[derive(Debug, Clone, Copy)]
pub struct BeganAt(pub Timestamp);

/// What a request says of being a repetition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repeat {
    /// `Idempotency-Key`.
    pub key: Option<String>,
    /// `x-stainless-retry-count`; 0 for a first try and for clients that do not say.
    pub retry_count: u32,
    pub began_at: Timestamp,
}

impl Repeat {
    /// What its head says.
    pub fn of(request: &HttpRequest) -> Self {
        let headers = request.headers();
        let key = headers.get("idempotency-key");
        let retries = headers.get("x-stainless-retry-count");
        let count = retries.and_then(|count| count.to_str().ok()?.parse().ok());
        let began_at = request.extensions().get::<BeganAt>();
        let BeganAt(began_at) =
            *began_at.expect("the outermost endpoint puts it there — a bug in outer");
        Self {
            key: key.map(|key| String::from_utf8_lossy(key.as_bytes()).into_owned()),
            retry_count: count.unwrap_or(0),
            began_at,
        }
    }
}

/// A request that makes an object, named so that its repetition can be recognised.
pub struct Request<'a> {
    pub caller: &'a Caller,
    /// e.g. `POST /fine_tuning/jobs`.
    pub endpoint: &'static str,
    pub repeat: &'a Repeat,
    /// Hash of what was asked for.
    pub fingerprint: String,
}

/// What a request asked to make, and whether an earlier one made it.
pub struct Created<T> {
    pub object: T,
    pub is_replay: bool,
}

impl<T> Created<T> {
    pub fn new(object: T) -> Self {
        Self {
            object,
            is_replay: false,
        }
    }

    pub fn replay(object: T) -> Self {
        Self {
            object,
            is_replay: true,
        }
    }
}

impl Request<'_> {
    /// The id of what an earlier request with this key, or this repetition's first try, made.
    /// Errors: 400 for a key that came with another body.
    pub async fn made_earlier(&self, state: &State) -> Result<Option<String>, ApiError> {
        let project = &self.caller.project.id;
        let (idempotency, now) = (state.store.idempotency(), state.now());
        if let Some(key) = &self.repeat.key {
            check_key(key)?;
            let found = idempotency
                .find(project, self.endpoint, key, now)
                .await
                .map_err(store_error)?;
            return match found {
                Some(earlier) if earlier.fingerprint != self.fingerprint => Err(key_reused()),
                found => Ok(found.map(|earlier| earlier.object_id)),
            };
        }
        if self.repeat.retry_count == 0 {
            return Ok(None);
        }
        let (key_id, since) = (&self.caller.key_id, now.plus_s(-RETRY_S));
        let found = idempotency
            .find_retry(project, self.endpoint, key_id, &self.fingerprint, since)
            .await
            .map_err(store_error)?;
        Ok(found.map(|earlier| earlier.object_id))
    }

    /// What it made before is gone: it makes another one. Only for a request without a key, which names one object for ever.
    pub async fn forget(&self, state: &State, object_id: &str) -> Result<(), ApiError> {
        let (project, entry) = (&self.caller.project.id, self.entry(state.now()));
        let forgotten = state.store.idempotency().forget(project, &entry, object_id);
        forgotten.await.map_err(store_error)
    }

    /// What is remembered with the object this request makes.
    pub fn entry(&self, now: Timestamp) -> IdempotencyEntry {
        let is_repetition = self.repeat.retry_count > 0;
        IdempotencyEntry {
            endpoint: self.endpoint.to_owned(),
            key: self.repeat.key.clone(),
            api_key_id: self.caller.key_id.clone(),
            fingerprint: self.fingerprint.clone(),
            began_at: self.repeat.began_at,
            repeats_since: is_repetition.then(|| now.plus_s(-RETRY_S)),
            expires_at: now.plus_s(REMEMBERED_S),
        }
    }
}

/// Hex SHA-256 of the value with its keys sorted: the same for the same request, however it was spelled.
pub fn fingerprint(value: &Value) -> String {
    let mut canonical = value.clone();
    canonical.sort_all_objects();
    hex(&Sha256::digest(canonical.to_string().as_bytes()))
}

/// Lowercase hexadecimal digits.
pub fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn check_key(key: &str) -> Result<(), ApiError> {
    let length = key.chars().count();
    if (1..=MAX_KEY).contains(&length) {
        return Ok(());
    }
    let message = format!(
        "Invalid 'Idempotency-Key': expected 1 to {MAX_KEY} characters, but got {length} instead."
    );
    Err(ApiError::invalid(
        "Idempotency-Key",
        "invalid_value",
        message,
    ))
}

pub fn key_reused() -> ApiError {
    let message =
        "This Idempotency-Key was used for another request. Use a new key for a new request.";
    ApiError::invalid("Idempotency-Key", "idempotency_key_reused", message)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_order_of_keys_does_not_change_a_fingerprint_and_any_value_does() {
        let one = fingerprint(&json!({"a": {"x": 1, "y": [2, 3]}, "b": null}));
        assert_eq!(
            one,
            fingerprint(&json!({"b": null, "a": {"y": [2, 3], "x": 1}}))
        );
        assert_ne!(
            one,
            fingerprint(&json!({"b": null, "a": {"y": [3, 2], "x": 1}}))
        );
    }
}
