//! Multipart forms: what their fields hold, and the way of a field's bytes into the bucket.

use bytes::Bytes;
use futures::Stream;
use platform::objects::{ObjectsError, Stored};

use super::objects_error;
use super::storage::Storage;
use crate::body::{too_large, unread};
use crate::error::{ApiError, Kind};
use crate::multipart::{Multipart, MultipartError};
use crate::state::State;

/// A field that is no file holds a word or a number. Bytes.
const MAX_FIELD: usize = 4096;

/// What is known of a form before it is read.
#[derive(Debug, Clone, Copy)]
pub struct FormHead<'a> {
    pub content_type: Option<&'a str>,
    /// Bytes of the whole body, where the client says.
    pub content_length: Option<u64>,
}

/// How many bytes a field may have, and what is said of one that has more.
pub struct Bound {
    max_bytes: u64,
    refusal: ApiError,
}

impl Bound {
    /// Errors of what is read within it: 413.
    pub fn of_size(max_bytes: u64) -> Self {
        Self {
            max_bytes,
            refusal: too_large(max_bytes),
        }
    }

    /// And no more than the project has room for.
    pub fn within(self, storage: Storage) -> Self {
        match storage.left() < self.max_bytes {
            true => Self {
                max_bytes: storage.left(),
                refusal: storage.exceeded(),
            },
            false => self,
        }
    }
}

/// Streams the field that is being read into the object `key`.
/// Errors: beyond the bound what that says, 400 for a body that breaks off; nothing is stored then.
pub async fn put<S>(
    state: &State,
    key: &str,
    multipart: &mut Multipart<S>,
    bound: Bound,
) -> Result<Stored, ApiError>
where
    S: Stream<Item = std::io::Result<Bytes>> + Send + Unpin,
{
    let Bound { max_bytes, refusal } = &bound;
    let content = futures::stream::try_unfold((multipart, 0_u64), |(multipart, n)| async move {
        match multipart.chunk().await {
            Ok(None) => Ok(None),
            Ok(Some(chunk)) => {
                let n = n + chunk.len() as u64;
                if n > *max_bytes {
                    return Err(std::io::Error::other(refusal.clone()));
                }
                Ok(Some((chunk, (multipart, n))))
            }
            Err(error) => Err(std::io::Error::other(no_form(error))),
        }
    });
    match state.objects.put(key, content).await {
        Ok(stored) => Ok(stored),
        Err(ObjectsError::Body(error)) => Err(match error.downcast::<ApiError>() {
            Ok(refusal) => refusal,
            Err(error) => unread(error),
        }),
        Err(error) => Err(objects_error(error)),
    }
}

/// Removes an object that got no row. Where that fails the sweep does it later.
pub async fn discard(state: &State, key: &str) {
    if let Err(error) = state.objects.delete(key).await {
        tracing::warn!(%key, %error, "an object without a row stays until the next sweep");
    }
}

/// The text of the field that is being read. Errors: 400 where it is too long or no text.
pub async fn text<S>(multipart: &mut Multipart<S>, name: &str) -> Result<String, ApiError>
where
    S: Stream<Item = std::io::Result<Bytes>> + Send + Unpin,
{
    let mut whole = Vec::new();
    while let Some(chunk) = multipart.chunk().await.map_err(no_form)? {
        if whole.len() + chunk.len() > MAX_FIELD {
            let message = format!("Invalid '{name}': at most {MAX_FIELD} bytes are accepted.");
            return Err(ApiError::invalid(name, "string_above_max_length", message));
        }
        whole.extend_from_slice(&chunk);
    }
    String::from_utf8(whole).map_err(|_| {
        let message = format!("Invalid '{name}': expected text in UTF-8.");
        ApiError::invalid(name, "invalid_value", message)
    })
}

/// The form lacks a field.
pub fn missing(name: &'static str) -> ApiError {
    let message = format!("Missing required parameter: '{name}'.");
    ApiError::invalid(name, "missing_required_parameter", message)
}

/// The form has a field that is not asked for.
pub fn unknown(name: &str) -> ApiError {
    let name = crate::wire::decode::echo(name);
    let message = format!("Unknown parameter: '{name}'.");
    ApiError::invalid(name, "unknown_parameter", message)
}

/// The body is no form.
pub fn no_form(error: MultipartError) -> ApiError {
    match error {
        MultipartError::Read(error) => unread(error),
        MultipartError::ContentType => ApiError::new(
            Kind::BadRequest,
            "Invalid content type: expected multipart/form-data with a boundary.",
        ),
        other => ApiError::new(
            Kind::BadRequest,
            format!("Could not read the form: {other}."),
        ),
    }
}
