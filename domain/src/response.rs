//! Responses: turns of a conversation as OpenAI's newer API has them, in items.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::generation::{ChatMessage, Role, TokenLogprob, ToolCall};
use crate::id::{ProjectId, ResponseId};
use crate::time::Timestamp;
use crate::usage::TokenUsage;

/// One turn: what was asked of it and what came.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Response {
    pub id: ResponseId,
    pub created_at: Timestamp,
    pub request: ResponseRequest,
    pub status: ResponseStatus,
    pub output: Vec<Item>,
    /// Known at the end.
    pub usage: Option<TokenUsage>,
}

/// What of a request its response shows again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ResponseRequest {
    /// As asked for.
    pub model: String,
    pub instructions: Option<String>,
    pub previous_response_id: Option<ResponseId>,
    pub max_output_tokens: Option<u32>,
    pub temperature: f64,
    pub top_p: f64,
    pub top_logprobs: u32,
    /// In OpenAI's JSON, like the choice and the format below.
    pub tools: Vec<Value>,
    pub tool_choice: Value,
    pub parallel_tool_calls: bool,
    pub text_format: Value,
    /// In the client's order.
    pub metadata: Vec<(String, String)>,
    pub store: bool,
}

/// How far a response is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum ResponseStatus {
    InProgress,
    Completed {
        at: Timestamp,
    },
    /// There was no room for more.
    Incomplete,
    Failed {
        message: String,
    },
}

/// A response that is kept, with the whole conversation it answers.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredResponse {
    pub project_id: ProjectId,
    pub response: Response,
    /// Earlier turns first.
    pub input: Vec<Item>,
}

/// One thing of a conversation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Item {
    pub id: String,
    pub status: ItemStatus,
    pub content: ItemContent,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ItemStatus {
    InProgress,
    Completed,
    Incomplete,
}

/// What an item is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ItemContent {
    Message {
        role: Role,
        parts: Vec<TextPart>,
    },
    FunctionCall {
        call_id: String,
        name: String,
        /// JSON text, as the model wrote it.
        arguments: String,
    },
    FunctionCallOutput {
        call_id: String,
        output: String,
    },
}

/// A piece of a message.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TextPart {
    pub text: String,
    /// Of the model's own words, if they were asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logprobs: Vec<TokenLogprob>,
}

/// A call and what came of it do not stand together. OpenAI's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unpaired {
    #[error("No tool call found for function call output with call_id {0}.")]
    Output(String),
    #[error("No tool output found for function call {0}.")]
    Call(String),
}

impl Item {
    /// The `place`th item that a request brings, from 0.
    pub fn of_input(response: &ResponseId, place: usize, content: ItemContent) -> Self {
        Self {
            id: content.id(response, &format!("in{place}")),
            status: ItemStatus::Completed,
            content,
        }
    }

    /// The `place`th item that a response makes, from 0.
    pub fn of_output(response: &ResponseId, place: usize, content: ItemContent) -> Self {
        Self {
            id: content.id(response, &place.to_string()),
            status: ItemStatus::InProgress,
            content,
        }
    }
}

impl ItemContent {
    fn id(&self, response: &ResponseId, place: &str) -> String {
        let prefix = match self {
            Self::Message { .. } => "msg_",
            Self::FunctionCall { .. } => "fc_",
            Self::FunctionCallOutput { .. } => "fco_",
        };
        let response = response.as_str().trim_start_matches(ResponseId::PREFIX);
        format!("{prefix}{response}_{place}")
    }
}

/// The conversation as models are given it: what the assistant says and calls in one turn is one message.
pub fn messages(items: &[Item]) -> Result<Vec<ChatMessage>, Unpaired> {
    let mut messages: Vec<ChatMessage> = Vec::new();
    let mut open: Vec<&str> = Vec::new();
    for item in items {
        match &item.content {
            ItemContent::Message { role, parts } => {
                let text: String = parts.iter().map(|part| part.text.as_str()).collect();
                match messages.last_mut() {
                    Some(last) if *role == Role::Assistant && is_silent(last) => {
                        last.content = Some(text);
                    }
                    _ => messages.push(ChatMessage::new(*role, &text)),
                }
            }
            ItemContent::FunctionCall {
                call_id,
                name,
                arguments,
            } => {
                open.push(call_id);
                calling(&mut messages).tool_calls.push(ToolCall {
                    id: call_id.clone(),
                    name: name.clone(),
                    arguments: arguments.clone(),
                });
            }
            ItemContent::FunctionCallOutput { call_id, output } => {
                let call = open.iter().position(|id| id == call_id);
                open.swap_remove(call.ok_or_else(|| Unpaired::Output(call_id.clone()))?);
                messages.push(ChatMessage {
                    tool_call_id: Some(call_id.clone()),
                    ..ChatMessage::new(Role::Tool, output)
                });
            }
        }
    }
    match open.first() {
        Some(call) => Err(Unpaired::Call((*call).to_owned())),
        None => Ok(messages),
    }
}

