//! Request bodies: read within a bound and a pace, parsed as JSON, decoded with paths.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt};
use poem::http::{HeaderMap, header};
use poem::{Request, RequestBody};
use poem_openapi::registry::{MetaMediaType, MetaRequest, Registry};
use poem_openapi::types::Type;
use poem_openapi::{ApiExtractor, ApiExtractorType, ExtractParamOptions};
use serde_json::Value;

use crate::error::{ApiError, Kind};
use crate::wire::decode::Fields;

/// Room for a long conversation; files travel as multipart. Bytes.
pub const MAX_JSON_BYTES: usize = 16 * 1024 * 1024;
/// A client that keeps us waiting so long for [`PACE_BYTES`] is gone.
const PACE: Duration = Duration::from_secs(30);
/// Slower than any network that a person would wait for. Bytes.
const PACE_BYTES: usize = 1024;

/// A request in OpenAI's JSON.
pub trait Decode: Sized + Send {
    /// What the document shows of it.
    type Schema: Type;

    /// Judges the body. Errors: 400 that names the parameter.
    fn decode(body: Fields) -> Result<Self, ApiError>;
}

/// A JSON body, decoded. `raw` is what came, for a fingerprint of the request.
pub struct JsonBody<T> {
    pub value: T,
    pub raw: Value,
}

impl<'a, T: Decode> ApiExtractor<'a> for JsonBody<T> {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::RequestObject];
    type ParamType = ();
    type ParamRawType = ();

    fn register(registry: &mut Registry) {
        T::Schema::register(registry);
    }

    fn request_meta() -> Option<MetaRequest> {
        Some(MetaRequest {
            description: None,
            content: vec![MetaMediaType {
                content_type: "application/json",
                schema: T::Schema::schema_ref(),
            }],
            required: true,
        })
    }

    async fn from_request(
        request: &'a Request,
        body: &mut RequestBody,
        _options: ExtractParamOptions<Self::ParamType>,
    ) -> poem::Result<Self> {
        refuse_encoding(request.headers())?;
        let raw = parse(&read(body.take()?.into_bytes_stream(), MAX_JSON_BYTES).await?)?;
        let value = T::decode(Fields::root(raw.clone())?)?;
        Ok(Self { value, raw })
    }
}

/// A compressed body could be a thousand times its size: none is taken.
pub fn refuse_encoding(headers: &HeaderMap) -> Result<(), ApiError> {
    let encoded = headers
        .get(header::CONTENT_ENCODING)
        .is_some_and(|encoding| encoding.as_bytes() != b"identity");
    if encoded {
        let message = "A compressed request body is not supported.";
        return Err(ApiError::new(Kind::UnsupportedMediaType, message));
    }
    Ok(())
}

fn parse(body: &Bytes) -> Result<Value, ApiError> {
    serde_json::from_slice(body).map_err(|error| {
        ApiError::new(
            Kind::BadRequest,
            format!(
                "We could not parse the JSON body of your request. (HINT: what was sent is not valid JSON: line {}, \
                 column {}.)",
                error.line(),
                error.column()
            ),
        )
    })
}

/// The whole body. Errors: 413; 408 where it comes too slowly; 400 where it ends too soon.
pub async fn read(
    chunks: impl Stream<Item = std::io::Result<Bytes>> + Send,
    max_bytes: usize,
) -> Result<Bytes, ApiError> {
    let mut chunks = std::pin::pin!(paced(chunks));
    let mut whole = BytesMut::new();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(unread)?;
        if whole.len() + chunk.len() > max_bytes {
            return Err(too_large(max_bytes as u64));
        }
        whole.extend_from_slice(&chunk);
    }
    Ok(whole.freeze())
}

/// The chunks as they come, and an error where they come too slowly or not at all.
pub fn paced(
    chunks: impl Stream<Item = std::io::Result<Bytes>> + Send,
) -> impl Stream<Item = std::io::Result<Bytes>> + Send {
    at_pace(chunks, PACE)
}

/// [`PACE_BYTES`] within `pace`; only the time counts in which we wait for the client.
fn at_pace(
    chunks: impl Stream<Item = std::io::Result<Bytes>> + Send,
    pace: Duration,
) -> impl Stream<Item = std::io::Result<Bytes>> + Send {
    let begun = (Box::pin(chunks), pace, 0);
    futures::stream::unfold(Some(begun), move |state| async move {
        let (mut chunks, left, n_bytes) = state?;
        let asked = Instant::now();
        match tokio::time::timeout(left, chunks.next()).await {
            Ok(Some(chunk)) => {
                let n_bytes = n_bytes + chunk.as_ref().map_or(0, Bytes::len);
                let (left, n_bytes) = if n_bytes >= PACE_BYTES {
                    (pace, 0)
                } else {
                    (left.saturating_sub(asked.elapsed()), n_bytes)
                };
                Some((chunk, Some((chunks, left, n_bytes))))
            }
            Ok(None) => None,
            Err(_elapsed) => Some((Err(std::io::ErrorKind::TimedOut.into()), None)),
        }
    })
}

/// The body did not arrive whole.
pub fn unread(error: std::io::Error) -> ApiError {
    if error.kind() == std::io::ErrorKind::TimedOut {
        let message = "Timed out while waiting for the rest of the request body.";
        return ApiError::new(Kind::RequestTimeout, message);
    }
    ApiError::new(
        Kind::BadRequest,
        "The request body ended before it was complete.",
    )
    .detail(error.to_string())
}

/// The body is larger than it may be.
pub fn too_large(max_bytes: u64) -> ApiError {
    let message = format!("The request body is too large: at most {max_bytes} bytes are accepted.");
    ApiError::new(Kind::TooLarge, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many chunks of `size` bytes come through, one every millisecond, until the stream ends or is given up.
    async fn through(size: usize, n_chunks: usize, pace: Duration) -> (usize, bool) {
        let chunks = futures::stream::iter(0..n_chunks).then(move |_| async move {
            tokio::time::sleep(Duration::from_millis(1)).await;
            Ok(Bytes::from(vec![b' '; size]))
        });
        let came: Vec<_> = at_pace(chunks, pace).collect().await;
        let given_up = |end: &std::io::Result<Bytes>| matches!(end, Err(error) if error.kind() == std::io::ErrorKind::TimedOut);
        let is_given_up = came.last().is_some_and(given_up);
        (came.len() - usize::from(is_given_up), is_given_up)
    }

    #[tokio::test]
    async fn a_body_that_dribbles_is_given_up_and_a_slow_one_is_read() {
        let (n_chunks, is_given_up) = through(1, 10_000, Duration::from_millis(50)).await;
        assert!(is_given_up && n_chunks <= 50, "{n_chunks} bytes came");
        // Five times as long in all, but never too slow.
        let slow = through(PACE_BYTES, 100, Duration::from_millis(20)).await;
        assert_eq!(slow, (100, false));
    }
}
