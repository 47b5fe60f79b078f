//! What a client asks of `POST /v1/responses`.

use domain::generation::{Priority, ResponseFormat, SamplingParams};
use domain::id::ResponseId;
use domain::response::{ItemContent, ResponseRequest};
use poem_openapi::Object;
use serde_json::{Value, json};

use super::chat::json_schema;
use super::chat_messages::Tools;
use super::decode::{At, Fields, echo, metadata};
use super::generation::{sampling, small};
use super::response_items::input;
use super::response_tools::{ToolRequest, tools};
use crate::body::Decode;
use crate::error::ApiError;

/// OpenAI's bound.
const MIN_OUTPUT_TOKENS: u32 = 16;
/// What `include` may name.
const INCLUDABLE: [&str; 8] = [
    LOGPROBS,
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
];
/// The one that shows something here.
const LOGPROBS: &str = "message.output_text.logprobs";
/// Accepted, because they change nothing about what this service answers.
const IGNORED: [&str; 8] = [
    "user",
    "service_tier",
    "reasoning",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "prompt_cache_options",
    "max_tool_calls",
];

/// The body of `POST /v1/responses`.
#[derive(Debug, Clone, PartialEq, Object)]
pub struct CreateResponseRequest {
    /// A base model, a tuned model or a checkpoint of one.
    pub model: String,
    /// A text, or items: messages, calls of functions and what came of them. May be absent with `previous_response_id`.
    pub input: Option<Value>,
    /// Said before the conversation, as a system message; not taken over by the next response.
    pub instructions: Option<String>,
    /// A response that was kept: its conversation goes on.
    pub previous_response_id: Option<String>,
    /// Whether the response is kept, to be read back and gone on with; default true.
    pub store: Option<bool>,
    /// Kept with the response.
    pub metadata: Option<std::collections::BTreeMap<String, String>>,
    /// Whether to answer as server-sent events.
    pub stream: Option<bool>,
    pub stream_options: Option<Value>,
    /// At least 16; default: until the context is full.
    pub max_output_tokens: Option<u32>,
    /// 0–2, default 1; 0 always takes the likeliest token.
    pub temperature: Option<f64>,
    /// 0–1, default 1.
    pub top_p: Option<f64>,
    /// 0–20 likeliest tokens at each place.
    pub top_logprobs: Option<u32>,
    /// `message.output_text.logprobs`: the log-probability of each token. What else OpenAI names shows nothing here.
    pub include: Option<Vec<String>>,
    /// Functions the model may call, at most 128: `{"type": "function", "name": …, "parameters": …}`.
    pub tools: Option<Vec<Value>>,
    /// `auto`, `none`, `required`, or `{"type": "function", "name": …}`.
    pub tool_choice: Option<Value>,
    /// Whether an answer may call more than one function; default true.
    pub parallel_tool_calls: Option<bool>,
    /// `{"format": …}` with `{"type": "text"}`, `{"type": "json_object"}`, or `{"type": "json_schema", "name": …, "schema": …}`.
    pub text: Option<Value>,
    /// `disabled` only: what does not fit into the context is refused.
    pub truncation: Option<String>,
}

/// The request, judged as far as it can be without the model.
#[derive(Debug, Clone, PartialEq)]
pub struct ResponseOrder {
    pub request: ResponseRequest,
    /// What this turn brings.
    pub input: Vec<ItemContent>,
    pub tools: Tools,
    pub response_format: ResponseFormat,
    pub sampling: SamplingParams,
    pub top_logprobs: Option<u8>,
    pub form: ResponseForm,
    /// What comes by the route is live.
    pub priority: Priority,
}

/// How a response travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResponseForm {
    Whole,
    Stream,
}

impl Decode for ResponseOrder {
    type Schema = CreateResponseRequest;

