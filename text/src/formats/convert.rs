//! Rows as other tools write them, read into OpenAI's: the same messages, so that they are rendered, counted and trained as
//! those. Errors point into the row as it was written.

mod columns;
mod foreign;
mod sharegpt;
mod tools;

use domain::generation::{ChatMessage, Role};
use domain::x_training::DataFormat;
use serde::de::{self, DeserializeSeed, Deserializer};
use serde_json::Value;

use self::foreign::Label;
use super::judge::{LABEL, conversation, judged, missing, no_boolean};
use super::message::Message;
use super::row::{Parsed, RowSeed};
use super::strict::Trail;
use super::{LineErrorKind as Kind, PreferenceExample, RowFormat, TrainingExample};

/// Reads a row that is written in one of the formats of [`DataFormat`] which OpenAI does not know.
pub(super) fn read<'de, D: Deserializer<'de>>(
    deserializer: D,
    written: DataFormat,
    format: RowFormat,
    trail: &Trail,
) -> Result<Parsed, D::Error> {
    match written {
        DataFormat::ShareGpt => {
            let keys = sharegpt::Keys::default();
            let seed = RowSeed {
                trail,
                format,
                keys,
            };
            seed.deserialize(deserializer)
        }
        _ => {
            let keys = columns::Keys::of(match written {
                DataFormat::QueryResponse => &columns::QUERY_RESPONSE,
                _ => &columns::ALPACA,
            });
            let seed = RowSeed {
                trail,
                format,
                keys,
            };
            seed.deserialize(deserializer)
        }
    }
}

/// What a row says, whichever format it is written in.
struct Told {
    messages: Vec<Message>,
    tools: Vec<Value>,
    /// A better and a worse answer to what the messages ask.
    answers: Option<[ChatMessage; 2]>,
    label: Option<Label>,
    /// JSON pointer to where the conversation stands.
    place: &'static str,
}

impl Told {
    /// Whether that is an example of what is expected. What has a worse answer is a pair; what lacks one is a conversation, whose answer
    /// may have been judged.
    fn judge<E: de::Error>(self, expected: RowFormat, trail: &Trail) -> Result<Parsed, E> {
        let is_good = self.label.and_then(|label| label.is_good);
        let found = match (&self.answers, is_good) {
            (Some(_), _) => RowFormat::Preference,
            (None, Some(_)) => RowFormat::UnpairedPreference,
            (None, None) => RowFormat::Chat,
        };
        if (expected, found) == (RowFormat::UnpairedPreference, RowFormat::Chat) {
            return Err(match self.label {
                Some(label) => no_boolean(label.key, trail),
                None => missing(LABEL, trail),
            });
        }
        if found != expected {
            let (method, wanted) = (found.method(), expected.method());
            let reason = match method == wanted {
                true => format!("needs {}", found.training()),
                false => {
                    format!("is of method '{method}', but one of method '{wanted}' is expected")
                }
            };
            return Err(trail.fail(Kind::WrongFormat(found), reason));
        }
        let example = match self.answers {
            Some([preferred, non_preferred]) => TrainingExample::Preference(PreferenceExample {
                messages: self.messages.into_iter().map(|m| m.message).collect(),
                tools: self.tools,
                parallel_tool_calls: None,
                preferred,
                non_preferred,
            }),
            None => {
                let read = || -> Result<TrainingExample, E> {
                    let chat = conversation(self.messages, self.tools, trail)?;
                    Ok(match is_good {
                        Some(label) => TrainingExample::Unpaired(judged(chat, label, trail)?),
                        None => TrainingExample::Chat(chat),
                    })
                };
                match self.place.strip_prefix('/') {
                    Some(list) => trail.key(list, read)?,
                    None => read()?,
                }
            }
        };
        Ok(Parsed {
            example,
            place: self.place,
        })
    }
}

/// A message whose `weight` nobody gave.
fn message(role: Role, content: String) -> Message {
    Message {
        message: ChatMessage {
            role,
            content: Some(content),
            name: None,
            tool_calls: Vec::new(),
            tool_call_id: None,
        },
        weight: None,
    }
}

/// What the model is to say. Errors: it is empty.
fn answer<E: de::Error>(
    key: &'static str,
    content: String,
    trail: &Trail,
) -> Result<ChatMessage, E> {
    if content.is_empty() {
        let reason = format!("has an empty '{key}': there is nothing to train on");
        return Err(trail.fail_at(key, Kind::NothingToTrain, reason));
    }
    Ok(message(Role::Assistant, content).message)
}
