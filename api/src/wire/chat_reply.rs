//! Answers: `chat.completion`, and the chunks of `chat.completion.chunk`.

use domain::chat_completion;
use domain::generation::{FinishReason, TokenLogprob, ToolCall, TopLogprob};
use domain::usage::TokenUsage;
use serde_json::Value;

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
        /// Only of a completion that is read back.
        metadata: Option<Nullable<Value>>,
    }

    Choice as "Choice" {
        index: u32,
        message: AnswerMessage,
        logprobs: Nullable<Logprobs>,
        /// `stop`, `length` or `tool_calls`.
        finish_reason: &'static str,
    }

    AnswerMessage as "AnswerMessage" {
        /// `assistant`.
        role: &'static str,
        /// Null where the answer only calls functions.
        content: Nullable<String>,
        /// The functions it calls; absent if none.
        tool_calls: Option<Vec<ToolCallObject>>,
        /// Always null.
        refusal: Nullable<String>,
        /// Always empty.
        annotations: Vec<Value>,
    }

    /// A call of a function.
    ToolCallObject as "ToolCall" {
        id: String,
        /// `function`.
        r#type: &'static str,
        function: CalledFunction,
    }

    CalledFunction as "CalledFunction" {
        name: String,
        /// A JSON object, as text.
        arguments: String,
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
        tool_calls: Option<Vec<ToolCallDelta>>,
        refusal: Option<Nullable<String>>,
    }

    /// What is new of a call: id and name first, then pieces of its arguments.
    ToolCallDelta as "ToolCallDelta" {
        /// Which of the answer's calls, from 0.
        index: u32,
        id: Option<String>,
        /// `function`.
        r#type: Option<&'static str>,
        function: FunctionDelta,
    }

    FunctionDelta as "FunctionDelta" {
        name: Option<String>,
        arguments: String,
    }
}

impl From<ToolCall> for ToolCallObject {
    fn from(call: ToolCall) -> Self {
        Self {
            id: call.id,
            r#type: "function",
            function: CalledFunction {
                name: call.name,
                arguments: call.arguments,
            },
        }
    }
}

impl From<chat_completion::ChatCompletion> for ChatCompletion {
    fn from(completion: chat_completion::ChatCompletion) -> Self {
        let choices = completion.choices.into_iter().zip(0..);
        Self {
            id: completion.id.to_string(),
            object: "chat.completion",
            created: completion.created_at.unix_s(),
            model: completion.model,
            choices: choices.map(Choice::from).collect(),
            usage: completion.usage.into(),
            metadata: None,
        }
    }
}

impl From<(chat_completion::Choice, u32)> for Choice {
    fn from((choice, index): (chat_completion::Choice, u32)) -> Self {
        let calls: Vec<ToolCallObject> = choice.tool_calls.into_iter().map(Into::into).collect();
        let is_silent = choice.text.is_empty() && !calls.is_empty();
        Self {
            index,
            message: AnswerMessage {
                role: "assistant",
                content: Nullable((!is_silent).then_some(choice.text)),
                tool_calls: (!calls.is_empty()).then_some(calls),
                refusal: Nullable(None),
                annotations: Vec::new(),
            },
            logprobs: Nullable(choice.logprobs.map(Logprobs::from)),
            finish_reason: finish_reason(choice.finish_reason),
        }
    }
}

impl Delta {
    /// The first of an answer.
    pub fn role() -> Self {
        Self {
            role: Some("assistant"),
            content: Some(String::new()),
            tool_calls: None,
            refusal: Some(Nullable(None)),
        }
    }

    pub fn text(text: String) -> Self {
        Self {
            content: Some(text),
            ..Self::nothing()
        }
    }

    /// Call number `index` begins.
    pub fn call(index: u32, id: String, name: String) -> Self {
        Self::of_call(ToolCallDelta {
            index,
            id: Some(id),
            r#type: Some("function"),
            function: FunctionDelta {
                name: Some(name),
                arguments: String::new(),
            },
        })
    }

    pub fn arguments(index: u32, arguments: String) -> Self {
        let name = None;
        Self::of_call(ToolCallDelta {
            index,
            id: None,
            r#type: None,
            function: FunctionDelta { name, arguments },
        })
    }

    fn of_call(call: ToolCallDelta) -> Self {
        Self {
            tool_calls: Some(vec![call]),
            ..Self::nothing()
        }
    }

    /// Beside the finish reason.
    pub fn nothing() -> Self {
        Self {
            role: None,
            content: None,
            tool_calls: None,
            refusal: None,
        }
    }
}

pub fn finish_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::ToolCalls => "tool_calls",
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
