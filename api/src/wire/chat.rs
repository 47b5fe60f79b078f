//! What a client asks of `POST /v1/chat/completions`.

use domain::generation::{ChatMessage, Priority, ResponseFormat, SamplingParams};
use poem_openapi::Object;
use serde_json::Value;

use super::chat_messages::{MessageRequest, Tools, messages, name_of, tools};
use super::decode::{At, Fields, metadata};
use super::generation::{
    ReplyForm, StreamOptions, reckoned_tokens, reply_form, sampling, small, stop, stop_token_ids,
};
use crate::body::Decode;
use crate::error::ApiError;

/// Most tokens one answer may be asked for; the model's context is smaller anyway.
const MAX_TOKENS: i64 = i32::MAX as i64;
/// Accepted, because they change nothing about what this service answers.
const IGNORED: [&str; 9] = [
    "user",
    "service_tier",
    "reasoning_effort",
    "verbosity",
    "prediction",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "prompt_cache_options",
];

/// The body of `POST /v1/chat/completions`.
#[derive(Debug, Clone, PartialEq, Object)]
pub struct CreateChatCompletionRequest {
    /// A base model, a tuned model or a checkpoint of one.
    pub model: String,
    /// The conversation so far, at least one message.
    pub messages: Vec<MessageRequest>,
    /// 0–2, default 1; 0 always takes the likeliest token.
    pub temperature: Option<f64>,
    /// 0–1, default 1.
    pub top_p: Option<f64>,
    /// An extension: only so many of the likeliest tokens are drawn from, at least 1. Default: all.
    pub top_k: Option<u32>,
    /// An extension: only tokens at least so likely, as a share of the likeliest, are drawn from. 0–1, default 0.
    pub min_p: Option<f64>,
    /// 1–128, default 1.
    pub n: Option<u32>,
    /// Most tokens of an answer; default: until the context is full.
    pub max_completion_tokens: Option<u32>,
    /// Deprecated name of `max_completion_tokens`.
    pub max_tokens: Option<u32>,
    /// A string or up to four; the answer ends before the first that appears.
    pub stop: Option<Value>,
    /// An extension: ids of tokens that end the answer, up to 64; none of them appears in it.
    pub stop_token_ids: Option<Vec<u32>>,
    /// The same seed and request give the same answer on the same device.
    pub seed: Option<i64>,
    /// −2–2.
    pub frequency_penalty: Option<f64>,
    /// −2–2.
    pub presence_penalty: Option<f64>,
    /// Token id → −100–100, added to the token's logit.
    pub logit_bias: Option<std::collections::BTreeMap<String, f64>>,
    /// Whether to return the log-probability of each token.
    pub logprobs: Option<bool>,
    /// 0–20 likeliest tokens at each place; needs `logprobs`.
    pub top_logprobs: Option<u32>,
    /// Whether to answer as server-sent events.
    pub stream: Option<bool>,
    pub stream_options: Option<StreamOptions>,
    /// Functions the model may call, at most 128; the chat template renders them.
    pub tools: Option<Vec<Value>>,
    /// `auto`, `none`, `required`, or `{"type": "function", "function": {"name": …}}`.
    pub tool_choice: Option<Value>,
    /// Whether an answer may call more than one function; default true.
    pub parallel_tool_calls: Option<bool>,
    /// `{"type": "text"}`, `{"type": "json_object"}`, or `{"type": "json_schema", "json_schema": {"name": …, "schema": …, "strict": …}}`:
    /// the answer is JSON that the schema allows.
    pub response_format: Option<Value>,
    /// Whether the answer and its messages are kept, to be read back; default false.
    pub store: Option<bool>,
    /// Kept with the answer; without `store` it has no meaning.
    pub metadata: Option<std::collections::BTreeMap<String, String>>,
    /// `["text"]` only.
    pub modalities: Option<Vec<String>>,
}

