//! The messages and tools of a chat request.

use domain::generation::{ChatMessage, Role, ToolCall, ToolChoice};
use poem_openapi::Object;
use serde_json::Value;

use super::decode::{At, Fields, echo};
use crate::error::ApiError;

/// Most messages of one request; a context holds fewer.
const MAX_MESSAGES: usize = 8192;
const MAX_PARTS: usize = 4096;
pub(super) const MAX_TOOLS: usize = 128;
/// Longest name of a function or of a schema. Characters.
const MAX_NAME_CHARS: usize = 64;
/// Keys that the SDKs send back with an assistant's message and that say nothing to the model.
const IGNORED_OF_ASSISTANT: [&str; 2] = ["annotations", "reasoning_content"];

/// One message of the conversation.
#[derive(Debug, Clone, PartialEq, Object)]
pub struct MessageRequest {
    /// `system`, `developer`, `user`, `assistant`, `tool` or `function`.
    pub role: String,
    /// A string, or an array of `{"type": "text", "text": …}`; may be absent for an assistant that calls tools.
    pub content: Option<Value>,
    pub name: Option<String>,
    /// Of an assistant: the functions it called.
    pub tool_calls: Option<Vec<Value>>,
    /// Of a tool: the call it answers.
    pub tool_call_id: Option<String>,
}

/// The conversation, at least one message.
pub fn messages(at: At) -> Result<Vec<ChatMessage>, ApiError> {
    at.items(1, MAX_MESSAGES)?
        .into_iter()
        .map(|at| message(at.object()?))
        .collect()
}

fn message(mut fields: Fields) -> Result<ChatMessage, ApiError> {
    let role = fields.require("role")?.one_of(&[
        "system",
        "assistant",
        "user",
        "function",
        "tool",
        "developer",
    ])?;
    let role = role_of(role);
    let name = fields
        .take("name")
        .map(|at| at.string_up_to(256))
        .transpose()?;
    let (mut tool_calls, mut tool_call_id) = (Vec::new(), None);
    match role {
        Role::Assistant => {
            tool_calls = fields.take("tool_calls").map_or(Ok(Vec::new()), calls)?;
            fields.ignore(&IGNORED_OF_ASSISTANT);
            fields.refuse(&["audio"], "This service answers in text only.")?;
            fields.refuse(&["function_call"], "Use 'tool_calls' instead.")?;
        }
        Role::Tool => tool_call_id = Some(fields.require("tool_call_id")?.string_up_to(256)?),
        _ => {}
    }
    let refusal = fields.take("refusal").map(At::string).transpose()?;
    let content = match (role, fields.take_content()?) {
        (_, Some(content)) => Some(content),
        (Role::Assistant, None) if !tool_calls.is_empty() || refusal.is_some() => refusal,
        (_, None) => return Err(fields.missing_content()),
    };
    fields.finish()?;
    Ok(ChatMessage {
        role,
        content,
        name,
        tool_calls,
        tool_call_id,
    })
}

impl Fields {
    /// `content` with its text parts joined; `None` when it is absent or null.
    fn take_content(&mut self) -> Result<Option<String>, ApiError> {
        let Some(at) = self.take("content") else {
            return Ok(None);
        };
        if at.is_array() {
            let parts = at.items(1, MAX_PARTS)?;
            let texts: Result<Vec<String>, ApiError> = parts.into_iter().map(text_part).collect();
            return texts.map(|texts| Some(texts.concat()));
        }
        if !at.is_string() {
            return Err(at.wrong_type("one of a string or array of objects"));
        }
        at.string().map(Some)
    }

    fn missing_content(&mut self) -> ApiError {
        match self.require("content") {
            Err(missing) => missing,
            Ok(at) => at.wrong_type("a string"),
        }
    }
}

fn text_part(at: At) -> Result<String, ApiError> {
    let mut part = at.object()?;
    let at = part.require("type")?;
    let path = at.path.clone();
    let text = match at.one_of(&["text", "refusal", "image_url", "input_audio", "file"])? {
        "text" => part.require("text")?.string()?,
        "refusal" => part.require("refusal")?.string()?,
        other => {
            let message = format!(
                "Unsupported value: '{path}' does not support '{other}' with this service."
            );
            return Err(ApiError::unsupported(path, message));
        }
    };
    part.ignore(&["prompt_cache_breakpoint"]);
    part.finish()?;
    Ok(text)
}

