//! Conversations as lists of turns: `{"from": "human", "value": …}` of ShareGPT, the same with `role` and `content`, and
//! `{"human": …, "assistant": …}`. Source: the README of LLaMA-Factory's `data`; ms-swift's "Custom dataset".

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use domain::generation::{ChatMessage, Role};
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::super::content::ContentSeed;
use super::super::judge::{MAX_MESSAGES, missing};
use super::super::message::{Message, WeightSeed, once};
use super::super::row::{Parsed, RowKeys};
use super::super::strict::{ArraySeed, KeySeed, NullableSeed, StringSeed, Trail, shorten};
use super::super::{LineErrorKind as Kind, RowFormat};
use super::foreign::Foreign;
use super::tools::{Calls, ToolsSeed};
use super::{Told, message};

/// What the list of turns is called, and the pointer to it.
const LISTS: [(&str, &str); 3] = [
    ("conversations", "/conversations"),
    ("conversation", "/conversation"),
    ("messages", "/messages"),
];

/// The keys of a row, each at most once.
#[derive(Default)]
pub(super) struct Keys {
    turns: Option<Vec<Vec<Message>>>,
    place: &'static str,
    system: Option<Option<String>>,
    tools: Option<Vec<Value>>,
    chosen: Option<Option<ChatMessage>>,
    rejected: Option<Option<ChatMessage>>,
    foreign: Foreign,
}

impl<'de> RowKeys<'de> for Keys {
    fn parsed<E: de::Error>(self, format: RowFormat, trail: &Trail) -> Result<Parsed, E> {
        self.told(trail)?.judge(format, trail)
    }

    fn read<A: MapAccess<'de>>(
        &mut self,
        key: Cow<'de, str>,
        map: &mut A,
        trail: &Trail,
    ) -> Result<(), A::Error> {
        let key = key.as_ref();
        if let Some((key, place)) = LISTS.iter().find(|(name, _)| *name == key) {
            self.place = place;
            let calls = Calls::default();
            let seed = || TurnSeed {
                trail,
                calls: &calls,
            };
            let turns = ArraySeed {
                trail,
                limit: MAX_MESSAGES,
                noun: "turns",
                seed,
            };
            return once(&mut self.turns, key, turns, map, trail);
        }
        match key {
            "system" => {
                let seed = NullableSeed(StringSeed(trail));
                once(&mut self.system, "system", seed, map, trail)
            }
            "tools" => once(&mut self.tools, "tools", ToolsSeed(trail), map, trail),
            "chosen" => once(&mut self.chosen, "chosen", AnswerSeed(trail), map, trail),
            "rejected" => once(
                &mut self.rejected,
                "rejected",
                AnswerSeed(trail),
                map,
                trail,
            ),
            _ => self.foreign.read(key, map, trail),
        }
    }
}

impl Keys {
    fn told<E: de::Error>(self, trail: &Trail) -> Result<Told, E> {
        let Some(turns) = self.turns else {
            return Err(missing(LISTS[0].0, trail));
        };
        if turns.is_empty() {
            let list = self.place.trim_start_matches('/');
            return Err(trail.fail_at(list, Kind::InvalidValue, "has no turns"));
        }
        let mut messages: Vec<Message> = turns.into_iter().flatten().collect();
        if let Some(system) = self.system.flatten().filter(|text| !text.is_empty()) {
            if messages[0].message.role == Role::System {
                let reason = "has a 'system' beside a conversation that begins with one";
                return Err(trail.fail_at("system", Kind::InvalidValue, reason));
            }
            messages.insert(0, message(Role::System, system));
        }
        let answers = match (self.chosen.flatten(), self.rejected.flatten()) {
            (Some(chosen), Some(rejected)) => Some([chosen, rejected]),
            (None, None) => None,
            (None, Some(_)) => return Err(missing("chosen", trail)),
            (Some(_), None) => return Err(missing("rejected", trail)),
        };
        let has_answer = messages
            .last()
            .is_some_and(|last| last.message.role == Role::Assistant);
        if answers.is_some() && has_answer {
            let list = self.place.trim_start_matches('/');
            let reason = "ends with an answer beside 'chosen' and 'rejected'; leave it out";
            return Err(trail.fail_at(list, Kind::InvalidValue, reason));
        }
        Ok(Told {
            messages,
            tools: self.tools.unwrap_or_default(),
            answers,
            label: self.foreign.label(),
            place: self.place,
        })
    }
}

