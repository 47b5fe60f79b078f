//! One row: its top-level keys, whichever format they belong to.

use std::borrow::Cow;
use std::fmt;

use domain::x_training::DataFormat;
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, Visitor};
use serde_json::{Map, Value};

use super::judge::{MAX_MESSAGES, MAX_TOOLS, judge};
use super::message::{Message, MessageSeed, once};
use super::sniff::looks_like;
use super::strict::{ArraySeed, KeySeed, NullableSeed, StringSeed, Trail, ValueSeed};
use super::{Expected, LineErrorKind as Kind, RowError, RowFormat, TrainingExample, convert};

/// A row that was read.
pub(crate) struct Parsed {
    pub(crate) example: TrainingExample,
    /// JSON pointer to what it says.
    pub(crate) place: &'static str,
}

/// Parses one line of a file that should hold rows as `expected`.
/// Errors: the first thing that is wrong, with its JSON pointer into the line.
pub fn parse_row(line: &str, expected: impl Into<Expected>) -> Result<TrainingExample, RowError> {
    parse(line, expected.into()).map(|parsed| parsed.example)
}

/// As [`parse_row`].
pub(crate) fn parse(
    line: &str,
    Expected { format, written }: Expected,
) -> Result<Parsed, RowError> {
    let trail = Trail::default();
    let mut deserializer = serde_json::Deserializer::from_str(line);
    let parsed = match written {
        DataFormat::Chat | DataFormat::PromptCompletion => {
            let seed = RowSeed {
                trail: &trail,
                format,
                keys: Keys::default(),
            };
            seed.deserialize(&mut deserializer)
        }
        _ => convert::read(&mut deserializer, written, format, &trail),
    };
    let parsed = parsed.and_then(|parsed| deserializer.end().map(|()| parsed));
    parsed.map_err(|error| match looks_like(line) {
        Some(found) if would_help(found, written, format) => written_as(found, written),
        _ => row_error(&error, &trail, line),
    })
}

/// Whether another name of the format would read the row. ShareGPT's turns may be spelt as chat messages are, and answers that are compared
/// are not written as completions.
fn would_help(found: DataFormat, written: DataFormat, format: RowFormat) -> bool {
    let is_chat_turn = (written, found) == (DataFormat::ShareGpt, DataFormat::Chat);
    let is_compared = format.method() == "dpo" && found == DataFormat::PromptCompletion;
    found != written && !is_chat_turn && !is_compared
}

fn written_as(found: DataFormat, expected: DataFormat) -> RowError {
    let (found_name, expected) = (found.as_str(), expected.as_str());
    RowError {
        byte_offset: 0,
        pointer: String::new(),
        reason: format!(
            "looks like {found_name}, not like {expected}; set x_training.data.format to \"{found_name}\""
        ),
        kind: Kind::WrittenAs(found),
    }
}

/// Which of the three: a problem we named, JSON of the wrong type, or no JSON at all.
fn row_error(error: &serde_json::Error, trail: &Trail, line: &str) -> RowError {
    let byte_offset = error.column().saturating_sub(1).min(line.len()) as u64;
    let pointer = trail.pointer();
    if let Some((kind, reason)) = trail.take_problem() {
        return RowError {
            byte_offset,
            pointer,
            reason,
            kind,
        };
    }
    // serde_json ends its text with a place in the line, which only confuses beside the place in the file
    let text = error.to_string();
    let text = text
        .rsplit_once(" at line ")
        .map_or(text.as_str(), |(text, _)| text);
    if !error.is_data() {
        let reason = format!(
            "cannot be parsed. Error: line contains invalid json: {text}: column {}",
            error.column()
        );
        return RowError {
            byte_offset,
            pointer,
            reason,
            kind: Kind::InvalidJson,
        };
    }
    if pointer.is_empty() {
        let reason = format!("is not a JSON object: {text}");
        return RowError {
            byte_offset,
            pointer,
            reason,
            kind: Kind::UnexpectedFormat,
        };
    }
    let reason = format!("has a wrong type at {pointer}: {text}");
    RowError {
        byte_offset,
        pointer,
        reason,
        kind: Kind::InvalidValue,
    }
}

/// The top-level keys of a row, each at most once; the inner `None` is `null`.
#[derive(Default)]
pub(super) struct Keys {
    pub(super) messages: Option<Vec<Message>>,
    pub(super) tools: Option<Option<Vec<Value>>>,
    pub(super) functions: Option<Option<Vec<Value>>>,
    pub(super) parallel_tool_calls: Option<Option<bool>>,
    pub(super) input: Option<Input>,
    pub(super) preferred: Option<Vec<Message>>,
    pub(super) non_preferred: Option<Vec<Message>>,
    pub(super) prompt: Option<String>,
    pub(super) completion: Option<String>,
    /// Keys of no format, in the file's order.
    pub(super) extra: Map<String, Value>,
}

/// The `input` of a preference row.
#[derive(Default)]
pub(super) struct Input {
    pub(super) messages: Option<Vec<Message>>,
    pub(super) tools: Option<Option<Vec<Value>>>,
    pub(super) parallel_tool_calls: Option<Option<bool>>,
}

/// The keys of a row as one format knows them, each at most once.
pub(super) trait RowKeys<'de>: Sized {
    fn read<A: MapAccess<'de>>(
        &mut self,
        key: Cow<'de, str>,
        map: &mut A,
        trail: &Trail,
    ) -> Result<(), A::Error>;

    /// What the row says. Errors: it says nothing, or nothing of `format`.
    fn parsed<E: de::Error>(self, format: RowFormat, trail: &Trail) -> Result<Parsed, E>;
}