fn calls(at: At) -> Result<Vec<ToolCall>, ApiError> {
    let read = |at: At| {
        let mut call = at.object()?;
        let id = call.require("id")?.string_up_to(256)?;
        call.require("type")?.one_of(&["function"])?;
        let mut function = call.require("function")?.object()?;
        let read = ToolCall {
            id,
            name: function.require("name")?.string_up_to(256)?,
            arguments: function.require("arguments")?.string()?,
        };
        function.finish()?;
        call.ignore(&["index"]);
        call.finish()?;
        Ok(read)
    };
    at.items(0, MAX_TOOLS)?.into_iter().map(read).collect()
}

/// Functions, and how the model may call them.
#[derive(Debug, Clone, PartialEq)]
pub struct Tools {
    /// As the client spelled them; the chat template shows them to the model. None when `tool_choice` is `none`.
    pub definitions: Vec<Value>,
    pub choice: ToolChoice,
    pub parallel: bool,
}

/// `tools`, `tool_choice` and `parallel_tool_calls`.
pub fn tools(body: &mut Fields) -> Result<Tools, ApiError> {
    let definitions = body.take("tools").map_or(Ok(Vec::new()), |at| {
        at.items(0, MAX_TOOLS)?.into_iter().map(tool).collect()
    })?;
    let parallel = body
        .take("parallel_tool_calls")
        .map_or(Ok(true), At::boolean)?;
    let mut tools = Tools {
        definitions,
        choice: ToolChoice::Auto,
        parallel,
    };
    let Some(choice) = body.take("tool_choice") else {
        return Ok(tools);
    };
    if tools.definitions.is_empty() {
        let message = "Invalid value for 'tool_choice': 'tool_choice' is only allowed when 'tools' are specified.";
        return Err(ApiError::invalid("tool_choice", "invalid_value", message));
    }
    tools.choice = if choice.is_string() {
        match choice.one_of(&["none", "auto", "required"])? {
            "none" => ToolChoice::None,
            "auto" => ToolChoice::Auto,
            _ => ToolChoice::Required,
        }
    } else {
        named(choice, &tools.definitions)?
    };
    if tools.choice == ToolChoice::None {
        tools.definitions.clear();
    }
    Ok(tools)
}

/// The choice of one function.
fn named(at: At, definitions: &[Value]) -> Result<ToolChoice, ApiError> {
    let mut choice = at.object()?;
    choice.require("type")?.one_of(&["function"])?;
    let mut function = choice.require("function")?.object()?;
    let name = function.require("name")?.string_up_to(MAX_NAME_CHARS)?;
    function.finish()?;
    choice.finish()?;
    let is_name = |tool: &Value| tool["function"]["name"] == name.as_str();
    if !definitions.iter().any(is_name) {
        let name = echo(&name);
        let message = format!("Invalid value for 'tool_choice': 'tools' has no function '{name}'.");
        return Err(ApiError::invalid("tool_choice", "invalid_value", message));
    }
    Ok(ToolChoice::Named(name))
}

/// Checks that it is a function with a name; the template gets it as the client spelled it.
fn tool(at: At) -> Result<Value, ApiError> {
    let path = at.path.clone();
    let value = at.value();
    let mut fields = At::new(path, value.clone()).object()?;
    fields.require("type")?.one_of(&["function"])?;
    let mut function = fields.require("function")?.object()?;
    name_of(function.require("name")?)?;
    if let Some(parameters) = function.take("parameters") {
        parameters.object()?;
    }
    function.take("strict").map(At::boolean).transpose()?;
    fields.finish()?;
    Ok(value)
}

/// The name of a function or of a schema.
pub fn name_of(at: At) -> Result<String, ApiError> {
    let path = at.path.clone();
    let name = at.string_up_to(MAX_NAME_CHARS)?;
    let is_of_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if name.is_empty() || !name.chars().all(is_of_name) {
        let message = format!(
            "Invalid '{path}': expected a string that matches the pattern '^[a-zA-Z0-9_-]+$', got '{}'.",
            echo(&name)
        );
        return Err(ApiError::invalid(path, "invalid_value", message));
    }
    Ok(name)
}

