//! Answers as server-sent events, byte by byte as OpenAI's.

pub mod chat;
pub mod completion;
pub mod job_news;
pub mod response;

use bytes::Bytes;
use futures::future::ready;
use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt};
use poem_openapi::types::ToJSON;

use crate::error::ApiError;

/// The end of a complete stream.
const DONE: &[u8] = b"data: [DONE]\n\n";

/// What `spell` makes of every event until it says that nothing follows; `broken_off` is the event of a stream that ends without having
/// ended. Dropping the stream drops the events, and with them the generation.
fn spelled<E: Send + 'static, F: Send + 'static>(
    events: BoxStream<'static, E>,
    broken_off: E,
    frame: F,
    spell: fn(&mut F, E) -> Option<Bytes>,
) -> impl Stream<Item = Bytes> + Send + 'static {
    events
        .chain(stream::iter([broken_off]))
        .scan(frame, move |frame, event| ready(spell(frame, event)))
        .filter(|bytes| ready(!bytes.is_empty()))
}

fn push(out: &mut Vec<u8>, value: &impl ToJSON) {
    out.extend_from_slice(b"data: ");
    out.extend_from_slice(value.to_json_string().as_bytes());
    out.extend_from_slice(b"\n\n");
}

/// The last event of a stream that cannot go on.
fn push_error(out: &mut Vec<u8>, error: &ApiError) {
    note(error);
    push(out, &error.body());
}

fn note(error: &ApiError) {
    tracing::warn!(
        detail = error.detail,
        "a stream ends with an error: {}",
        error.message
    );
}
