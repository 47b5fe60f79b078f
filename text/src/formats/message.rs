//! One message of a conversation, as OpenAI's training files write it.

use std::fmt;

use domain::generation::{ChatMessage, Role, ToolCall};
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, Visitor};
use serde_json::Value;

use super::LineErrorKind as Kind;
use super::call::{FunctionSeed, ToolCallSeed};
use super::content::ContentSeed;
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
        let calls = self.tool_calls.flatten().into_iter().flatten();
        let weight = self.weight.flatten();
        let message = ChatMessage {
            role,
            content: self.content.flatten(),
            name: self.name.flatten(),
            tool_calls: calls.chain(self.function_call.flatten()).collect(),
            tool_call_id: self.tool_call_id.flatten(),
        };
        if role == Role::Assistant {
            check_assistant(&message, trail)?;
        } else {
            check_other(&message, weight, trail)?;
        }
        Ok(Message { message, weight })
    }
}

fn check_assistant<E: de::Error>(message: &ChatMessage, trail: &Trail) -> Result<(), E> {
    let is_silent = message.content.as_deref().unwrap_or("").is_empty();
    if is_silent && message.tool_calls.is_empty() {
        let reason = "is from the assistant but has neither content nor tool calls";
        return Err(trail.fail_at("content", Kind::InvalidValue, reason));
    }
    Ok(())
}

fn check_other<E: de::Error>(
    message: &ChatMessage,
    weight: Option<bool>,
    trail: &Trail,
) -> Result<(), E> {
    let role = message.role;
    let only_assistant = |what: &str| {
        format!(
            "has {what}, which only an assistant message may have, not a {} one",
            role.as_str()
        )
    };
    if weight.is_some() {
        return Err(trail.fail_at("weight", Kind::InvalidWeight, only_assistant("a 'weight'")));
    }
    if !message.tool_calls.is_empty() {
        return Err(trail.fail_at(
            "tool_calls",
            Kind::InvalidValue,
            only_assistant("tool calls"),
        ));
    }
    let required = [
        ("content", message.content.is_some()),
        (
            "tool_call_id",
            role != Role::Tool || message.tool_call_id.is_some(),
        ),
        ("name", role != Role::Function || message.name.is_some()),
    ];
    match required.iter().find(|(_, is_given)| !is_given) {
        Some((key, _)) => {
            Err(trail.fail_at(key, Kind::InvalidValue, format!("is missing '{key}'")))
        }
        None => Ok(()),
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

/// 0 or 1.
pub(super) struct WeightSeed<'t>(pub(super) &'t Trail);

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