fn is_silent(message: &ChatMessage) -> bool {
    message.role == Role::Assistant && message.content.is_none()
}

/// The assistant's message that the next call belongs to.
fn calling(messages: &mut Vec<ChatMessage>) -> &mut ChatMessage {
    if messages
        .last()
        .is_none_or(|last| last.role != Role::Assistant)
    {
        messages.push(ChatMessage {
            content: None,
            ..ChatMessage::new(Role::Assistant, "")
        });
    }
    messages
        .last_mut()
        .expect("one was pushed if there was none")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(role: Role, text: &str) -> ItemContent {
        let part = TextPart {
            text: text.to_owned(),
            logprobs: Vec::new(),
        };
        ItemContent::Message {
            role,
            parts: vec![part.clone(), part],
        }
    }

    fn call(id: &str) -> ItemContent {
        ItemContent::FunctionCall {
            call_id: id.to_owned(),
            name: "get".to_owned(),
            arguments: "{}".to_owned(),
        }
    }

    fn output(id: &str) -> ItemContent {
        ItemContent::FunctionCallOutput {
            call_id: id.to_owned(),
            output: "20".to_owned(),
        }
    }

    fn read(contents: Vec<ItemContent>) -> Result<Vec<ChatMessage>, Unpaired> {
        let response = ResponseId::mint([0; 24]);
        let item = |(i, content)| Item::of_input(&response, i, content);
        let items: Vec<Item> = contents.into_iter().enumerate().map(item).collect();
        messages(&items)
    }

    #[test]
    fn what_the_assistant_says_and_calls_in_one_turn_is_one_message() {
        let (a, b) = (call("a"), call("b"));
        for turn in [
            vec![said(Role::Assistant, "x"), a.clone(), b.clone()],
            vec![a.clone(), said(Role::Assistant, "x"), b.clone()],
        ] {
            let mut contents = vec![said(Role::User, "hi")];
            contents.extend(turn);
            contents.extend([output("b"), output("a"), said(Role::Assistant, "y")]);
            let messages = read(contents).unwrap();
            let shown: Vec<_> = messages
                .iter()
                .map(|m| (m.role, m.content.as_deref(), m.tool_calls.len()))
                .collect();
            let expected = [
                (Role::User, Some("hihi"), 0),
                (Role::Assistant, Some("xx"), 2),
                (Role::Tool, Some("20"), 0),
                (Role::Tool, Some("20"), 0),
                (Role::Assistant, Some("yy"), 0),
            ];
            assert_eq!(shown, expected);
            assert_eq!(messages[2].tool_call_id.as_deref(), Some("b"));
        }
    }

    #[test]
    fn two_turns_of_the_assistant_stay_two() {
        let messages = read(vec![said(Role::Assistant, "x"), said(Role::Assistant, "y")]);
        assert_eq!(messages.unwrap().len(), 2);
        let messages = read(vec![call("a"), output("a"), call("b"), output("b")]);
        assert_eq!(messages.unwrap().len(), 4);
    }

    #[test]
    fn a_call_and_its_output_stand_together() {
        for (contents, expected) in [
            (vec![call("a")], Unpaired::Call("a".to_owned())),
            (vec![output("a")], Unpaired::Output("a".to_owned())),
            (
                vec![call("a"), output("a"), output("a")],
                Unpaired::Output("a".to_owned()),
            ),
            (
                vec![output("a"), call("a")],
                Unpaired::Output("a".to_owned()),
            ),
        ] {
            assert_eq!(read(contents), Err(expected));
        }
    }

    #[test]
    fn the_items_of_a_response_have_ids_of_their_own() {
        let response = ResponseId::mint([0; 24]);
        let id = |item: Item| item.id;
        let zeros = "0".repeat(24);
        assert_eq!(
            id(Item::of_input(&response, 0, said(Role::User, "x"))),
            format!("msg_{zeros}_in0")
        );
        assert_eq!(
            id(Item::of_output(&response, 1, call("a"))),
            format!("fc_{zeros}_1")
        );
        assert_eq!(
            id(Item::of_input(&response, 2, output("a"))),
            format!("fco_{zeros}_in2")
        );
    }
}