    fn decode(mut body: Fields) -> Result<Self, ApiError> {
        let number = |key: &str| body.get(key).and_then(Value::as_f64).unwrap_or(1.0);
        let (temperature, top_p) = (number("temperature"), number("top_p"));
        let previous_response_id = previous(&mut body)?;
        let n_top = body.take("top_logprobs").map(|at| small(at, 0, 20));
        let n_top = n_top.transpose()?.unwrap_or(0);
        let (response_format, text_format) = text(&mut body)?;
        let ToolRequest {
            tools,
            shown,
            shown_choice,
        } = tools(&mut body)?;
        let order = Self {
            input: match (body.take("input"), &previous_response_id) {
                (Some(at), _) => input(at)?,
                (None, Some(_)) => Vec::new(),
                (None, None) => input(body.require("input")?)?,
            },
            request: ResponseRequest {
                model: body.require("model")?.string_up_to(512)?,
                instructions: body.take("instructions").map(At::string).transpose()?,
                previous_response_id,
                max_output_tokens: body
                    .take("max_output_tokens")
                    .map(|at| small(at, MIN_OUTPUT_TOKENS, i32::MAX as u32))
                    .transpose()?,
                temperature,
                top_p,
                top_logprobs: n_top,
                tools: shown,
                tool_choice: shown_choice,
                parallel_tool_calls: tools.parallel,
                text_format,
                metadata: body.take("metadata").map_or(Ok(Vec::new()), metadata)?,
                store: body.take("store").map_or(Ok(true), At::boolean)?,
            },
            tools,
            response_format,
            sampling: sampling(&mut body)?,
            top_logprobs: (includes_logprobs(&mut body)? || n_top > 0).then_some(n_top as u8),
            form: form(&mut body)?,
            priority: Priority::Live,
        };
        refuse_what_is_not_done(&mut body)?;
        body.ignore(&IGNORED);
        body.finish()?;
        Ok(order)
    }
}

fn previous(body: &mut Fields) -> Result<Option<ResponseId>, ApiError> {
    let Some(at) = body.take("previous_response_id") else {
        return Ok(None);
    };
    let text = at.string()?;
    let id = ResponseId::parse(&text);
    id.map(Some).map_err(|_| unknown_previous(&text))
}

/// No such response was kept in the project.
pub fn unknown_previous(id: &str) -> ApiError {
    let message = format!("Previous response with id '{}' not found.", echo(id));
    ApiError::invalid(
        "previous_response_id",
        "previous_response_not_found",
        message,
    )
}

/// `text`: the format as it is understood, and as it is shown.
fn text(body: &mut Fields) -> Result<(ResponseFormat, Value), ApiError> {
    let plain = (ResponseFormat::Text, json!({"type": "text"}));
    let Some(at) = body.take("text") else {
        return Ok(plain);
    };
    let mut text = at.object()?;
    text.ignore(&["verbosity"]);
    let shown = text.get("format").cloned();
    let format = text.take("format");
    text.finish()?;
    let Some(format) = format else {
        return Ok(plain);
    };
    let mut format = format.object()?;
    let kind = format
        .require("type")?
        .one_of(&["text", "json_object", "json_schema"])?;
    let read = match kind {
        "json_schema" => return Ok((json_schema(format)?, shown.unwrap_or_default())),
        "json_object" => ResponseFormat::JsonObject,
        _ => ResponseFormat::Text,
    };
    format.finish()?;
    Ok((read, json!({"type": kind})))
}

fn includes_logprobs(body: &mut Fields) -> Result<bool, ApiError> {
    let Some(at) = body.take("include") else {
        return Ok(false);
    };
    let items = at.items(0, INCLUDABLE.len())?.into_iter();
    let names: Vec<&str> = items
        .map(|at| at.one_of(&INCLUDABLE))
        .collect::<Result<_, _>>()?;
    Ok(names.contains(&LOGPROBS))
}

fn form(body: &mut Fields) -> Result<ResponseForm, ApiError> {
    let form = match body.take("stream").map_or(Ok(false), At::boolean)? {
        true => ResponseForm::Stream,
        false => ResponseForm::Whole,
    };
    if let Some(options) = body.take("stream_options") {
        if form == ResponseForm::Whole {
            let message =
                "The 'stream_options' parameter is only allowed when 'stream' is enabled.";
            return Err(ApiError::invalid(
                "stream_options",
                "invalid_value",
                message,
            ));
        }
        let mut options = options.object()?;
        options.ignore(&["include_obfuscation"]);
        options.finish()?;
    }
    Ok(form)
}

