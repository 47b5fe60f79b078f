//! The items of responses: as clients send them and as they are shown.

use domain::generation::Role;
use domain::response::{Item, ItemContent, ItemStatus, TextPart};
use serde_json::Value;

use super::chat_reply::TokenLogprobObject;
use super::decode::{At, Fields, not_one_of};
use super::list::Listed;
use super::reply::reply;
use crate::error::ApiError;

/// Most items of one request; a context holds fewer.
const MAX_ITEMS: usize = 8192;
const MAX_PARTS: usize = 4096;
/// Keys that the SDKs send back with an item and that say nothing to the model.
const IGNORED: [&str; 8] = [
    "id",
    "status",
    "phase",
    "async",
    "caller",
    "namespace",
    "created_by",
    "parsed_arguments",
];
const IGNORED_OF_PART: [&str; 4] = [
    "annotations",
    "logprobs",
    "parsed",
    "prompt_cache_breakpoint",
];

reply! {
    /// A message, a call of a function, or what came of one.
    ItemObject as "ResponseItem" {
        id: String,
        /// `message`, `function_call` or `function_call_output`.
        r#type: &'static str,
        /// `in_progress`, `completed` or `incomplete`.
        status: &'static str,
        /// Of a message.
        role: Option<&'static str>,
        /// Of a message.
        content: Option<Vec<PartObject>>,
        /// Of a call, and of what came of it.
        call_id: Option<String>,
        /// Of a call: the function.
        name: Option<String>,
        /// Of a call: a JSON object, as text.
        arguments: Option<String>,
        /// What came of a call.
        output: Option<String>,
    }

    /// A piece of a message.
    PartObject as "ResponsePart" {
        /// `output_text` of the model's own words, else `input_text`.
        r#type: &'static str,
        text: String,
        /// Of `output_text`: always empty.
        annotations: Option<Vec<Value>>,
        /// Of `output_text`: empty unless they were asked for.
        logprobs: Option<Vec<TokenLogprobObject>>,
    }
}

impl Listed for ItemObject {
    fn id(&self) -> &str {
        &self.id
    }
}

impl From<Item> for ItemObject {
    fn from(item: Item) -> Self {
        let blank = Self {
            id: item.id,
            r#type: "message",
            status: match item.status {
                ItemStatus::InProgress => "in_progress",
                ItemStatus::Completed => "completed",
                ItemStatus::Incomplete => "incomplete",
            },
            role: None,
            content: None,
            call_id: None,
            name: None,
            arguments: None,
            output: None,
        };
        match item.content {
            ItemContent::Message { role, parts } => {
                let shown = |part| match role {
                    Role::Assistant => PartObject::output(part),
                    _ => PartObject::input(part),
                };
                Self {
                    role: Some(role.as_str()),
                    content: Some(parts.into_iter().map(shown).collect()),
                    ..blank
                }
            }
            ItemContent::FunctionCall {
                call_id,
                name,
                arguments,
            } => Self {
                r#type: "function_call",
                call_id: Some(call_id),
                name: Some(name),
                arguments: Some(arguments),
                ..blank
            },
            ItemContent::FunctionCallOutput { call_id, output } => Self {
                r#type: "function_call_output",
                call_id: Some(call_id),
                output: Some(output),
                ..blank
            },
        }
    }
}

impl PartObject {
    pub fn output(part: TextPart) -> Self {
        Self {
            r#type: "output_text",
            text: part.text,
            annotations: Some(Vec::new()),
            logprobs: Some(part.logprobs.into_iter().map(Into::into).collect()),
        }
    }

    fn input(part: TextPart) -> Self {
        Self {
            r#type: "input_text",
            text: part.text,
            annotations: None,
            logprobs: None,
        }
    }
}

/// `input`: a text, or items, at least one.
pub fn input(at: At) -> Result<Vec<ItemContent>, ApiError> {
    if at.is_string() {
        return Ok(vec![ItemContent::Message {
            role: Role::User,
            parts: vec![text(at.string()?)],
        }]);
    }
    if !at.is_array() {
        return Err(at.wrong_type("one of a string or array of objects"));
    }
    let items = at.items(1, MAX_ITEMS)?.into_iter();
    items.map(|at| item(at.object()?)).collect()
}

fn item(mut fields: Fields) -> Result<ItemContent, ApiError> {
    let kind = match fields.take("type") {
        None => "message".to_owned(),
        Some(at) => {
            let path = at.path.clone();
            let kind = at.string()?;
            if !["message", "function_call", "function_call_output"].contains(&kind.as_str()) {
                return Err(unsupported(path, &kind));
            }
            kind
        }
    };
    let content = match kind.as_str() {
        "message" => message(&mut fields)?,
        "function_call" => ItemContent::FunctionCall {
            call_id: fields.require("call_id")?.string_up_to(256)?,
            name: fields.require("name")?.string_up_to(256)?,
            arguments: fields.require("arguments")?.string()?,
        },
        _ => ItemContent::FunctionCallOutput {
            call_id: fields.require("call_id")?.string_up_to(256)?,
            output: output(fields.require("output")?)?,
        },
    };
    fields.ignore(&IGNORED);
    fields.finish()?;
    Ok(content)
}

fn message(fields: &mut Fields) -> Result<ItemContent, ApiError> {
    const ROLES: [Role; 4] = [Role::User, Role::Assistant, Role::System, Role::Developer];
    let role = fields.require("role")?;
    let role = role.one_of(&ROLES.map(Role::as_str))?;
    let role = ROLES.into_iter().find(|known| known.as_str() == role);
    let role = role.expect("one_of returned a known role — a bug in message");
    let kinds: &[&'static str] = match role {
        Role::Assistant => &["output_text", "refusal"],
        _ => &["input_text"],
    };
    let at = fields.require("content")?;
    let parts = parts(at, kinds)?;
    Ok(ItemContent::Message { role, parts })
}

