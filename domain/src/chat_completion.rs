//! Chat completions: whole answers, and those that a client asked to keep.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::generation::{FinishReason, TokenLogprob, ToolCall};
use crate::id::{ChatCompletionId, ProjectId};
use crate::time::Timestamp;
use crate::usage::TokenUsage;

/// All answers to one conversation.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatCompletion {
    pub id: ChatCompletionId,
    pub created_at: Timestamp,
    /// As asked for.
    pub model: String,
    pub choices: Vec<Choice>,
    pub usage: TokenUsage,
}

/// One of the answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    pub text: String,
    pub tool_calls: Vec<ToolCall>,
    /// `None`: they were not asked for.
    pub logprobs: Option<Vec<TokenLogprob>>,
    pub finish_reason: FinishReason,
}

/// A completion that is kept, without the messages it answers.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredChatCompletion {
    pub project_id: ProjectId,
    pub completion: ChatCompletion,
    /// In the client's order.
    pub metadata: Option<Vec<(String, String)>>,
}

/// A message that a stored completion answers.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredMessage {
    /// The completion's id and the message's place, from 0.
    pub id: String,
    /// As the client spelled it.
    pub message: Value,
}

impl StoredMessage {
    /// The messages of a completion, with their ids.
    pub fn all(completion: &ChatCompletionId, messages: Vec<Value>) -> Vec<Self> {
        let stored = |(i, message)| Self {
            id: format!("{completion}-{i}"),
            message,
        };
        messages.into_iter().enumerate().map(stored).collect()
    }
}
