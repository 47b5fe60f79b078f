//! JSON read strictly: a key given twice is an error, nesting and NUL are bounded, and every error knows its JSON
//! pointer. It knows nothing of messages.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::LineErrorKind;

/// How deep objects and arrays may nest in one row, the row itself included. JSON schemas of real tools stay below 20.
pub const MAX_DEPTH: usize = 32;

/// Where the parser is in a row, and what it found wrong there.
#[derive(Default)]
pub(super) struct Trail {
    steps: RefCell<Vec<Step>>,
    problem: RefCell<Option<(LineErrorKind, String)>>,
    depth: Cell<usize>,
}

enum Step {
    Key(Cow<'static, str>),
    Index(usize),
}

impl Trail {
    /// Notes the problem (the first one stays) and makes the error that unwinds the parser.
    pub(super) fn fail<E: de::Error>(&self, kind: LineErrorKind, reason: impl Into<String>) -> E {
        let mut problem = self.problem.borrow_mut();
        if problem.is_none() {
            *problem = Some((kind, reason.into()));
        }
        E::custom("refused")
    }

    /// As [`Trail::fail`], one step further down.
    pub(super) fn fail_at<E: de::Error>(
        &self,
        key: &'static str,
        kind: LineErrorKind,
        reason: impl Into<String>,
    ) -> E {
        self.steps.borrow_mut().push(Step::Key(Cow::Borrowed(key)));
        self.fail(kind, reason)
    }

    pub(super) fn take_problem(&self) -> Option<(LineErrorKind, String)> {
        self.problem.borrow_mut().take()
    }

    /// Runs `read` one step down. The step stays on the trail if it fails, for the pointer.
    pub(super) fn key<T, E>(
        &self,
        key: impl Into<Cow<'static, str>>,
        read: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        self.step(Step::Key(key.into()), read)
    }

    pub(super) fn index<T, E>(
        &self,
        index: usize,
        read: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        self.step(Step::Index(index), read)
    }

    fn step<T, E>(&self, step: Step, read: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        self.steps.borrow_mut().push(step);
        let value = read()?;
        self.steps.borrow_mut().pop();
        Ok(value)
    }

    /// Runs `read` inside one more object or array.
    pub(super) fn nested<T, E: de::Error>(
        &self,
        read: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        if self.depth.get() == MAX_DEPTH {
            return Err(self.fail(
                LineErrorKind::TooDeep,
                format!("nests deeper than {MAX_DEPTH} levels"),
            ));
        }
        self.depth.set(self.depth.get() + 1);
        let value = read()?;
        self.depth.set(self.depth.get() - 1);
        Ok(value)
    }

    pub(super) fn duplicate<E: de::Error>(&self, key: &str) -> E {
        self.fail(
            LineErrorKind::DuplicateKey,
            format!("has the key '{}' twice", shorten(key)),
        )
    }

    pub(super) fn no_nul<E: de::Error>(&self, text: &str) -> Result<(), E> {
        if text.as_bytes().contains(&0) {
            return Err(self.fail(LineErrorKind::Nul, "contains a NUL character"));
        }
        Ok(())
    }

    /// Where the parser is, as a JSON pointer (RFC 6901).
    pub(super) fn pointer(&self) -> String {
        let mut pointer = String::new();
        for step in self.steps.borrow().iter() {
            pointer.push('/');
            match step {
                Step::Key(key) => {
                    pointer.push_str(&shorten(key).replace('~', "~0").replace('/', "~1"));
                }
                Step::Index(index) => pointer.push_str(&index.to_string()),
            }
        }
        pointer
    }
}

/// At most 64 characters of text that came from a file, for a message.
pub(super) fn shorten(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(64) {
        Some((end, _)) => Cow::Owned(format!("{}…", &text[..end])),
        None => Cow::Borrowed(text),
    }
}

/// An object's key.
pub(super) struct KeySeed<'t>(pub(super) &'t Trail);

impl<'de> DeserializeSeed<'de> for KeySeed<'_> {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for KeySeed<'_> {
    type Value = Cow<'de, str>;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("a key")
    }

    fn visit_borrowed_str<E: de::Error>(self, key: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(key))
    }

    fn visit_str<E: de::Error>(self, key: &str) -> Result<Self::Value, E> {
        self.0.no_nul(key)?;
        Ok(Cow::Owned(key.to_owned()))
    }
}

/// A string, or null where `nullable`.
pub(super) struct StringSeed<'t>(pub(super) &'t Trail);

impl<'de> DeserializeSeed<'de> for StringSeed<'_> {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for StringSeed<'_> {
    type Value = String;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("a string")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<String, E> {
        self.0.no_nul(text)?;
        Ok(text.to_owned())
    }
}

/// `null`, or what `S` reads.
pub(super) struct NullableSeed<S>(pub(super) S);

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for NullableSeed<S> {
    type Value = Option<S::Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_option(self)
    }
}

impl<'de, S: DeserializeSeed<'de>> Visitor<'de> for NullableSeed<S> {
    type Value = Option<S::Value>;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("a value or null")
    }

    fn visit_none<E: de::Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        self.0.deserialize(deserializer).map(Some)
    }
}

/// An array whose elements `seed` reads, at most `limit` of them.
pub(super) struct ArraySeed<'t, F> {
    pub(super) trail: &'t Trail,
    pub(super) limit: usize,
    /// What one element is called, plural.
    pub(super) noun: &'static str,
    /// Makes the seed of each element.
    pub(super) seed: F,
}

impl<'de, S: DeserializeSeed<'de>, F: Fn() -> S> DeserializeSeed<'de> for ArraySeed<'_, F> {
    type Value = Vec<S::Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de, S: DeserializeSeed<'de>, F: Fn() -> S> Visitor<'de> for ArraySeed<'_, F> {
    type Value = Vec<S::Value>;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        write!(formatter, "an array of {}", self.noun)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        self.trail.nested(|| {
            let mut values = Vec::new();
            loop {
                let index = values.len();
                let value = self
                    .trail
                    .index(index, || seq.next_element_seed((self.seed)()))?;
                let Some(value) = value else {
                    return Ok(values);
                };
                if index == self.limit {
                    let reason = format!("has more than {} {}", self.limit, self.noun);
                    return Err(self.trail.fail(LineErrorKind::TooLarge, reason));
                }
                values.push(value);
            }
        })
    }
}

/// Any JSON value.
pub(super) struct ValueSeed<'t>(pub(super) &'t Trail);

impl<'de> DeserializeSeed<'de> for ValueSeed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ValueSeed<'_> {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Value, E> {
        self.0.no_nul(text)?;
        Ok(Value::String(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Value, A::Error> {
        let trail = self.0;
        let values = ArraySeed {
            trail,
            limit: usize::MAX,
            noun: "values",
            seed: || ValueSeed(trail),
        };
        values.visit_seq(seq).map(Value::Array)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let trail = self.0;
        trail.nested(|| {
            let mut values = Map::new();
            while let Some(key) = map.next_key_seed(KeySeed(trail))? {
                let key = key.into_owned();
                if values.contains_key(&key) {
                    return Err(trail.duplicate(&key));
                }
                let value = trail.key(key.clone(), || map.next_value_seed(ValueSeed(trail)))?;
                values.insert(key, value);
            }
            Ok(Value::Object(values))
        })
    }
}