fn role_of(name: &str) -> Role {
    let roles = [
        Role::System,
        Role::Developer,
        Role::User,
        Role::Assistant,
        Role::Tool,
        Role::Function,
    ];
    roles
        .into_iter()
        .find(|role| role.as_str() == name)
        .expect("one_of returned a known role — a bug in role_of")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: Value) -> Result<Vec<ChatMessage>, ApiError> {
        messages(At::new("messages", value))
    }

    #[test]
    fn text_parts_become_one_text() {
        let parts = json!([{"role": "user", "name": "bob", "content": [
            {"type": "text", "text": "Hi"}, {"type": "text", "text": " there"}
        ]}]);
        let read = read(parts).unwrap();
        assert_eq!(read[0].content.as_deref(), Some("Hi there"));
        assert_eq!(read[0].name.as_deref(), Some("bob"));
    }

    #[test]
    fn an_assistant_may_call_tools_without_a_word() {
        let read = read(json!([
            {"role": "user", "content": "weather?"},
            {"role": "assistant", "content": null, "refusal": null, "annotations": [], "audio": null,
             "function_call": null, "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "get", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "call_1", "content": "20"}
        ]))
        .unwrap();
        assert_eq!(read[1].content, None);
        assert_eq!(read[1].tool_calls[0].name, "get");
        assert_eq!(read[2].tool_call_id.as_deref(), Some("call_1"));
    }

    #[test]
    fn a_bad_message_is_named_by_its_path() {
        for (value, param, code) in [
            (json!("hi"), "messages", "invalid_type"),
            (json!([]), "messages", "empty_array"),
            (json!(["hi"]), "messages[0]", "invalid_type"),
            (
                json!([{"content": "x"}]),
                "messages[0].role",
                "missing_required_parameter",
            ),
            (
                json!([{"role": "robot", "content": "x"}]),
                "messages[0].role",
                "invalid_value",
            ),
            (
                json!([{"role": "user"}]),
                "messages[0].content",
                "missing_required_parameter",
            ),
            (
                json!([{"role": "user", "content": 5}]),
                "messages[0].content",
                "invalid_type",
            ),
            (
                json!([{"role": "user", "content": "x", "x": 1}]),
                "messages[0].x",
                "unknown_parameter",
            ),
            (
                json!([{"role": "tool", "content": "x"}]),
                "messages[0].tool_call_id",
                "missing_required_parameter",
            ),
            (
                json!([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]),
                "messages[0].content[0].type",
                "unsupported_value",
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

    #[test]
    fn a_tool_choice_is_read_and_none_hides_the_tools() {
        let tool = json!({"type": "function", "function": {"name": "get"}});
        let read = |choice: Value| {
            tools(&mut Fields::root(json!({"tools": [tool], "tool_choice": choice})).unwrap())
        };
        let named = |name: &str| json!({"type": "function", "function": {"name": name}});
        for (choice, expected, n) in [
            (json!(null), ToolChoice::Auto, 1),
            (json!("auto"), ToolChoice::Auto, 1),
            (json!("none"), ToolChoice::None, 0),
            (json!("required"), ToolChoice::Required, 1),
            (named("get"), ToolChoice::Named("get".to_owned()), 1),
        ] {
            let read = read(choice).unwrap();
            assert_eq!((read.choice, read.definitions.len()), (expected, n));
        }
        for choice in [json!("get"), named("other"), json!({"type": "function"})] {
            let error = read(choice.clone()).unwrap_err();
            assert!(
                error.param.as_deref().unwrap().starts_with("tool_choice"),
                "{choice}"
            );
        }
    }

    #[test]
    fn functions_have_names_that_can_be_called() {
        for name in ["", "a b", "größe", "a.b"] {
            let tool = json!([{"type": "function", "function": {"name": name}}]);
            let read = tools(&mut Fields::root(json!({"tools": tool})).unwrap());
            let error = read.unwrap_err();
            assert_eq!(error.param.as_deref(), Some("tools[0].function.name"));
        }
    }
}