/// The request, judged as far as it can be without the model.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatOrder {
    pub model: String,
    pub messages: Vec<ChatMessage>,
    pub tools: Tools,
    pub response_format: ResponseFormat,
    pub n: u32,
    pub max_tokens: Option<u32>,
    pub stop: Vec<String>,
    pub stop_token_ids: Vec<u32>,
    pub sampling: SamplingParams,
    pub top_logprobs: Option<u8>,
    pub reply: ReplyForm,
    /// What comes by the route is live.
    pub priority: Priority,
    /// What is kept with the answer, if that is asked for.
    pub kept: Option<Kept>,
}

/// What of a request is kept with its answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Kept {
    /// As the client spelled them.
    pub messages: Vec<Value>,
    pub metadata: Option<Vec<(String, String)>>,
}

impl Decode for ChatOrder {
    type Schema = CreateChatCompletionRequest;

    fn decode(mut body: Fields) -> Result<Self, ApiError> {
        let kept = kept(&mut body)?;
        let order = Self {
            model: body.require("model")?.string_up_to(512)?,
            messages: messages(body.require("messages")?)?,
            tools: tools(&mut body)?,
            response_format: body
                .take("response_format")
                .map_or(Ok(ResponseFormat::Text), response_format)?,
            n: body.take("n").map_or(Ok(1), |at| small(at, 1, 128))?,
            max_tokens: max_tokens(&mut body)?,
            stop: body.take("stop").map_or(Ok(Vec::new()), stop)?,
            stop_token_ids: body
                .take("stop_token_ids")
                .map_or(Ok(Vec::new()), stop_token_ids)?,
            sampling: sampling(&mut body)?,
            top_logprobs: top_logprobs(&mut body)?,
            reply: reply_form(&mut body)?,
            priority: Priority::Live,
            kept,
        };
        refuse_what_is_not_done(&mut body)?;
        body.ignore(&IGNORED);
        body.finish()?;
        Ok(order)
    }
}

impl ChatOrder {
    /// What the request is taken to use of a limit before it is answered.
    pub fn reckoned_tokens(&self) -> u64 {
        let chars = |message: &ChatMessage| {
            let calls = message.tool_calls.iter();
            let called: usize = calls
                .map(|call| call.name.len() + call.arguments.len())
                .sum();
            message.content.as_ref().map_or(0, String::len) + called
        };
        let n_chars = self.messages.iter().map(chars).sum();
        reckoned_tokens(n_chars, self.n, self.max_tokens)
    }
}

/// `store` and `metadata`. The messages are judged elsewhere.
fn kept(body: &mut Fields) -> Result<Option<Kept>, ApiError> {
    let metadata = body.take("metadata").map(metadata).transpose()?;
    if !body.take("store").map_or(Ok(false), At::boolean)? {
        return Ok(None);
    }
    let messages = match body.get("messages") {
        Some(Value::Array(messages)) => messages.clone(),
        _ => Vec::new(),
    };
    Ok(Some(Kept { messages, metadata }))
}

fn max_tokens(body: &mut Fields) -> Result<Option<u32>, ApiError> {
    let read = |at: At| {
        let value = at.integer(1..=MAX_TOKENS)?;
        Ok(u32::try_from(value).expect("at most 2^31 − 1 — a bug in At::integer"))
    };
    let newer = body.take("max_completion_tokens").map(read).transpose()?;
    let older = body.take("max_tokens").map(read).transpose()?;
    if newer.is_some() && older.is_some() {
        let message =
            "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.";
        return Err(ApiError::invalid(
            "max_tokens",
            "invalid_parameter_combination",
            message,
        ));
    }
    Ok(newer.or(older))
}

