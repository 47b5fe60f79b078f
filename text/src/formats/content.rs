//! The content of a message: text, or parts of text.

use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use super::LineErrorKind as Kind;
use super::judge::MAX_MESSAGES;
use super::message::once;
use super::strict::{ArraySeed, KeySeed, StringSeed, Trail, ValueSeed, shorten};

/// Text, or an array of text parts, which are joined: a control token split over two parts is one content.
pub(super) struct ContentSeed<'t>(pub(super) &'t Trail);

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
            limit: MAX_MESSAGES,
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
