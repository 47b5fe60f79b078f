//! A conversation, and what may be asked of a model.

use serde::{Deserialize, Serialize};

/// Who speaks. OpenAI's six roles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    System,
    Developer,
    User,
    Assistant,
    Tool,
    Function,
}

impl Role {
    pub fn as_str(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::Developer => "developer",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
            Role::Function => "function",
        }
    }
}

/// One message; text parts are already joined into `content`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatMessage {
    pub role: Role,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
}

impl ChatMessage {
    /// A message that says something and calls nothing.
    pub fn new(role: Role, content: &str) -> Self {
        Self {
            role,
            content: Some(content.to_owned()),
            name: None,
            tool_calls: Vec::new(),
            tool_call_id: None,
        }
    }
}

/// A function the assistant called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolCall {
    pub id: String,
    pub name: String,
    /// JSON text, as the model wrote it.
    pub arguments: String,
}

/// What an answer must be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ResponseFormat {
    #[default]
    Text,
    /// A JSON object.
    JsonObject,
    /// JSON that the schema allows.
    JsonSchema {
        schema: serde_json::Value,
        /// Whether a schema that cannot be held to in all it says is refused.
        strict: bool,
    },
}

/// Whether and what the model calls.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToolChoice {
    None,
    /// As the model likes.
    #[default]
    Auto,
    /// One function at least.
    Required,
    /// This one, once.
    Named(String),
}

/// Who comes first where there is not room for all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// Somebody waits for the answer.
    #[default]
    Live,
    /// It is answered where there is room to spare, and refused as busy where there is none.
    Spare,
}

impl Priority {
    pub fn is_live(&self) -> bool {
        *self == Priority::Live
    }
}

/// How tokens are drawn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SamplingParams {
    /// 0–2; 0 is greedy.
    pub temperature: f32,
    /// 0–1.
    pub top_p: f32,
    /// At least 1; `None` is all.
    #[serde(default)]
    pub top_k: Option<u32>,
    /// 0–1.
    #[serde(default)]
    pub min_p: f32,
    /// −2–2.
    pub frequency_penalty: f32,
    /// −2–2.
    pub presence_penalty: f32,
    pub seed: Option<u64>,
    /// Token id and what is added to its logit, −100–100.
    pub logit_bias: Vec<(u32, f32)>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: None,
            min_p: 0.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            seed: None,
            logit_bias: Vec::new(),
        }
    }
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model ended its turn, or a stop string came.
    Stop,
    /// `max_tokens` or the context is full.
    Length,
    /// The model called functions and ended its turn.
    ToolCalls,
}

/// The log-probability of one token of an answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprob {
    pub token: String,
    pub bytes: Vec<u8>,
    /// Natural logarithm.
    pub logprob: f32,
    pub top: Vec<TopLogprob>,
}

/// A token of a prompt that an answer begins with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EchoedToken {
    pub token: String,
    /// Where it begins in the prompt's text. Characters.
    pub offset: u64,
    /// Natural logarithm; none of the first token.
    pub logprob: Option<f32>,
    pub top: Vec<TopLogprob>,
}

/// One of the likeliest tokens at a place.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TopLogprob {
    pub token: String,
    pub bytes: Vec<u8>,
    pub logprob: f32,
}
