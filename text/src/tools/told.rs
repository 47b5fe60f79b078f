//! Tools for templates that know none: a form is described to the model in words, and its calls and their answers are text.

use domain::generation::ToolCall;
use serde_json::{Map, Value};

use crate::chat_template::ChatTemplate;

/// What a template leaves to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Untold {
    /// The functions that may be called.
    pub tools: bool,
    /// The answers of functions.
    pub answers: bool,
}

impl Untold {
    pub fn by(template: &ChatTemplate) -> Self {
        Self {
            tools: !template.mentions("tools"),
            answers: !template.mentions("tool"),
        }
    }
}

/// A call as text.
pub(crate) fn call_text(call: &ToolCall) -> String {
    let name = Value::String(call.name.clone());
    format!(
        "<tool_call>\n{{\"name\": {name}, \"arguments\": {}}}\n</tool_call>",
        call.arguments
    )
}

/// The messages with the tools in the first one (a system message, if the template takes such), and with what functions answered
/// as what the user says next.
pub(crate) fn told(
    messages: &[Value],
    tools: &[Value],
    untold: Untold,
    takes_system: bool,
) -> Vec<Value> {
    let mut told: Vec<Value> = Vec::new();
    let mut follows_answer = false;
    for message in messages {
        let is_answer = untold.answers && message["role"] == "tool";
        let content = message["content"].as_str().unwrap_or_default();
        let mut message = message.clone();
        if is_answer {
            let text = format!("<tool_response>\n{content}\n</tool_response>");
            if let Some(last) = told.last_mut().filter(|_| follows_answer) {
                let before = last["content"].as_str().unwrap_or_default();
                last["content"] = Value::String(format!("{before}\n{text}"));
                continue;
            }
            message = said("user", text);
        }
        follows_answer = is_answer;
        told.push(message);
    }
    if untold.tools && !tools.is_empty() {
        tell(&mut told, &description(tools), takes_system);
    }
    told
}

fn tell(messages: &mut Vec<Value>, description: &str, takes_system: bool) {
    let role = if takes_system { "system" } else { "user" };
    match messages.first_mut().filter(|first| first["role"] == role) {
        Some(first) => {
            let content = first["content"].as_str().unwrap_or_default();
            first["content"] = Value::String(if takes_system {
                format!("{content}\n\n{description}")
            } else {
                format!("{description}\n\n{content}")
            });
        }
        None => messages.insert(0, said(role, description.to_owned())),
    }
}

fn description(tools: &[Value]) -> String {
    let tools: Vec<String> = tools.iter().map(ToString::to_string).collect();
    format!(
        "You can call these functions, one JSON description a line:\n<tools>\n{}\n</tools>\nTo call a function, write its name and \
         arguments as JSON like this, once for each call, and end your turn:\n<tool_call>\n{{\"name\": \"the name\", \
         \"arguments\": {{\"an argument\": \"its value\"}}}}\n</tool_call>\nIts answer follows as <tool_response>.",
        tools.join("\n")
    )
}

fn said(role: &str, content: String) -> Value {
    let pairs = [("role", role.to_owned()), ("content", content)];
    let pairs = pairs.map(|(key, value)| (key.to_owned(), Value::String(value)));
    Value::Object(pairs.into_iter().collect::<Map<_, _>>())
}
