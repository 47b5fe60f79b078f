//! Rows of one question and one answer, each a text under its own key, with the turns before them as `history`.
//! Source: the README of LLaMA-Factory's `data` for alpaca, ms-swift's "Custom dataset" for query and response.

use std::borrow::Cow;
use std::fmt;

use domain::generation::Role;
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::super::judge::{MAX_MESSAGES, missing};
use super::super::message::{Message, once};
use super::super::row::{Parsed, RowKeys};
use super::super::strict::{ArraySeed, NullableSeed, StringSeed, Trail};
use super::super::{LineErrorKind as Kind, RowFormat};
use super::foreign::Foreign;
use super::tools::ToolsSeed;
use super::{Told, answer, message};

/// The keys of a format.
pub(super) struct Names {
    question: &'static str,
    /// What the question is about: written below it.
    about: Option<&'static str>,
    answer: &'static str,
    /// The better answer of a pair, and the worse one.
    chosen: &'static str,
    rejected: &'static str,
}

pub(super) const ALPACA: Names = Names {
    question: "instruction",
    about: Some("input"),
    answer: "output",
    chosen: "chosen",
    rejected: "rejected",
};

pub(super) const QUERY_RESPONSE: Names = Names {
    question: "query",
    about: None,
    answer: "response",
    chosen: "response",
    rejected: "rejected_response",
};

/// A text that may be `null`.
type Text = Option<Option<String>>;

/// The keys of a row, each at most once.
pub(super) struct Keys {
    names: &'static Names,
    question: Text,
    about: Text,
    answer: Text,
    /// Where that is another key than `answer`.
    chosen: Text,
    rejected: Text,
    system: Text,
    history: Option<Option<Vec<[String; 2]>>>,
    tools: Option<Vec<Value>>,
    foreign: Foreign,
}

impl<'de> RowKeys<'de> for Keys {
    fn parsed<E: de::Error>(self, format: RowFormat, trail: &Trail) -> Result<Parsed, E> {
        self.told(format, trail)?.judge(format, trail)
    }

    fn read<A: MapAccess<'de>>(
        &mut self,
        key: Cow<'de, str>,
        map: &mut A,
        trail: &Trail,
    ) -> Result<(), A::Error> {
        let (names, text) = (self.names, || NullableSeed(StringSeed(trail)));
        let key = key.as_ref();
        let texts = [
            (Some(names.question), &mut self.question),
            (names.about, &mut self.about),
            (Some(names.answer), &mut self.answer),
            (Some(names.chosen), &mut self.chosen),
            (Some(names.rejected), &mut self.rejected),
            (Some("system"), &mut self.system),
        ];
        for (name, slot) in texts {
            if let Some(name) = name.filter(|name| *name == key) {
                return once(slot, name, text(), map, trail);
            }
        }
        match key {
            "history" => {
                let seed = || TurnSeed(trail);
                let turns = ArraySeed {
                    trail,
                    limit: MAX_MESSAGES,
                    noun: "turns",
                    seed,
                };
                once(
                    &mut self.history,
                    "history",
                    NullableSeed(turns),
                    map,
                    trail,
                )
            }
            "tools" => once(&mut self.tools, "tools", ToolsSeed(trail), map, trail),
            _ => self.foreign.read(key, map, trail),
        }
    }
}

impl Keys {
    /// None yet.
    pub(super) fn of(names: &'static Names) -> Self {
        Self {
            names,
            question: None,
            about: None,
            answer: None,
            chosen: None,
            rejected: None,
            system: None,
            history: None,
            tools: None,
            foreign: Foreign::default(),
        }
    }

    fn told<E: de::Error>(self, expected: RowFormat, trail: &Trail) -> Result<Told, E> {
        let names = self.names;
        let Some(question) = self.question.flatten() else {
            return Err(missing(names.question, trail));
        };
        let mut messages = Vec::new();
        let system = self.system.flatten().filter(|text| !text.is_empty());
        messages.extend(system.map(|text| message(Role::System, text)));
        for [asked, answered] in self.history.flatten().unwrap_or_default() {
            messages.push(message(Role::User, asked));
            messages.push(message(Role::Assistant, answered));
        }
        let about = self.about.flatten().unwrap_or_default();
        messages.push(message(Role::User, joined(question, &about)));

        let rejected = self.rejected.flatten();
        let chosen = match names.chosen == names.answer {
            true => self.answer.clone().flatten(),
            false => self.chosen.flatten(),
        };
        let is_pair = rejected.is_some() || (names.chosen != names.answer && chosen.is_some());
        let (place, label) = ("", self.foreign.label());
        let tools = self.tools.unwrap_or_default();
        if !is_pair {
            // Of a file of pairs, what it lacks is to be named.
            let is_answered = self.answer.as_ref().is_some_and(Option::is_some);
            if expected == RowFormat::Preference && !is_answered {
                return Err(missing(names.chosen, trail));
            }
            let Some(text) = self.answer.flatten() else {
                return Err(missing(names.answer, trail));
            };
            messages.push(Message {
                message: answer(names.answer, text, trail)?,
                weight: None,
            });
            return Ok(Told {
                messages,
                tools,
                answers: None,
                label,
                place,
            });
        }
        let side = |key: &'static str, text: Option<String>| match text {
            Some(text) => answer(key, text, trail),
            None => Err(missing(key, trail)),
        };
        let answers = [side(names.chosen, chosen)?, side(names.rejected, rejected)?];
        Ok(Told {
            messages,
            tools,
            answers: Some(answers),
            label,
            place,
        })
    }
}

/// The question and what it is about, below each other where neither is empty.
fn joined(question: String, about: &str) -> String {
    if question.is_empty() || about.is_empty() {
        return question + about;
    }
    question + "\n" + about
}

/// A question and its answer.
struct TurnSeed<'t>(&'t Trail);

impl<'de> DeserializeSeed<'de> for TurnSeed<'_> {
    type Value = [String; 2];

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for TurnSeed<'_> {
    type Value = [String; 2];

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("an array of a question and its answer")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
        let trail = self.0;
        let texts = ArraySeed {
            trail,
            limit: 2,
            noun: "texts, a question and its answer,",
            seed: || StringSeed(trail),
        };
        let texts = texts.visit_seq(seq)?;
        let Ok(turn) = <[String; 2]>::try_from(texts) else {
            let reason = "has a turn that is not a question and its answer";
            return Err(trail.fail(Kind::InvalidValue, reason));
        };
        if turn[1].is_empty() {
            let reason = "has a turn with an empty answer: there is nothing to train on";
            return trail.index(1, || Err(trail.fail(Kind::NothingToTrain, reason)));
        }
        Ok(turn)
    }
}