fn top_logprobs(body: &mut Fields) -> Result<Option<u8>, ApiError> {
    let wanted = body.take("logprobs").map_or(Ok(false), At::boolean)?;
    let top = body
        .take("top_logprobs")
        .map(|at| small(at, 0, 20))
        .transpose()?;
    match (wanted, top) {
        (true, top) => Ok(Some(top.unwrap_or(0) as u8)),
        (false, None) => Ok(None),
        (false, Some(_)) => {
            let message =
                "The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled.";
            Err(ApiError::invalid("top_logprobs", "invalid_value", message))
        }
    }
}

/// What would change the answer and is not done here is refused, never ignored.
fn refuse_what_is_not_done(body: &mut Fields) -> Result<(), ApiError> {
    if let Some(at) = body.take("modalities") {
        for item in at.items(0, 8)? {
            item.one_of(&["text"])?;
        }
    }
    body.refuse(&["audio"], "This service answers in text only.")?;
    body.refuse(
        &["web_search_options"],
        "This service does not search the web.",
    )?;
    body.refuse(
        &["functions", "function_call"],
        "Use 'tools' and 'tool_choice' instead.",
    )?;
    body.refuse(&["moderation"], "This service does not moderate.")
}

fn response_format(at: At) -> Result<ResponseFormat, ApiError> {
    let mut fields = at.object()?;
    let kind = fields
        .require("type")?
        .one_of(&["text", "json_object", "json_schema"])?;
    let format = match kind {
        "text" => ResponseFormat::Text,
        "json_object" => ResponseFormat::JsonObject,
        _ => json_schema(fields.require("json_schema")?.object()?)?,
    };
    fields.finish()?;
    Ok(format)
}