/// One turn: a message, or a question and its answer.
struct TurnSeed<'t> {
    trail: &'t Trail,
    calls: &'t Calls,
}

/// The keys of a turn, each at most once.
#[derive(Default)]
struct Turn {
    who: Option<String>,
    said: Option<Option<String>>,
    /// What `who` and `said` are called here.
    keys: [Option<&'static str>; 2],
    human: Option<String>,
    assistant: Option<String>,
    weight: Option<Option<bool>>,
    loss: Option<Option<bool>>,
    foreign: Foreign,
}

impl<'de> DeserializeSeed<'de> for TurnSeed<'_> {
    type Value = Vec<Message>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<Message>, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for TurnSeed<'_> {
    type Value = Vec<Message>;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("a turn, an object with 'from' and 'value'")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vec<Message>, A::Error> {
        let trail = self.trail;
        trail.nested(|| {
            let mut turn = Turn::default();
            while let Some(key) = map.next_key_seed(KeySeed(trail))? {
                turn.read(&key, &mut map, trail)?;
            }
            turn.messages(self.calls, trail)
        })
    }
}

impl Turn {
    fn read<'de, A: MapAccess<'de>>(
        &mut self,
        key: &str,
        map: &mut A,
        trail: &Trail,
    ) -> Result<(), A::Error> {
        let text = || StringSeed(trail);
        for (name, place) in [("from", 0), ("role", 0), ("value", 1), ("content", 1)] {
            if name != key {
                continue;
            }
            self.keys[place] = Some(name);
            let said = NullableSeed(ContentSeed(trail));
            return match place {
                0 => once(&mut self.who, name, text(), map, trail),
                _ => once(&mut self.said, name, said, map, trail),
            };
        }
        match key {
            "human" => once(&mut self.human, "human", text(), map, trail),
            "assistant" => once(&mut self.assistant, "assistant", text(), map, trail),
            "weight" => {
                let seed = NullableSeed(WeightSeed(trail));
                once(&mut self.weight, "weight", seed, map, trail)
            }
            "loss" => once(&mut self.loss, "loss", PhantomData, map, trail),
            "tool_calls" | "function_call" => {
                let reason = format!(
                    "has '{key}', which only the format \"chat\" knows; here a call is a turn from 'function_call'"
                );
                Err(trail.fail(Kind::InvalidValue, reason))
            }
            _ => self.foreign.read(key, map, trail),
        }
    }

    fn messages<E: de::Error>(mut self, calls: &Calls, trail: &Trail) -> Result<Vec<Message>, E> {
        if let Some(label) = self.foreign.label().filter(|label| label.is_good.is_some()) {
            let key = label.key;
            let reason = format!("has a '{key}', which stands beside the conversation");
            return Err(trail.fail_at(key, Kind::Unsupported, reason));
        }
        let weight = self.weight(trail)?;
        if self.human.is_some() || self.assistant.is_some() {
            return self.question_and_answer(weight, trail);
        }
        let Some(who) = self.who.take() else {
            return Err(trail.fail_at("from", Kind::UnknownSpeaker, "is missing 'from'"));
        };
        let speaker = Speaker::parse(&who, self.keys[0].unwrap_or("from"), trail)?;
        let key = self.keys[1].unwrap_or("value");
        let Some(said) = self.said.take().flatten() else {
            return Err(trail.fail_at(key, Kind::InvalidValue, format!("is missing '{key}'")));
        };
        let is_answer = matches!(speaker, Speaker::Assistant | Speaker::Call);
        // Some files say of every turn whether it counts: that of a question is 0.
        if weight == Some(true) && !is_answer {
            let reason = "has a 'weight', which only an answer may have";
            return Err(trail.fail_at("weight", Kind::InvalidWeight, reason));
        }
        let mut turn = match speaker {
            Speaker::Human => message(Role::User, said),
            Speaker::System => message(Role::System, said),
            Speaker::Assistant => Message {
                message: super::answer(key, said, trail)?,
                weight: None,
            },
            Speaker::Call => {
                let mut turn = message(Role::Assistant, String::new());
                turn.message.content = None;
                turn.message.tool_calls = trail.key(key, || calls.written(&said, trail))?;
                turn
            }
            Speaker::Function => {
                let mut turn = message(Role::Tool, said);
                let Some(id) = calls.answered() else {
                    let reason = "is what a function answers, but no function was called";
                    return Err(trail.fail(Kind::InvalidValue, reason));
                };
                turn.message.tool_call_id = Some(id);
                turn
            }
        };
        turn.weight = weight;
        Ok(vec![turn])
    }

