//! One message of a conversation, as OpenAI's training files write it.

use std::fmt;

use domain::generation::{ChatMessage, Role, ToolCall};
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::LineErrorKind as Kind;
use super::judge::MAX_TOOLS;
use super::strict::{ArraySeed, KeySeed, NullableSeed, StringSeed, Trail, ValueSeed, shorten};

/// A message and its `weight`, `None` where the key is absent.
pub(super) struct Message {
    pub(super) message: ChatMessage,
    pub(super) weight: Option<bool>,
}

pub(super) struct MessageSeed<'t>(pub(super) &'t Trail);

impl<'de> DeserializeSeed<'de> for MessageSeed<'_> {
    type Value = Message;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Message, D::Error> {
        deserializer.deserialize_map(self)
    }
}

/// The keys of a message, each at most once; the inner `None` is `null`.
#[derive(Default)]
struct Keys {
    role: Option<String>,
    content: Option<Option<String>>,
    name: Option<Option<String>>,
    weight: Option<Option<bool>>,
    tool_calls: Option<Option<Vec<ToolCall>>>,
    tool_call_id: Option<Option<String>>,
    function_call: Option<Option<ToolCall>>,
    /// `refusal`, `audio`, `annotations`: keys of a response that was saved as it came; they may only be empty.
    empty: [bool; 3],
}

const EMPTY_KEYS: [&str; 3] = ["refusal", "audio", "annotations"];

impl<'de> Visitor<'de> for MessageSeed<'_> {
    type Value = Message;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("a message object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Message, A::Error> {
        let trail = self.0;
        trail.nested(|| {
            let mut keys = Keys::default();
            while let Some(key) = map.next_key_seed(KeySeed(trail))? {
                keys.read(&key, &mut map, trail)?;
            }
            keys.judge(trail)
        })
    }
}

impl Keys {
    fn read<'de, A: MapAccess<'de>>(
        &mut self,
        key: &str,
        map: &mut A,
        trail: &Trail,
    ) -> Result<(), A::Error> {
        match key {
            "role" => once(&mut self.role, "role", StringSeed(trail), map, trail),
            "content" => once(
                &mut self.content,
                "content",
                NullableSeed(ContentSeed(trail)),
                map,
                trail,
            ),
            "name" => once(
                &mut self.name,
                "name",
                NullableSeed(StringSeed(trail)),
                map,
                trail,
            ),
            "weight" => once(
                &mut self.weight,
                "weight",
                NullableSeed(WeightSeed(trail)),
                map,
                trail,
            ),
            "tool_calls" => {
                let seed = || ToolCallSeed(trail);
                let array = ArraySeed {
                    trail,
                    limit: MAX_TOOLS,
                    noun: "tool calls",
                    seed,
                };
                once(
                    &mut self.tool_calls,
                    "tool_calls",
                    NullableSeed(array),
                    map,
                    trail,
                )
            }
            "tool_call_id" => {
                let seed = NullableSeed(StringSeed(trail));
                once(&mut self.tool_call_id, "tool_call_id", seed, map, trail)
            }
            "function_call" => {
                let seed = NullableSeed(FunctionSeed(trail));
                once(&mut self.function_call, "function_call", seed, map, trail)
            }
            _ => self.read_empty(key, map, trail),
        }
    }

    fn read_empty<'de, A: MapAccess<'de>>(
        &mut self,
        key: &str,
        map: &mut A,
        trail: &Trail,
    ) -> Result<(), A::Error> {
        let Some(at) = EMPTY_KEYS.iter().position(|known| *known == key) else {
            let reason = format!("contains an extra \"{}\"", shorten(key));
            return Err(trail.fail(Kind::InvalidValue, reason));
        };
        if std::mem::replace(&mut self.empty[at], true) {
            return Err(trail.duplicate(key));
        }
        let key = EMPTY_KEYS[at];
        match trail.key(key, || map.next_value_seed(ValueSeed(trail)))? {
            Value::Null => Ok(()),
            Value::Array(values) if values.is_empty() => Ok(()),
            _ => Err(trail.fail_at(
                key,
                Kind::Unsupported,
                format!("has a '{key}', which cannot be trained on"),
            )),
        }
    }

