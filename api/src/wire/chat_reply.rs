//! Answers: `chat.completion`, and the chunks of `chat.completion.chunk`.

use domain::generation::{FinishReason, TokenLogprob, TopLogprob};
use domain::usage::TokenUsage;

use super::nullable::Nullable;
use super::reply::reply;

reply! {
    /// A whole answer.
    ChatCompletion as "ChatCompletion" {
        id: String,
        /// `chat.completion`.
        object: &'static str,
        /// Unix seconds.
        created: i64,
        /// As asked for.
        model: String,
        choices: Vec<Choice>,
        usage: Usage,
    }

    Choice as "Choice" {
        index: u32,
        message: AnswerMessage,
        logprobs: Nullable<Logprobs>,
        /// `stop` or `length`.
        finish_reason: &'static str,
    }

    AnswerMessage as "AnswerMessage" {
        /// `assistant`.
        role: &'static str,
        content: String,
        /// Always null.
        refusal: Nullable<String>,
        /// Always empty.
        annotations: Vec<serde_json::Value>,
    }

    /// Log-probabilities of the answer's tokens.
    Logprobs as "Logprobs" {
        content: Vec<TokenLogprobObject>,
        /// Always null.
        refusal: Nullable<String>,
    }

    TokenLogprobObject as "TokenLogprob" {
        token: String,
        /// Natural logarithm.
        logprob: f64,
        bytes: Vec<u8>,
        top_logprobs: Vec<TopLogprobObject>,
    }

    TopLogprobObject as "TopLogprob" {
        token: String,
        logprob: f64,
        bytes: Vec<u8>,
    }

    /// Tokens of the request.
    Usage as "Usage" {
        prompt_tokens: u64,
        prompt_tokens_details: PromptTokensDetails,
        /// Of all answers together.
        completion_tokens: u64,
        total_tokens: u64,
    }

    PromptTokensDetails as "PromptTokensDetails" {
        /// Tokens at the beginning that had been read before with the same model, and were not read again.
        cached_tokens: u64,
    }

    /// One piece of a streamed answer.
    ChatCompletionChunk as "ChatCompletionChunk" {
        id: String,
        /// `chat.completion.chunk`.
        object: &'static str,
        /// Unix seconds, the same in every chunk.
        created: i64,
        model: String,
        /// Empty in the last chunk of a stream with usage.
        choices: Vec<ChunkChoice>,
        /// Only with `include_usage`: null except in the last chunk.
        usage: Option<Nullable<Usage>>,
    }

    ChunkChoice as "ChunkChoice" {
        index: u32,
        delta: Delta,
        logprobs: Nullable<Logprobs>,
        finish_reason: Nullable<&'static str>,
    }

    /// What is new: the role first, then text, then nothing with the finish reason.
    Delta as "Delta" {
        role: Option<&'static str>,
        content: Option<String>,
        refusal: Option<Nullable<String>>,
    }
}

impl Delta {
    /// The first of an answer.
    pub fn role() -> Self {
        Self {
            role: Some("assistant"),
            content: Some(String::new()),
            refusal: Some(Nullable(None)),
        }
    }

    pub fn text(text: String) -> Self {
        Self {
            content: Some(text),
            ..Self::nothing()
        }
    }

    /// Beside the finish reason.
    pub fn nothing() -> Self {
        Self {
            role: None,
            content: None,
            refusal: None,
        }
    }
}

pub fn finish_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
    }
}

impl From<TokenUsage> for Usage {
    fn from(usage: TokenUsage) -> Self {
        Self {
            prompt_tokens: usage.prompt_tokens,
            prompt_tokens_details: PromptTokensDetails {
                cached_tokens: usage.cached_tokens,
            },
            completion_tokens: usage.completion_tokens,
            total_tokens: usage.prompt_tokens + usage.completion_tokens,
        }
    }
}

impl From<Vec<TokenLogprob>> for Logprobs {
    fn from(tokens: Vec<TokenLogprob>) -> Self {
        Self {
            content: tokens.into_iter().map(Into::into).collect(),
            refusal: Nullable(None),
        }
    }
}

impl From<TokenLogprob> for TokenLogprobObject {
    fn from(token: TokenLogprob) -> Self {
        Self {
            token: token.token,
            logprob: f64::from(token.logprob),
            bytes: token.bytes,
            top_logprobs: token.top.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<TopLogprob> for TopLogprobObject {
    fn from(top: TopLogprob) -> Self {
        Self {
            token: top.token,
            logprob: f64::from(top.logprob),
            bytes: top.bytes,
        }
    }
}