    /// `weight`, or `loss` as another word for it.
    fn weight<E: de::Error>(&self, trail: &Trail) -> Result<Option<bool>, E> {
        match (self.weight.flatten(), self.loss.flatten()) {
            (Some(weight), Some(loss)) if weight != loss => {
                let reason = "has a 'loss' that contradicts its 'weight'";
                Err(trail.fail_at("loss", Kind::InvalidWeight, reason))
            }
            (weight, loss) => Ok(weight.or(loss)),
        }
    }

    fn question_and_answer<E: de::Error>(
        self,
        weight: Option<bool>,
        trail: &Trail,
    ) -> Result<Vec<Message>, E> {
        if self.who.is_some() || self.said.is_some() {
            let reason = "has 'human' or 'assistant' beside 'from' or 'value'";
            return Err(trail.fail(Kind::InvalidValue, reason));
        }
        let (Some(asked), Some(answered)) = (self.human, self.assistant) else {
            let reason = "has to have both 'human' and 'assistant'";
            return Err(trail.fail(Kind::InvalidValue, reason));
        };
        let answer = Message {
            message: super::answer("assistant", answered, trail)?,
            weight,
        };
        Ok(vec![message(Role::User, asked), answer])
    }
}

/// Whose turn it is.
#[derive(Clone, Copy)]
enum Speaker {
    Human,
    Assistant,
    System,
    /// The assistant, who calls functions.
    Call,
    /// What a function answered.
    Function,
}

/// The names in use, the usual one of each speaker first.
const SPEAKERS: [(Speaker, &[&str]); 5] = [
    (Speaker::Human, &["human", "user"]),
    (
        Speaker::Assistant,
        &["gpt", "assistant", "chatgpt", "bing", "bard", "model"],
    ),
    (Speaker::System, &["system", "developer"]),
    (Speaker::Call, &["function_call", "tool_call"]),
    (
        Speaker::Function,
        &["observation", "tool", "tool_response", "function_response"],
    ),
];

impl Speaker {
    fn parse<E: de::Error>(who: &str, key: &'static str, trail: &Trail) -> Result<Self, E> {
        let found = SPEAKERS.iter().find(|(_, names)| names.contains(&who));
        found.map(|(speaker, _)| *speaker).ok_or_else(|| {
            let usual: Vec<String> = SPEAKERS
                .iter()
                .map(|(_, n)| format!("'{}'", n[0]))
                .collect();
            let reason = format!(
                "is from '{}', who is not known; there are {}",
                shorten(who),
                usual.join(", ")
            );
            trail.fail_at(key, Kind::UnknownSpeaker, reason)
        })
    }
}

/// One side of a pair: a turn of the assistant, alone in a list or not, or its text.
struct AnswerSeed<'t>(&'t Trail);

impl<'de> DeserializeSeed<'de> for AnswerSeed<'_> {
    type Value = Option<ChatMessage>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for AnswerSeed<'_> {
    type Value = Option<ChatMessage>;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("a turn of the assistant, or a string")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        let text = StringSeed(self.0).visit_str(text)?;
        self.only(vec![message(Role::Assistant, text)])
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        let calls = Calls::default();
        let trail = self.0;
        let seed = TurnSeed {
            trail,
            calls: &calls,
        };
        self.only(seed.visit_map(map)?)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
        let (trail, calls) = (self.0, Calls::default());
        let turns = ArraySeed {
            trail,
            limit: 1,
            noun: "answers",
            seed: || TurnSeed {
                trail,
                calls: &calls,
            },
        };
        let turns = turns.visit_seq(seq)?;
        self.only(turns.into_iter().flatten().collect())
    }
}

impl AnswerSeed<'_> {
    /// The one message, which is the assistant's and says something.
    fn only<E: de::Error>(&self, messages: Vec<Message>) -> Result<Option<ChatMessage>, E> {
        let message = <[Message; 1]>::try_from(messages).ok();
        let message = message.map(|[message]| message.message);
        let message = message.filter(|message| {
            let says = message
                .content
                .as_deref()
                .is_some_and(|text| !text.is_empty());
            message.role == Role::Assistant && says
        });
        match message {
            Some(message) => Ok(Some(message)),
            None => {
                let reason = "has to be one text from the assistant";
                Err(self.0.fail(Kind::InvalidValue, reason))
            }
        }
    }
}