/// A schema with its name.
pub(super) fn json_schema(mut fields: Fields) -> Result<ResponseFormat, ApiError> {
    name_of(fields.require("name")?)?;
    fields.take("description").map(At::string).transpose()?;
    let strict = fields.take("strict").map_or(Ok(false), At::boolean)?;
    let schema = match (fields.take("schema"), strict) {
        (Some(at), _) => at.json_object()?,
        // Any JSON.
        (None, false) => Value::Object(Default::default()),
        (None, true) => fields.require("schema")?.json_object()?,
    };
    fields.finish()?;
    Ok(ResponseFormat::JsonSchema { schema, strict })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn decode(extra: Value) -> Result<ChatOrder, ApiError> {
        let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
        for (key, value) in extra.as_object().unwrap() {
            body[key] = value.clone();
        }
        ChatOrder::decode(Fields::root(body).unwrap())
    }

    #[test]
    fn what_is_absent_has_openais_default() {
        let order = decode(json!({})).unwrap();
        assert_eq!(order.sampling, SamplingParams::default());
        assert_eq!(
            (order.n, order.max_tokens, order.top_logprobs),
            (1, None, None)
        );
        assert_eq!(order.reply, ReplyForm::Whole);
    }

    #[test]
    fn a_response_format_is_read() {
        let read = |format: Value| {
            decode(json!({"response_format": format}))
                .unwrap()
                .response_format
        };
        assert_eq!(read(json!({"type": "text"})), ResponseFormat::Text);
        assert_eq!(
            read(json!({"type": "json_object"})),
            ResponseFormat::JsonObject
        );
        let schema = json!({"type": "object", "properties": {"b": {}, "a": {}}});
        let format = json!({"type": "json_schema", "json_schema": {"name": "x", "strict": true, "schema": schema}});
        let expected = ResponseFormat::JsonSchema {
            schema,
            strict: true,
        };
        assert_eq!(read(format), expected);
    }

    #[test]
    fn messages_are_kept_as_they_were_spelled_and_only_if_asked_for() {
        let metadata = json!({"metadata": {"k": "v"}});
        assert_eq!(decode(metadata.clone()).unwrap().kept, None);
        let order = decode(json!({"metadata": {"k": "v"}, "store": true})).unwrap();
        let kept = Kept {
            messages: vec![json!({"role": "user", "content": "hi"})],
            metadata: Some(vec![("k".to_owned(), "v".to_owned())]),
        };
        assert_eq!(order.kept, Some(kept));
    }

    #[test]
    fn null_asks_for_nothing() {
        let nulls = json!({
            "temperature": null, "n": null, "stop": null, "stream": null, "stream_options": null, "tools": null,
            "tool_choice": null, "response_format": null, "logit_bias": null, "seed": null, "audio": null,
            "functions": null, "store": null, "metadata": null, "max_tokens": null,
        });
        assert_eq!(decode(nulls).unwrap(), decode(json!({})).unwrap());
    }

    #[test]
    fn every_bound_is_held() {
        for (extra, param, code) in [
            (
                json!({"temperature": 3}),
                "temperature",
                "decimal_above_max_value",
            ),
            (json!({"top_p": -0.1}), "top_p", "decimal_below_min_value"),
            (json!({"n": 0}), "n", "integer_below_min_value"),
            (json!({"n": 129}), "n", "integer_above_max_value"),
            (
                json!({"max_tokens": 0}),
                "max_tokens",
                "integer_below_min_value",
            ),
            (
                json!({"max_tokens": 1_000_000_000_000_u64}),
                "max_tokens",
                "integer_above_max_value",
            ),
            (
                json!({"max_tokens": 1, "max_completion_tokens": 1}),
                "max_tokens",
                "invalid_parameter_combination",
            ),
            (json!({"top_logprobs": 2}), "top_logprobs", "invalid_value"),
            (
                json!({"logprobs": true, "top_logprobs": 21}),
                "top_logprobs",
                "integer_above_max_value",
            ),
            (
                json!({"stop": ["a", "b", "c", "d", "e"]}),
                "stop",
                "array_above_max_length",
            ),
            (json!({"stop": ["a", 5]}), "stop[1]", "invalid_type"),
            (
                json!({"stop_token_ids": [1, -1]}),
                "stop_token_ids[1]",
                "integer_below_min_value",
            ),
            (
                json!({"logit_bias": {"5": 101}}),
                "logit_bias.5",
                "decimal_above_max_value",
            ),
            (
                json!({"logit_bias": {"x": 1}}),
                "logit_bias",
                "invalid_value",
            ),
            (
                json!({"presence_penalty": 2.5}),
                "presence_penalty",
                "decimal_above_max_value",
            ),
            (
                json!({"stream_options": {"include_usage": true}}),
                "stream_options",
                "invalid_value",
            ),
            (
                json!({"response_format": {"type": "xml"}}),
                "response_format.type",
                "invalid_value",
            ),
            (
                json!({"response_format": {"type": "json_schema"}}),
                "response_format.json_schema",
                "missing_required_parameter",
            ),
            (
                json!({"response_format": {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}}),
                "response_format.json_schema.name",
                "invalid_value",
            ),
            (
                json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "strict": true}}}),
                "response_format.json_schema.schema",
                "missing_required_parameter",
            ),
            (
                json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": [1]}}}),
                "response_format.json_schema.schema",
                "invalid_type",
            ),
            (
                json!({"parallel_tool_calls": 1}),
                "parallel_tool_calls",
                "invalid_type",
            ),
            (json!({"store": 1}), "store", "invalid_type"),
            (
                json!({"store": true, "metadata": {"a": "\u{0}"}}),
                "metadata",
                "invalid_value",
            ),
            (
                json!({"modalities": ["text", "audio"]}),
                "modalities[1]",
                "invalid_value",
            ),
            (
                json!({"web_search_options": {}}),
                "web_search_options",
                "unsupported_parameter",
            ),
            (
                json!({"chat_template": "x"}),
                "chat_template",
                "unknown_parameter",
            ),
            (json!({"stream": "yes"}), "stream", "invalid_type"),
        ] {
            let error = decode(extra.clone()).unwrap_err();
            assert_eq!(
                (error.param.as_deref(), error.code),
                (Some(param), Some(code)),
                "{extra}"
            );
        }
    }
}
