//! Stored chat completions: the messages they answer, and what may be changed of them.

use domain::chat_completion::{StoredChatCompletion, StoredMessage};
use poem_openapi::Object;
use serde_json::Value;

use super::chat_reply::ChatCompletion;
use super::decode::{Fields, metadata};
use super::list::Listed;
use super::nullable::Nullable;
use super::reply::{pairs, reply};
use crate::body::Decode;
use crate::error::ApiError;

reply! {
    /// A message that a stored completion answers.
    StoredMessageObject as "StoredChatMessage" {
        id: String,
        role: Value,
        /// Null where the client sent parts, or calls alone.
        content: Nullable<Value>,
        /// The parts of a content that came in parts.
        content_parts: Nullable<Value>,
        name: Nullable<Value>,
        refusal: Nullable<Value>,
        tool_calls: Option<Value>,
        tool_call_id: Option<Value>,
    }
}

impl From<StoredMessage> for StoredMessageObject {
    fn from(StoredMessage { id, mut message }: StoredMessage) -> Self {
        let mut take = |key: &str| {
            let value = message.get_mut(key).map(Value::take);
            value.filter(|value| !value.is_null())
        };
        let (content, content_parts) = match take("content") {
            Some(parts @ Value::Array(_)) => (None, Some(parts)),
            content => (content, None),
        };
        Self {
            id,
            role: take("role").unwrap_or_default(),
            content: Nullable(content),
            content_parts: Nullable(content_parts),
            name: Nullable(take("name")),
            refusal: Nullable(take("refusal")),
            tool_calls: take("tool_calls"),
            tool_call_id: take("tool_call_id"),
        }
    }
}

impl Listed for StoredMessageObject {
    fn id(&self) -> &str {
        &self.id
    }
}

impl From<StoredChatCompletion> for ChatCompletion {
    fn from(stored: StoredChatCompletion) -> Self {
        Self {
            metadata: Some(Nullable(stored.metadata.map(pairs))),
            ..stored.completion.into()
        }
    }
}

impl Listed for ChatCompletion {
    fn id(&self) -> &str {
        &self.id
    }
}

/// The body of `POST /v1/chat/completions/{id}`.
#[derive(Debug, Clone, PartialEq, Object)]
pub struct UpdateChatCompletionRequest {
    /// In place of all there was; null: none.
    pub metadata: Option<std::collections::BTreeMap<String, String>>,
}

/// What a completion's metadata shall be.
#[derive(Debug, Clone, PartialEq)]
pub struct MetadataOrder(pub Option<Vec<(String, String)>>);

impl Decode for MetadataOrder {
    type Schema = UpdateChatCompletionRequest;

    fn decode(mut body: Fields) -> Result<Self, ApiError> {
        let at = body.require("metadata")?;
        body.finish()?;
        Ok(Self(match at.is_null() {
            true => None,
            false => Some(metadata(at)?),
        }))
    }
}
