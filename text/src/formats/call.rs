//! What an assistant calls: tools, and the deprecated functions.

use std::fmt;

use domain::generation::ToolCall;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, Visitor};

use super::LineErrorKind as Kind;
use super::message::once;
use super::strict::{KeySeed, StringSeed, Trail, shorten};

/// `{"id": …, "type": "function", "function": {…}}`.
pub(super) struct ToolCallSeed<'t>(pub(super) &'t Trail);

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
pub(super) struct FunctionSeed<'t>(pub(super) &'t Trail);

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
