//! One conversation, ready to be rendered whole or up to some message.

use domain::generation::{ChatMessage, Role, ToolCall};
use minijinja::value::{Serde, Value as TemplateValue};
use serde_json::{Map, Value, json};

use super::RenderError;
use super::habits::{CallHabits, Habits};
use crate::chat_template::{ChatTemplate, Conversation, TemplateError};
use crate::control::{ControlTokens, unused_char};
use crate::tools::told::{Untold, call_text, told};

/// A template may write this much besides four times what it was given. Bytes.
const TEMPLATE_ALLOWANCE_BYTES: usize = 64 << 10;

pub(super) struct Rendering<'m> {
    template: &'m ChatTemplate,
    /// As the template sees them, control tokens in them broken by `mark`.
    pub(super) messages: Vec<Value>,
    tools: Vec<Value>,
    untold: Untold,
    habits: Habits,
    mark: char,
    /// A second private-use character, to find a message again in the output.
    pub(super) pin: char,
    max_bytes: usize,
}

impl<'m> Rendering<'m> {
    pub(super) fn new(
        template: &'m ChatTemplate,
        control: &ControlTokens,
        messages: &[ChatMessage],
        tools: &[Value],
        habits: Habits,
    ) -> Self {
        let to_json = |message| to_json(message, template, habits.calls);
        let messages: Vec<Value> = messages.iter().map(to_json).collect();
        let tools = tools.to_vec();
        let mut texts = vec![template.source().to_owned()];
        texts.extend(messages.iter().chain(&tools).map(ToString::to_string));
        let n_given_bytes: usize = texts[1..].iter().map(String::len).sum();
        let mark = unused_char(texts.iter().map(String::as_str));
        texts.push(mark.to_string());
        let pin = unused_char(texts.iter().map(String::as_str));
        let guard = |value: &Value| control.mark_json(value, mark);
        let messages = messages
            .iter()
            .map(|message| guard_message(message, &guard))
            .collect();
        let tools = tools.iter().map(guard).collect();
        let max_bytes = 4 * n_given_bytes + TEMPLATE_ALLOWANCE_BYTES;
        Self {
            template,
            messages,
            tools,
            untold: Untold::by(template),
            habits,
            mark,
            pin,
            max_bytes,
        }
    }

    pub(super) fn mark(&self) -> char {
        self.mark
    }

    pub(super) fn unmarked(&self, text: &str) -> String {
        text.replace(self.mark, "")
    }

    /// The first `n` messages and the generation prompt.
    pub(super) fn prompt(&self, n: usize) -> Result<String, RenderError> {
        Ok(self.render(&self.messages[..n], true)?)
    }

    /// The first `n` messages.
    pub(super) fn until(&self, n: usize) -> Result<String, RenderError> {
        Ok(self.render(&self.messages[..n], false)?)
    }

    pub(super) fn render(
        &self,
        messages: &[Value],
        add_generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        let told = told(messages, &self.tools, self.untold, self.habits.takes_system);
        let messages: Vec<TemplateValue> = told
            .iter()
            .map(|message| TemplateValue::from(Serde(message)))
            .collect();
        let tools = if self.tools.is_empty() {
            TemplateValue::from(())
        } else {
            TemplateValue::from(Serde(&self.tools))
        };
        let conversation = Conversation {
            messages: &messages,
            tools: &tools,
            add_generation_prompt,
        };
        self.template.render(&conversation, self.max_bytes)
    }
}

/// A message in the form that templates read.
fn to_json(message: &ChatMessage, template: &ChatTemplate, habits: CallHabits) -> Value {
    let role = match message.role {
        // OpenAI's newer name for a system message, which few templates know; some would drop it silently
        Role::Developer if !template.mentions("developer") => Role::System,
        Role::Function => Role::Tool,
        other => other,
    };
    let mut content = message.content.clone().unwrap_or_default();
    let mut map = Map::new();
    map.insert("role".to_owned(), role.as_str().into());
    let knows_calls = template.mentions("tool_calls");
    if !knows_calls {
        // such a template would train an empty answer
        for call in &message.tool_calls {
            content.push_str(if content.is_empty() { "" } else { "\n" });
            content.push_str(&call_text(call));
        }
    }
    let says_nothing = content.is_empty() && !message.tool_calls.is_empty();
    let content = (!(says_nothing && habits.null_content)).then_some(content);
    map.insert("content".to_owned(), content.into());
    if let Some(name) = &message.name {
        map.insert("name".to_owned(), name.clone().into());
    }
    if !message.tool_calls.is_empty() && knows_calls {
        let calls = message.tool_calls.iter();
        let calls = calls.map(|call| call_json(call, habits)).collect();
        map.insert("tool_calls".to_owned(), Value::Array(calls));
    }
    if let Some(id) = &message.tool_call_id {
        map.insert("tool_call_id".to_owned(), id.clone().into());
    }
    Value::Object(map)
}

/// Most templates want the arguments as an object; text that is none stays text.
fn call_json(call: &ToolCall, habits: CallHabits) -> Value {
    let arguments = match serde_json::from_str(&call.arguments) {
        Ok(Value::Object(arguments)) if !habits.text_arguments => Value::Object(arguments),
        _ => Value::String(call.arguments.clone()),
    };
    json!({
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": arguments},
    })
}

/// Guards everything but the role, which is one of six words and part of the template's own text.
fn guard_message(message: &Value, guard: &impl Fn(&Value) -> Value) -> Value {
    let mut guarded = message.clone();
    if let Value::Object(map) = &mut guarded {
        for (key, value) in map.iter_mut().filter(|(key, _)| *key != "role") {
            *value = match (key.as_str(), &*value) {
                ("tool_calls", Value::Array(calls)) => {
                    calls.iter().map(|call| guard_call(call, guard)).collect()
                }
                (_, value) => guard(value),
            };
        }
    }
    guarded
}

/// The keys of a call are ours; what they hold is not.
fn guard_call(call: &Value, guard: &impl Fn(&Value) -> Value) -> Value {
    json!({
        "id": guard(&call["id"]),
        "type": "function",
        "function": {
            "name": guard(&call["function"]["name"]),
            "arguments": guard(&call["function"]["arguments"]),
        },
    })
}