    /// Whether the keys make a message together.
    fn judge<E: de::Error>(self, trail: &Trail) -> Result<Message, E> {
        let Some(role) = self.role else {
            let reason = "Discriminator 'role' is missing in value";
            return Err(trail.fail_at("role", Kind::MissingRole, reason));
        };
        let role = parse_role(&role, trail)?;
        let content = self.content.flatten();
        let tool_calls: Vec<ToolCall> = self
            .tool_calls
            .flatten()
            .into_iter()
            .flatten()
            .chain(self.function_call.flatten())
            .collect();
        if role != Role::Assistant {
            if self.weight.is_some() {
                let reason = format!(
                    "has a 'weight', which only an assistant message may have, not a {} one",
                    role.as_str()
                );
                return Err(trail.fail_at("weight", Kind::InvalidWeight, reason));
            }
            if !tool_calls.is_empty() {
                let reason = format!(
                    "has tool calls, which only an assistant message may have, not a {} one",
                    role.as_str()
                );
                return Err(trail.fail_at("tool_calls", Kind::InvalidValue, reason));
            }
        }
        let name = self.name.flatten();
        let tool_call_id = self.tool_call_id.flatten();
        match role {
            Role::Assistant
                if tool_calls.is_empty() && content.as_deref().unwrap_or("").is_empty() =>
            {
                let reason = "is from the assistant but has neither content nor tool calls";
                return Err(trail.fail_at("content", Kind::InvalidValue, reason));
            }
            Role::Assistant => {}
            _ if content.is_none() => {
                return Err(trail.fail_at("content", Kind::InvalidValue, "is missing 'content'"));
            }
            Role::Tool if tool_call_id.is_none() => {
                return Err(trail.fail_at(
                    "tool_call_id",
                    Kind::InvalidValue,
                    "is missing 'tool_call_id'",
                ));
            }
            Role::Function if name.is_none() => {
                return Err(trail.fail_at("name", Kind::InvalidValue, "is missing 'name'"));
            }
            _ => {}
        }
        let message = ChatMessage {
            role,
            content,
            name,
            tool_calls,
            tool_call_id,
        };
        Ok(Message {
            message,
            weight: self.weight.flatten(),
        })
    }
}

fn parse_role<E: de::Error>(role: &str, trail: &Trail) -> Result<Role, E> {
    const ROLES: [Role; 6] = [
        Role::System,
        Role::Developer,
        Role::User,
        Role::Assistant,
        Role::Tool,
        Role::Function,
    ];
    if let Some(known) = ROLES.iter().find(|known| known.as_str() == role) {
        return Ok(*known);
    }
    let known: Vec<String> = ROLES
        .iter()
        .map(|role| format!("'{}'", role.as_str()))
        .collect();
    let reason = format!(
        "Input tag '{}' found using 'role' does not match any of the expected tags: {}",
        shorten(role),
        known.join(", ")
    );
    Err(trail.fail_at("role", Kind::InvalidRole, reason))
}

/// Reads the value of a key that may come once.
pub(super) fn once<'de, A, S>(
    slot: &mut Option<S::Value>,
    key: &'static str,
    seed: S,
    map: &mut A,
    trail: &Trail,
) -> Result<(), A::Error>
where
    A: MapAccess<'de>,
    S: DeserializeSeed<'de>,
{
    if slot.is_some() {
        return Err(trail.duplicate(key));
    }
    *slot = Some(trail.key(key, || map.next_value_seed(seed))?);
    Ok(())
}

/// Text, or an array of text parts, which are joined: a control token split over two parts is one content.
struct ContentSeed<'t>(&'t Trail);

impl<'de> DeserializeSeed<'de> for ContentSeed<'_> {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ContentSeed<'_> {
    type Value = String;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("a string, an array of text parts, or null")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<String, E> {
        StringSeed(self.0).visit_str(text)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<String, A::Error> {
        let trail = self.0;
        let seed = || PartSeed(trail);
        let parts = ArraySeed {
            trail,
            limit: super::judge::MAX_MESSAGES,
            noun: "content parts",
            seed,
        }
        .visit_seq(seq)?;
        if parts.is_empty() {
            return Err(trail.fail(Kind::InvalidValue, "has an empty array as content"));
        }
        Ok(parts.concat())
    }
}

/// `{"type": "text", "text": …}`.
struct PartSeed<'t>(&'t Trail);

impl<'de> DeserializeSeed<'de> for PartSeed<'_> {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for PartSeed<'_> {
    type Value = String;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("a content part object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<String, A::Error> {
        let trail = self.0;
        let (mut kind, mut text, mut extra) = (None, None, None);
        trail.nested(|| {
            while let Some(key) = map.next_key_seed(KeySeed(trail))? {
                match key.as_ref() {
                    "type" => once(&mut kind, "type", StringSeed(trail), &mut map, trail)?,
                    "text" => once(&mut text, "text", StringSeed(trail), &mut map, trail)?,
                    other => {
                        let other = other.to_owned();
                        trail.key(other.clone(), || map.next_value_seed(ValueSeed(trail)))?;
                        extra.get_or_insert(other);
                    }
                }
            }
            match (kind.as_deref(), text.take(), &extra) {
                (Some("text"), Some(text), None) => Ok(text),
                (Some("text"), Some(_), Some(extra)) => {
                    let reason = format!("contains an extra \"{}\" in a text part", shorten(extra));
                    Err(trail.fail(Kind::InvalidValue, reason))
                }
                (Some("text"), None, _) => {
                    Err(trail.fail(Kind::InvalidValue, "is missing 'text' in a text part"))
                }
                (Some(other), _, _) => {
                    let other = shorten(other);
                    let reason = format!(
                        "has a content part of type '{other}'; only 'text' can be trained on"
                    );
                    Err(trail.fail(Kind::Unsupported, reason))
                }
                (None, _, _) => {
                    Err(trail.fail(Kind::InvalidValue, "is missing 'type' in a content part"))
                }
            }
        })
    }
}

