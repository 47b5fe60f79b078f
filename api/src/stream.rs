//! Answers as server-sent events, byte by byte as OpenAI's.

pub mod chat;
pub mod completion;

use poem_openapi::types::ToJSON;

/// The end of a complete stream.
const DONE: &[u8] = b"data: [DONE]\n\n";

fn push(out: &mut Vec<u8>, value: &impl ToJSON) {
    out.extend_from_slice(b"data: ");
    out.extend_from_slice(value.to_json_string().as_bytes());
    out.extend_from_slice(b"\n\n");
}
