//! Responses as clients see them, and the events of streamed ones.

use domain::response::{Item, Response, ResponseStatus, TextPart};
use domain::usage::TokenUsage;
use serde_json::{Value, json};

use super::chat_reply::TokenLogprobObject;
use super::nullable::Nullable;
use super::reply::{pairs, reply};
use super::response_items::{ItemObject, PartObject};

reply! {
    /// A turn of a conversation: what was asked of it and what came.
    ResponseObject as "Response" {
        id: String,
        /// `response`.
        object: &'static str,
        /// Unix seconds.
        created_at: i64,
        /// Unix seconds; null unless it is `completed`.
        completed_at: Nullable<i64>,
        /// `in_progress`, `completed`, `incomplete` or `failed`.
        status: &'static str,
        error: Nullable<ResponseErrorObject>,
        incomplete_details: Nullable<IncompleteDetails>,
        /// Always false.
        background: bool,
        instructions: Nullable<String>,
        max_output_tokens: Nullable<u32>,
        /// As asked for.
        model: String,
        output: Vec<ItemObject>,
        parallel_tool_calls: bool,
        previous_response_id: Nullable<String>,
        store: bool,
        temperature: f64,
        /// The format of the answer.
        text: Value,
        tool_choice: Value,
        tools: Vec<Value>,
        top_logprobs: u32,
        top_p: f64,
        /// Always `disabled`.
        truncation: &'static str,
        /// Absent while it is `in_progress`.
        usage: Option<ResponseUsage>,
        metadata: Value,
    }

    ResponseErrorObject as "ResponseError" {
        /// `server_error`.
        code: &'static str,
        message: String,
    }

    IncompleteDetails as "IncompleteDetails" {
        /// `max_output_tokens`, which the context may bound, too.
        reason: &'static str,
    }

    /// Tokens of the request.
    ResponseUsage as "ResponseUsage" {
        input_tokens: u64,
        input_tokens_details: InputTokensDetails,
        output_tokens: u64,
        output_tokens_details: OutputTokensDetails,
        total_tokens: u64,
    }

    InputTokensDetails as "InputTokensDetails" {
        /// Tokens at the beginning that had been read before with the same model, and were not read again.
        cached_tokens: u64,
        /// Always 0: what is kept of a request is not counted.
        cache_write_tokens: u64,
    }

    OutputTokensDetails as "OutputTokensDetails" {
        /// Always 0: what a model thinks is part of its answer.
        reasoning_tokens: u64,
    }

    /// One event of a streamed response; `type` says which of the fields it has.
    ResponseEvent as "ResponseStreamEvent" {
        r#type: &'static str,
        /// Rises by one from event to event, from 0.
        sequence_number: u32,
        response: Option<ResponseObject>,
        /// Which item of the output.
        output_index: Option<u32>,
        item_id: Option<String>,
        item: Option<ItemObject>,
        /// Which part of a message: always 0.
        content_index: Option<u32>,
        part: Option<PartObject>,
        delta: Option<String>,
        text: Option<String>,
        logprobs: Option<Vec<TokenLogprobObject>>,
        name: Option<String>,
        arguments: Option<String>,
    }

    /// How long an input is.
    InputTokens as "ResponseInputTokens" {
        /// `response.input_tokens`.
        object: &'static str,
        input_tokens: u64,
    }
}

impl From<Response> for ResponseObject {
    fn from(response: Response) -> Self {
        let request = response.request;
        let (status, completed_at, error, incomplete) = match response.status {
            ResponseStatus::InProgress => ("in_progress", None, None, None),
            ResponseStatus::Completed { at } => ("completed", Some(at.unix_s()), None, None),
            ResponseStatus::Incomplete => {
                let reason = "max_output_tokens";
                ("incomplete", None, None, Some(IncompleteDetails { reason }))
            }
            ResponseStatus::Failed { message } => {
                let code = "server_error";
                let error = ResponseErrorObject { code, message };
                ("failed", None, Some(error), None)
            }
        };
        Self {
            id: response.id.to_string(),
            object: "response",
            created_at: response.created_at.unix_s(),
            completed_at: Nullable(completed_at),
            status,
            error: Nullable(error),
            incomplete_details: Nullable(incomplete),
            background: false,
            instructions: Nullable(request.instructions),
            max_output_tokens: Nullable(request.max_output_tokens),
            model: request.model,
            output: response.output.into_iter().map(Into::into).collect(),
            parallel_tool_calls: request.parallel_tool_calls,
            previous_response_id: Nullable(request.previous_response_id.map(|id| id.to_string())),
            store: request.store,
            temperature: request.temperature,
            text: json!({"format": request.text_format}),
            tool_choice: request.tool_choice,
            tools: request.tools,
            top_logprobs: request.top_logprobs,
            top_p: request.top_p,
            truncation: "disabled",
            usage: response.usage.map(Into::into),
            metadata: pairs(request.metadata),
        }
    }
}

impl From<TokenUsage> for ResponseUsage {
    fn from(usage: TokenUsage) -> Self {
        Self {
            input_tokens: usage.prompt_tokens,
            input_tokens_details: InputTokensDetails {
                cached_tokens: usage.cached_tokens,
                cache_write_tokens: 0,
            },
            output_tokens: usage.completion_tokens,
            output_tokens_details: OutputTokensDetails {
                reasoning_tokens: 0,
            },
            total_tokens: usage.prompt_tokens + usage.completion_tokens,
        }
    }
}

impl ResponseEvent {
    fn new(r#type: &'static str) -> Self {
        Self {
            r#type,
            sequence_number: 0,
            response: None,
            output_index: None,
            item_id: None,
            item: None,
            content_index: None,
            part: None,
            delta: None,
            text: None,
            logprobs: None,
            name: None,
            arguments: None,
        }
    }

    /// Of the response as a whole.
    pub fn of_response(r#type: &'static str, response: Response) -> Self {
        Self {
            response: Some(response.into()),
            ..Self::new(r#type)
        }
    }

    /// Of a whole item.
    pub fn of_item(r#type: &'static str, index: usize, item: Item) -> Self {
        Self {
            output_index: Some(index as u32),
            item: Some(item.into()),
            ..Self::new(r#type)
        }
    }

    /// Of something in an item.
    pub fn within(r#type: &'static str, index: usize, item_id: &str) -> Self {
        Self {
            output_index: Some(index as u32),
            item_id: Some(item_id.to_owned()),
            ..Self::new(r#type)
        }
    }

    /// Of the text of a message.
    pub fn of_text(r#type: &'static str, index: usize, item_id: &str) -> Self {
        Self {
            content_index: Some(0),
            ..Self::within(r#type, index, item_id)
        }
    }

    pub fn with_part(self, part: TextPart) -> Self {
        Self {
            part: Some(PartObject::output(part)),
            ..self
        }
    }
}