/// 0 or 1.
struct WeightSeed<'t>(&'t Trail);

impl<'de> DeserializeSeed<'de> for WeightSeed<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        let trail = self.0;
        match ValueSeed(trail).deserialize(deserializer)? {
            Value::Number(number) if number.as_f64() == Some(0.0) => Ok(false),
            Value::Number(number) if number.as_f64() == Some(1.0) => Ok(true),
            other => {
                let shown = shorten(&other.to_string()).into_owned();
                let reason = format!("has a weight of {shown}; only 0 and 1 are allowed");
                Err(trail.fail(Kind::InvalidWeight, reason))
            }
        }
    }
}

/// `{"id": …, "type": "function", "function": {…}}`.
struct ToolCallSeed<'t>(&'t Trail);

impl<'de> DeserializeSeed<'de> for ToolCallSeed<'_> {
    type Value = ToolCall;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<ToolCall, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for ToolCallSeed<'_> {
    type Value = ToolCall;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("a tool call object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<ToolCall, A::Error> {
        let trail = self.0;
        let (mut id, mut kind, mut function) = (None, None, None);
        trail.nested(|| {
            while let Some(key) = map.next_key_seed(KeySeed(trail))? {
                match key.as_ref() {
                    "id" => once(&mut id, "id", StringSeed(trail), &mut map, trail)?,
                    "type" => once(&mut kind, "type", StringSeed(trail), &mut map, trail)?,
                    "function" => {
                        once(
                            &mut function,
                            "function",
                            FunctionSeed(trail),
                            &mut map,
                            trail,
                        )?;
                    }
                    other => {
                        let reason =
                            format!("contains an extra \"{}\" in a tool call", shorten(other));
                        return Err(trail.fail(Kind::InvalidValue, reason));
                    }
                }
            }
            if let Some(kind) = kind.filter(|kind| kind != "function") {
                let reason = format!(
                    "has a tool call of type '{}'; only 'function' is known",
                    shorten(&kind)
                );
                return Err(trail.fail_at("type", Kind::Unsupported, reason));
            }
            let Some(function) = function.take() else {
                return Err(trail.fail_at(
                    "function",
                    Kind::InvalidValue,
                    "is missing 'function' in a tool call",
                ));
            };
            let Some(id) = id.take() else {
                return Err(trail.fail_at(
                    "id",
                    Kind::InvalidValue,
                    "is missing 'id' in a tool call",
                ));
            };
            Ok(ToolCall { id, ..function })
        })
    }
}

/// `{"name": …, "arguments": …}`, as a tool call without an id.
struct FunctionSeed<'t>(&'t Trail);

impl<'de> DeserializeSeed<'de> for FunctionSeed<'_> {
    type Value = ToolCall;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<ToolCall, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for FunctionSeed<'_> {
    type Value = ToolCall;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("an object with 'name' and 'arguments'")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<ToolCall, A::Error> {
        let trail = self.0;
        let (mut name, mut arguments) = (None, None);
        trail.nested(|| {
            while let Some(key) = map.next_key_seed(KeySeed(trail))? {
                match key.as_ref() {
                    "name" => once(&mut name, "name", StringSeed(trail), &mut map, trail)?,
                    "arguments" => {
                        once(
                            &mut arguments,
                            "arguments",
                            StringSeed(trail),
                            &mut map,
                            trail,
                        )?;
                    }
                    other => {
                        let reason = format!(
                            "contains an extra \"{}\" in a function call",
                            shorten(other)
                        );
                        return Err(trail.fail(Kind::InvalidValue, reason));
                    }
                }
            }
            let Some(name) = name.take() else {
                return Err(trail.fail_at(
                    "name",
                    Kind::InvalidValue,
                    "is missing 'name' in a function call",
                ));
            };
            let Some(arguments) = arguments.take() else {
                let reason = "is missing 'arguments' in a function call";
                return Err(trail.fail_at("arguments", Kind::InvalidValue, reason));
            };
            Ok(ToolCall {
                id: String::new(),
                name,
                arguments,
            })
        })
    }
}
