//! The functions of a response, flat where a chat's are nested.

use domain::generation::ToolChoice;
use serde_json::{Value, json};

use super::chat_messages::{MAX_TOOLS, Tools, name_of};
use super::decode::{At, Fields, echo};
use crate::error::ApiError;

/// The functions of a request and the choice among them, and both as its response shows them.
pub struct ToolRequest {
    pub tools: Tools,
    pub shown: Vec<Value>,
    pub shown_choice: Value,
}

/// `tools`, `tool_choice` and `parallel_tool_calls`.
pub fn tools(body: &mut Fields) -> Result<ToolRequest, ApiError> {
    let read = body.take("tools").map_or(Ok(Vec::new()), |at| {
        let tools = at.items(0, MAX_TOOLS)?.into_iter();
        tools.map(function).collect::<Result<Vec<_>, _>>()
    })?;
    let (mut definitions, shown): (Vec<Value>, Vec<Value>) = read.into_iter().unzip();
    let parallel = body
        .take("parallel_tool_calls")
        .map_or(Ok(true), At::boolean)?;
    let shown_choice = match body.get("tool_choice") {
        None | Some(Value::Null) => json!("auto"),
        Some(choice) => choice.clone(),
    };
    let choice = match body.take("tool_choice") {
        None => ToolChoice::Auto,
        Some(at) => choice(at, &shown)?,
    };
    if choice == ToolChoice::None {
        definitions.clear();
    }
    let tools = Tools {
        definitions,
        choice,
        parallel,
    };
    Ok(ToolRequest {
        tools,
        shown,
        shown_choice,
    })
}

/// A function as chat templates know it, and as it is shown.
fn function(at: At) -> Result<(Value, Value), ApiError> {
    let mut fields = at.object()?;
    only_functions(fields.require("type")?)?;
    let name = name_of(fields.require("name")?)?;
    let description = fields.take("description").map(At::string).transpose()?;
    let parameters = fields.take("parameters").map(At::json_object).transpose()?;
    let strict = fields.take("strict").map_or(Ok(false), At::boolean)?;
    fields.finish()?;
    let mut function = json!({"name": name});
    let mut shown =
        json!({"type": "function", "name": name, "parameters": parameters, "strict": strict});
    if let Some(description) = description {
        function["description"] = json!(description);
        shown["description"] = json!(description);
    }
    if let Some(parameters) = parameters {
        function["parameters"] = parameters;
    }
    function["strict"] = json!(strict);
    Ok((json!({"type": "function", "function": function}), shown))
}

fn choice(at: At, tools: &[Value]) -> Result<ToolChoice, ApiError> {
    let choice = if at.is_string() {
        match at.one_of(&["none", "auto", "required"])? {
            "none" => return Ok(ToolChoice::None),
            "auto" => return Ok(ToolChoice::Auto),
            _ => ToolChoice::Required,
        }
    } else {
        let mut fields = at.object()?;
        only_functions(fields.require("type")?)?;
        let name = fields.require("name")?.string()?;
        fields.finish()?;
        ToolChoice::Named(name)
    };
    let is_there = match &choice {
        ToolChoice::Named(name) => tools.iter().any(|tool| tool["name"] == name.as_str()),
        _ => !tools.is_empty(),
    };
    if !is_there {
        let message = "Invalid value for 'tool_choice': 'tools' has no such function.";
        return Err(ApiError::invalid("tool_choice", "invalid_value", message));
    }
    Ok(choice)
}

fn only_functions(at: At) -> Result<(), ApiError> {
    let path = at.path.clone();
    let kind = at.string()?;
    if kind == "function" {
        return Ok(());
    }
    let message = format!(
        "Unsupported value: '{path}' does not support '{}' with this service: models call functions of the client only.",
        echo(&kind)
    );
    Err(ApiError::unsupported(path, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: Value) -> Result<ToolRequest, ApiError> {
        tools(&mut Fields::root(body).unwrap())
    }

    #[test]
    fn a_flat_function_is_told_as_chat_templates_know_it() {
        let schema = json!({"type": "object"});
        let flat = json!({"type": "function", "name": "get", "parameters": schema, "strict": true});
        let named = json!({"type": "function", "name": "get"});
        let nested = json!({"type": "function", "function": {"name": "get", "parameters": schema, "strict": true}});
        let all = read(json!({"tools": [flat], "tool_choice": named})).unwrap();
        assert_eq!(all.tools.definitions, [nested]);
        assert_eq!(all.tools.choice, ToolChoice::Named("get".to_owned()));
        assert_eq!((all.shown, all.shown_choice), (vec![flat], named));
    }

    #[test]
    fn what_is_absent_is_shown_and_none_hides_the_tools() {
        let bare = json!({"type": "function", "name": "get", "parameters": null, "strict": false});
        let told = json!({"type": "function", "name": "get", "description": "d"});
        let none = read(json!({"tools": [told], "tool_choice": "none"})).unwrap();
        assert_eq!(none.tools.definitions, Vec::<Value>::new());
        let mut shown = bare;
        shown["description"] = json!("d");
        assert_eq!(none.shown, [shown]);
        let empty = read(json!({"tool_choice": null})).unwrap();
        assert_eq!(
            (empty.tools.choice, empty.shown_choice),
            (ToolChoice::Auto, json!("auto"))
        );
        assert!(empty.tools.parallel);
    }

    #[test]
    fn what_cannot_be_called_is_refused_by_its_path() {
        let get = json!({"type": "function", "name": "get"});
        for (body, param, code) in [
            (
                json!({"tools": [{"type": "web_search"}]}),
                "tools[0].type",
                "unsupported_value",
            ),
            (
                json!({"tools": [{"type": "function", "function": {"name": "get"}}]}),
                "tools[0].name",
                "missing_required_parameter",
            ),
            (
                json!({"tools": [{"type": "function", "name": "a b"}]}),
                "tools[0].name",
                "invalid_value",
            ),
            (
                json!({"tools": [get], "tool_choice": {"type": "file_search"}}),
                "tool_choice.type",
                "unsupported_value",
            ),
            (
                json!({"tools": [get], "tool_choice": {"type": "function", "name": "put"}}),
                "tool_choice",
                "invalid_value",
            ),
            (
                json!({"tool_choice": "required"}),
                "tool_choice",
                "invalid_value",
            ),
            (
                json!({"tools": [get], "tool_choice": "any"}),
                "tool_choice",
                "invalid_value",
            ),
        ] {
            let error = read(body.clone()).err().unwrap();
            assert_eq!(
                (error.param.as_deref(), error.code),
                (Some(param), Some(code)),
                "{body}"
            );
        }
    }
}