/// Reads a row key by key.
pub(super) struct RowSeed<'t, K> {
    pub(super) trail: &'t Trail,
    pub(super) format: RowFormat,
    pub(super) keys: K,
}

impl<'de, K: RowKeys<'de>> DeserializeSeed<'de> for RowSeed<'_, K> {
    type Value = Parsed;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Parsed, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, K: RowKeys<'de>> Visitor<'de> for RowSeed<'_, K> {
    type Value = Parsed;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Parsed, A::Error> {
        let Self {
            trail,
            format,
            mut keys,
        } = self;
        trail.nested(|| {
            while let Some(key) = map.next_key_seed(KeySeed(trail))? {
                keys.read(key, &mut map, trail)?;
            }
            keys.parsed(format, trail)
        })
    }
}

impl<'de> RowKeys<'de> for Keys {
    fn parsed<E: de::Error>(self, format: RowFormat, trail: &Trail) -> Result<Parsed, E> {
        let example = judge(self, format, trail)?;
        let place = match &example {
            TrainingExample::Chat(_)
            | TrainingExample::Unpaired(_)
            | TrainingExample::Reinforcement(_) => "/messages",
            TrainingExample::Preference(_) => "/input/messages",
            TrainingExample::Completion { .. } => "/completion",
        };
        Ok(Parsed { example, place })
    }

    fn read<A: MapAccess<'de>>(
        &mut self,
        key: Cow<'de, str>,
        map: &mut A,
        trail: &Trail,
    ) -> Result<(), A::Error> {
        match key.as_ref() {
            "messages" => once(&mut self.messages, "messages", messages(trail), map, trail),
            "tools" => once(&mut self.tools, "tools", tools(trail), map, trail),
            "functions" => once(&mut self.functions, "functions", tools(trail), map, trail),
            "parallel_tool_calls" => {
                let seed = std::marker::PhantomData;
                once(
                    &mut self.parallel_tool_calls,
                    "parallel_tool_calls",
                    seed,
                    map,
                    trail,
                )
            }
            "input" => once(&mut self.input, "input", InputSeed(trail), map, trail),
            // the names of the specification of April 2025 are taken too
            "preferred_output" => once(
                &mut self.preferred,
                "preferred_output",
                messages(trail),
                map,
                trail,
            ),
            "preferred_completion" => once(
                &mut self.preferred,
                "preferred_completion",
                messages(trail),
                map,
                trail,
            ),
            "non_preferred_output" => once(
                &mut self.non_preferred,
                "non_preferred_output",
                messages(trail),
                map,
                trail,
            ),
            "non_preferred_completion" => {
                let slot = &mut self.non_preferred;
                once(
                    slot,
                    "non_preferred_completion",
                    messages(trail),
                    map,
                    trail,
                )
            }
            "prompt" => once(&mut self.prompt, "prompt", StringSeed(trail), map, trail),
            "completion" => once(
                &mut self.completion,
                "completion",
                StringSeed(trail),
                map,
                trail,
            ),
            _ => self.read_extra(key.into_owned(), map, trail),
        }
    }
}

impl Keys {
    fn read_extra<'de, A: MapAccess<'de>>(
        &mut self,
        key: String,
        map: &mut A,
        trail: &Trail,
    ) -> Result<(), A::Error> {
        if self.extra.contains_key(&key) {
            return Err(trail.duplicate(&key));
        }
        let value = trail.key(key.clone(), || map.next_value_seed(ValueSeed(trail)))?;
        self.extra.insert(key, value);
        Ok(())
    }
}

fn messages<'de>(trail: &Trail) -> impl DeserializeSeed<'de, Value = Vec<Message>> {
    let seed = move || MessageSeed(trail);
    ArraySeed {
        trail,
        limit: MAX_MESSAGES,
        noun: "messages",
        seed,
    }
}

fn tools<'de>(trail: &Trail) -> impl DeserializeSeed<'de, Value = Option<Vec<Value>>> {
    let seed = move || ValueSeed(trail);
    NullableSeed(ArraySeed {
        trail,
        limit: MAX_TOOLS,
        noun: "tools",
        seed,
    })
}

struct InputSeed<'t>(&'t Trail);

impl<'de> DeserializeSeed<'de> for InputSeed<'_> {
    type Value = Input;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Input, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for InputSeed<'_> {
    type Value = Input;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("an object with 'messages'")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Input, A::Error> {
        let trail = self.0;
        trail.nested(|| {
            let mut input = Input::default();
            while let Some(key) = map.next_key_seed(KeySeed(trail))? {
                match key.as_ref() {
                    "messages" => {
                        once(
                            &mut input.messages,
                            "messages",
                            messages(trail),
                            &mut map,
                            trail,
                        )?;
                    }
                    "tools" => once(&mut input.tools, "tools", tools(trail), &mut map, trail)?,
                    "parallel_tool_calls" => {
                        let slot = &mut input.parallel_tool_calls;
                        let seed = std::marker::PhantomData;
                        once(slot, "parallel_tool_calls", seed, &mut map, trail)?;
                    }
                    other => {
                        let other = super::strict::shorten(other);
                        let reason = format!("contains an extra \"{other}\" in 'input'");
                        return Err(trail.fail(Kind::ExtraKey, reason));
                    }
                }
            }
            Ok(input)
        })
    }
}