/// What would change the answer and is not done here is refused, never ignored.
fn refuse_what_is_not_done(body: &mut Fields) -> Result<(), ApiError> {
    if body.take("background").map_or(Ok(false), At::boolean)? {
        let message = "Unsupported value: 'background' does not support true with this service: it answers while the client waits.";
        return Err(ApiError::unsupported("background", message));
    }
    if let Some(at) = body.take("truncation")
        && at.one_of(&["auto", "disabled"])? == "auto"
    {
        let message = "Unsupported value: 'truncation' does not support 'auto' with this service: nothing is left out of a conversation.";
        return Err(ApiError::unsupported("truncation", message));
    }
    body.refuse(
        &["conversation", "context_management"],
        "Use 'previous_response_id' instead.",
    )?;
    body.refuse(&["prompt"], "This service keeps no prompt templates.")?;
    body.refuse(&["moderation"], "This service does not moderate.")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(extra: Value) -> Result<ResponseOrder, ApiError> {
        let mut body = json!({"model": "m", "input": "hi"});
        for (key, value) in extra.as_object().unwrap() {
            body[key] = value.clone();
        }
        ResponseOrder::decode(Fields::root(body).unwrap())
    }

    #[test]
    fn what_is_absent_has_openais_default() {
        let order = decode(json!({})).unwrap();
        assert_eq!(order.sampling, SamplingParams::default());
        assert_eq!(order.response_format, ResponseFormat::Text);
        assert_eq!(
            (order.top_logprobs, order.form),
            (None, ResponseForm::Whole)
        );
        let request = &order.request;
        assert!(request.store && request.parallel_tool_calls);
        assert_eq!((request.temperature, request.top_p), (1.0, 1.0));
        let nulls = json!({
            "instructions": null, "previous_response_id": null, "store": null, "metadata": null, "stream": null,
            "max_output_tokens": null, "temperature": null, "top_logprobs": null, "include": null, "tools": null,
            "tool_choice": null, "text": null, "truncation": null, "background": null, "conversation": null,
            "prompt": null, "reasoning": null, "stream_options": null,
        });
        assert_eq!(decode(nulls).unwrap(), order);
    }

    #[test]
    fn a_flat_format_is_read() {
        let schema = json!({"type": "object", "properties": {"b": {}, "a": {}}});
        let format = json!({"type": "json_schema", "name": "x", "strict": true, "schema": schema});
        let order = decode(json!({"text": {"format": format, "verbosity": "low"}})).unwrap();
        let expected = ResponseFormat::JsonSchema {
            schema,
            strict: true,
        };
        assert_eq!(order.response_format, expected);
        assert_eq!(order.request.text_format, format);
        let order = decode(json!({"text": {"format": {"type": "json_object"}}})).unwrap();
        assert_eq!(order.response_format, ResponseFormat::JsonObject);
    }

    #[test]
    fn logprobs_are_shown_where_they_are_asked_for() {
        let shown = |extra| decode(extra).unwrap().top_logprobs;
        assert_eq!(shown(json!({"include": [LOGPROBS]})), Some(0));
        assert_eq!(shown(json!({"top_logprobs": 2})), Some(2));
        assert_eq!(shown(json!({"top_logprobs": 0})), None);
        let other = json!({"include": ["reasoning.encrypted_content"]});
        assert_eq!(shown(other), None);
    }

    #[test]
    fn a_previous_response_may_stand_for_input() {
        let body = json!({"model": "m", "previous_response_id": "resp_1"});
        let order = ResponseOrder::decode(Fields::root(body).unwrap()).unwrap();
        assert_eq!(order.input, []);
        let body = Fields::root(json!({"model": "m"})).unwrap();
        let error = ResponseOrder::decode(body).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("input"));
    }

    #[test]
    fn what_is_not_done_is_refused_by_name() {
        for (extra, param, code) in [
            (
                json!({"background": true}),
                "background",
                "unsupported_value",
            ),
            (
                json!({"truncation": "auto"}),
                "truncation",
                "unsupported_value",
            ),
            (
                json!({"conversation": "conv_1"}),
                "conversation",
                "unsupported_parameter",
            ),
            (
                json!({"prompt": {"id": "pmpt_1"}}),
                "prompt",
                "unsupported_parameter",
            ),
            (
                json!({"text": {"format": {"type": "json_schema", "name": "a b", "schema": {}}}}),
                "text.format.name",
                "invalid_value",
            ),
            (
                json!({"text": {"format": {"type": "xml"}}}),
                "text.format.type",
                "invalid_value",
            ),
            (
                json!({"max_output_tokens": 15}),
                "max_output_tokens",
                "integer_below_min_value",
            ),
            (json!({"include": ["x"]}), "include[0]", "invalid_value"),
            (
                json!({"stream_options": {"include_obfuscation": false}}),
                "stream_options",
                "invalid_value",
            ),
            (
                json!({"previous_response_id": "x"}),
                "previous_response_id",
                "previous_response_not_found",
            ),
            (
                json!({"temperature": 3}),
                "temperature",
                "decimal_above_max_value",
            ),
            (json!({"messages": []}), "messages", "unknown_parameter"),
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