/// A string, or parts of these kinds.
fn parts(at: At, kinds: &[&'static str]) -> Result<Vec<TextPart>, ApiError> {
    if at.is_array() {
        let parts = at.items(0, MAX_PARTS)?.into_iter();
        return parts.map(|at| part(at.object()?, kinds)).collect();
    }
    if !at.is_string() {
        return Err(at.wrong_type("one of a string or array of objects"));
    }
    Ok(vec![text(at.string()?)])
}

fn part(mut fields: Fields, kinds: &[&'static str]) -> Result<TextPart, ApiError> {
    let at = fields.require("type")?;
    let path = at.path.clone();
    let kind = at.string()?;
    if ["input_image", "input_file", "input_audio"].contains(&kind.as_str()) {
        return Err(unsupported(path, &kind));
    }
    if !kinds.contains(&kind.as_str()) {
        return Err(not_one_of(&path, &kind, kinds));
    }
    let key = if kind == "refusal" { "refusal" } else { "text" };
    let read = text(fields.require(key)?.string()?);
    fields.ignore(&IGNORED_OF_PART);
    fields.finish()?;
    Ok(read)
}

fn output(at: At) -> Result<String, ApiError> {
    let parts = parts(at, &["input_text"])?.into_iter();
    Ok(parts.map(|part| part.text).collect())
}

fn text(text: String) -> TextPart {
    TextPart {
        text,
        logprobs: Vec::new(),
    }
}

fn unsupported(path: String, kind: &str) -> ApiError {
    let kind = super::decode::echo(kind);
    let message =
        format!("Unsupported value: '{path}' does not support '{kind}' with this service.");
    ApiError::unsupported(path, message)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: Value) -> Result<Vec<ItemContent>, ApiError> {
        input(At::new("input", value))
    }

    fn said(role: Role, texts: &[&str]) -> ItemContent {
        let parts = texts.iter().map(|t| text((*t).to_owned())).collect();
        ItemContent::Message { role, parts }
    }

    #[test]
    fn what_a_response_shows_can_be_sent_back() {
        let call = ItemContent::FunctionCall {
            call_id: "call_1".to_owned(),
            name: "get".to_owned(),
            arguments: "{}".to_owned(),
        };
        let came = ItemContent::FunctionCallOutput {
            call_id: "call_1".to_owned(),
            output: "20".to_owned(),
        };
        let response = domain::id::ResponseId::mint([0; 24]);
        for content in [
            said(Role::User, &["a", "b"]),
            said(Role::Assistant, &["c"]),
            said(Role::Developer, &[]),
            call,
            came,
        ] {
            let item = Item::of_input(&response, 0, content.clone());
            let shown = poem_openapi::types::ToJSON::to_json(&ItemObject::from(item)).unwrap();
            assert_eq!(read(json!([shown])).unwrap(), [content]);
        }
    }

    #[test]
    fn short_forms_are_read() {
        let bare = json!([{"role": "system", "content": "x"}, {"role": "assistant", "content": [
            {"type": "output_text", "text": "y"}, {"type": "refusal", "refusal": "z"}]}]);
        let expected = [
            said(Role::System, &["x"]),
            said(Role::Assistant, &["y", "z"]),
        ];
        assert_eq!(read(bare).unwrap(), expected);
        assert_eq!(read(json!("hi")).unwrap(), [said(Role::User, &["hi"])]);
        let parts = json!([{"type": "function_call_output", "call_id": "c", "output": [
            {"type": "input_text", "text": "2"}, {"type": "input_text", "text": "0"}]}]);
        let expected = ItemContent::FunctionCallOutput {
            call_id: "c".to_owned(),
            output: "20".to_owned(),
        };
        assert_eq!(read(parts).unwrap(), [expected]);
    }

    #[test]
    fn a_bad_item_is_named_by_its_path() {
        let message = |content: Value| json!([{"role": "user", "content": content}]);
        for (value, param, code) in [
            (json!(5), "input", "invalid_type"),
            (json!([]), "input", "empty_array"),
            (json!(["hi"]), "input[0]", "invalid_type"),
            (
                json!([{"content": "x"}]),
                "input[0].role",
                "missing_required_parameter",
            ),
            (
                json!([{"role": "tool", "content": "x"}]),
                "input[0].role",
                "invalid_value",
            ),
            (
                json!([{"role": "user", "content": "x", "name": "bob"}]),
                "input[0].name",
                "unknown_parameter",
            ),
            (
                json!([{"type": "item_reference", "id": "msg_1"}]),
                "input[0].type",
                "unsupported_value",
            ),
            (
                json!([{"type": "function_call", "name": "get", "arguments": "{}"}]),
                "input[0].call_id",
                "missing_required_parameter",
            ),
            (
                message(json!([{"type": "output_text", "text": "x"}])),
                "input[0].content[0].type",
                "invalid_value",
            ),
            (
                message(json!([{"type": "input_image", "image_url": "x"}])),
                "input[0].content[0].type",
                "unsupported_value",
            ),
            (
                message(json!([{"type": "input_text", "text": 5}])),
                "input[0].content[0].text",
                "invalid_type",
            ),
        ] {
            let error = read(value.clone()).unwrap_err();
            assert_eq!(
                (error.param.as_deref(), error.code),
                (Some(param), Some(code)),
                "{value}"
            );
        }
    }
}
