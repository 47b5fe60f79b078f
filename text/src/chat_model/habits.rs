//! How a template wants to be given what it could be given in two ways: found by letting it write both.

use domain::generation::{ChatMessage, Role, ToolCall};

use super::ChatModel;
use super::rendering::Rendering;

/// How a template wants to be given what it could be given in two ways.
#[derive(Debug, Clone, Copy)]
pub(super) struct Habits {
    /// It writes a system message.
    pub takes_system: bool,
    pub calls: CallHabits,
}

/// How a template wants to be given calls; the default is what most do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct CallHabits {
    /// It adds arguments to its text as they are, and not an object.
    pub text_arguments: bool,
    /// A turn that says nothing beside its calls has no content, and not an empty one.
    pub null_content: bool,
}

impl Default for Habits {
    fn default() -> Self {
        Self {
            takes_system: true,
            calls: CallHabits::default(),
        }
    }
}

impl ChatModel {
    /// Whether the template writes what a system message says.
    pub(super) fn takes_system(&self) -> bool {
        *self.takes_system.get_or_init(|| {
            let messages = [
                ChatMessage::new(Role::System, "first-words"),
                ChatMessage::new(Role::User, "question"),
            ];
            let text = self.prompt_text(&messages, None);
            text.is_ok_and(|text| text.contains("first-words"))
        })
    }

    /// The first way in which the template writes a call at all.
    pub(super) fn call_habits(&self) -> CallHabits {
        *self.call_habits.get_or_init(|| {
            let call = ToolCall {
                id: "a1b2c3d4e".to_owned(),
                name: "first-function".to_owned(),
                arguments: r#"{"key": "first-value"}"#.to_owned(),
            };
            let calling = ChatMessage {
                tool_calls: vec![call],
                ..ChatMessage::new(Role::Assistant, "")
            };
            let messages = [ChatMessage::new(Role::User, "question"), calling];
            let template = self.tool_template.as_ref().unwrap_or(&self.template);
            let writes = |calls: &CallHabits| {
                let habits = Habits {
                    calls: *calls,
                    ..Habits::default()
                };
                let control = self.tokenizer.control();
                let rendering = Rendering::new(template, control, &messages, &[], habits);
                let text = rendering.until(messages.len()).unwrap_or_default();
                text.contains("first-function") && text.contains("first-value")
            };
            let mut all = [false, true].into_iter().flat_map(|null_content| {
                [false, true].map(|text_arguments| CallHabits {
                    text_arguments,
                    null_content,
                })
            });
            all.find(writes).unwrap_or_default()
        })
    }
}
