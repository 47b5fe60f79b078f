//! Finds the form of calls by letting the template write some and taking out what was put in.

use domain::generation::{ChatMessage, Role, ToolCall};
use serde_json::{Map, Value, json};

use super::{Arguments, Match, Part, Spelling, ToolSyntax, Trigger};
use crate::chat_model::turns::common;
use crate::chat_model::{ChatModel, RenderError};
use crate::control::unused_char;

/// Words that no template writes by itself.
const NAMES: [&str; 3] = ["zq_find_place", "zq_count_things", "zq_wait"];
const KEYS: [&str; 2] = ["zq_first_key", "zq_other_key"];
/// Markup in them shows whether a template changes what it writes.
const VALUE: &str = "zq <first> & \"value\"";
const NUMBER: u32 = 90_817_263;
/// Some templates take nine characters and no others.
const IDS: [&str; 3] = ["zqAbc1234", "zqDef5678", "zqGhi9012"];
const OPENAI_ID: &str = "call_zqAbc123456789zqAbc12345";
const ANSWER: &str = "zq-answer";

/// A call of one of the functions.
struct Probe {
    name: &'static str,
    arguments: Value,
}

impl Probe {
    fn new<const N: usize>(which: usize, values: [Value; N]) -> Self {
        let pairs = KEYS.iter().zip(values);
        let pairs = pairs.map(|(key, value)| ((*key).to_owned(), value));
        Self {
            name: NAMES[which],
            arguments: Value::Object(pairs.collect::<Map<_, _>>()),
        }
    }

    /// With one argument.
    fn usual(which: usize) -> Self {
        Self::new(which, [VALUE.into()])
    }

    fn call(&self, id: &str) -> ToolCall {
        ToolCall {
            id: id.to_owned(),
            name: self.name.to_owned(),
            arguments: self.arguments.to_string(),
        }
    }
}

impl ChatModel {
    /// The form in which this model calls functions; `None` where its template writes calls in a form that is not understood.
    pub(crate) fn probe_tool_syntax(&self) -> Option<ToolSyntax> {
        let turns = Turns::of(self)?;
        let usual = Probe::usual(0);
        let one = turns.write(&[&usual])?;
        let (open, rest) = one.split_once(NAMES[0])?;
        let open = open.trim_start();
        let (middle, close, arguments) = match json_object(rest, &usual.arguments) {
            Some((middle, close)) => (middle.to_owned(), close.to_owned(), Arguments::Json),
            None => turns.listed(rest)?,
        };
        let mut syntax = ToolSyntax {
            open: self.spelling(open),
            middle: self.spelling(&middle),
            between: None,
            close: self.spelling(until_end(self, &close)),
            trigger: self.trigger(open)?,
            arguments,
            has_short_ids: !turns.takes(OPENAI_ID),
        };
        syntax.between = turns.between(&syntax);
        Some(syntax)
    }

    /// What tells that `open` opens a call: a tag at its beginning, else all of it at the beginning of an answer. `None` where it is
    /// nothing that could be told apart.
    fn trigger(&self, open: &str) -> Option<Trigger> {
        let spelling = self.spelling(open);
        let tag = match spelling.0.first()? {
            Part::Control(..) => Some(Spelling(spelling.0[..1].to_vec())),
            Part::Text(text) => tag(text).map(|tag| Spelling(vec![Part::Text(tag.to_owned())])),
            Part::Id => return None,
        };
        let is_tag = tag.is_some();
        Some(Trigger {
            spelling: tag.unwrap_or(spelling),
            is_tag,
        })
    }

    /// `text` as control tokens, ids and what lies between them.
    fn spelling(&self, text: &str) -> Spelling {
        let mut parts = Vec::new();
        let mut done = 0;
        for (id, from, to) in self.controls(text) {
            push_text(&mut parts, &text[done..from]);
            parts.push(Part::Control(id, text[from..to].to_owned()));
            done = to;
        }
        push_text(&mut parts, &text[done..]);
        Spelling(parts)
    }

    /// The control tokens in `text`, and where they begin and end; none if the tokenizer fails.
    fn controls(&self, text: &str) -> Vec<(u32, usize, usize)> {
        let mark = unused_char(std::iter::once(text));
        let encoded = self
            .tokenizer()
            .encode_template(text, mark)
            .unwrap_or_default();
        let tokens = encoded.ids.into_iter().zip(encoded.offsets);
        let tokens = tokens.map(|(id, (from, to))| (id, from, to));
        tokens
            .filter(|(id, ..)| self.tokenizer().is_control(*id))
            .collect()
    }
}

fn push_text(parts: &mut Vec<Part>, text: &str) {
    let mut rest = text;
    while let Some((at, id)) = IDS.iter().filter_map(|id| Some((rest.find(id)?, id))).min() {
        if at > 0 {
            parts.push(Part::Text(rest[..at].to_owned()));
        }
        parts.push(Part::Id);
        rest = &rest[at + id.len()..];
    }
    if !rest.is_empty() {
        parts.push(Part::Text(rest.to_owned()));
    }
}

/// The text behind a spelling that `text` begins with.
fn after(spelling: &Spelling, text: &str) -> Option<String> {
    match spelling.matches(text) {
        Match::Whole(len) => Some(text[len..].to_owned()),
        _ => None,
    }
}

/// `<tool_call>` or `[TOOL_CALLS]` at the beginning of a text.
fn tag(text: &str) -> Option<&str> {
    let closing = match text.chars().next()? {
        '<' => '>',
        '[' => ']',
        _ => return None,
    };
    let len = text.find(closing)? + 1;
    (len > 3 && !text[..len].contains(char::is_whitespace)).then(|| &text[..len])
}

/// `text` up to the first token that ends a turn.
fn until_end<'t>(model: &ChatModel, text: &'t str) -> &'t str {
    let ends = model.stop_token_ids().iter();
    let ends = ends.filter_map(|id| text.find(&model.token_text(*id).0));
    &text[..ends.min().unwrap_or(text.len())]
}

/// What stands before and after the JSON object `wanted` in `text`.
fn json_object<'t>(text: &'t str, wanted: &Value) -> Option<(&'t str, &'t str)> {
    text.match_indices('{').find_map(|(at, _)| {
        let mut values = serde_json::Deserializer::from_str(&text[at..]).into_iter::<Value>();
        let value = values.next()?.ok()?;
        (value == *wanted).then(|| (&text[..at], &text[at + values.byte_offset()..]))
    })
}

/// Turns as the template writes them, without what it writes around any answer.
struct Turns<'m> {
    model: &'m ChatModel,
    tools: Vec<Value>,
    /// A turn that says [`ANSWER`].
    answer: String,
}

impl<'m> Turns<'m> {
    fn of(model: &'m ChatModel) -> Option<Self> {
        let string = json!({"type": "string"});
        let function = |name: &str| {
            json!({
                "type": "function",
                "function": {
                    "name": name,
                    "description": "zq-description",
                    "parameters": {"type": "object", "properties": {(KEYS[0]): string, (KEYS[1]): string}},
                },
            })
        };
        let mut turns = Self {
            model,
            tools: NAMES.map(function).to_vec(),
            answer: String::new(),
        };
        turns.answer = turns
            .render(ChatMessage::new(Role::Assistant, ANSWER))
            .ok()?;
        turns.answer.contains(ANSWER).then_some(turns)
    }

    fn render(&self, turn: ChatMessage) -> Result<String, RenderError> {
        let question = ChatMessage::new(Role::User, "zq-question");
        self.model
            .conversation_text(&[question, turn], Some(&self.tools))
    }

    /// Whether a call may have this id.
    fn takes(&self, id: &str) -> bool {
        let call = Probe::usual(0).call(id);
        self.render(assistant(vec![call])).is_ok()
    }

    /// What the template writes for these calls; `None` where it refuses them.
    fn write(&self, probes: &[&Probe]) -> Option<String> {
        let calls = probes.iter().zip(IDS);
        let calls = calls.map(|(probe, id)| probe.call(id)).collect();
        let text = self.render(assistant(calls)).ok()?;
        // An answer and calls stand at the same place, between the same words. No control token is cut in two.
        let start = common(text.chars(), self.answer.chars());
        let answer_rest = &self.answer[self.answer.find(ANSWER)? + ANSWER.len()..];
        let end = text.len() - common(text[start..].chars().rev(), answer_rest.chars().rev());
        let around = |place| {
            let controls = self.model.controls(&text);
            controls
                .into_iter()
                .find(|(_, from, to)| *from < place && place < *to)
        };
        let start = around(start).map_or(start, |(_, from, _)| from);
        let end = around(end).map_or(end, |(_, _, to)| to);
        Some(text[start..end].to_owned())
    }

    /// What stands between two calls; `None` where several are not written as one is, or not at all.
    fn between(&self, syntax: &ToolSyntax) -> Option<Spelling> {
        let calls = [0, 1, 2].map(Probe::usual);
        let all = self.write(&calls.each_ref())?;
        let after_call = |text: &'_ str, probe: &Probe| {
            let text = after(&syntax.middle, text.strip_prefix(probe.name)?)?;
            match &syntax.arguments {
                Arguments::Json => {
                    let (before, after) = json_object(&text, &probe.arguments)?;
                    before.is_empty().then(|| after.to_owned())
                }
                Arguments::Listed {
                    before: opening,
                    middle,
                    after: closing,
                    ..
                } => {
                    let text = after(opening, &text)?;
                    let text = after(middle, text.strip_prefix(KEYS[0])?)?;
                    after(closing, text.strip_prefix(VALUE)?)
                }
            }
        };
        let rest = after_call(&all[all.find(NAMES[0])?..], &calls[0])?;
        let between = self.model.spelling(rest.split_once(NAMES[1])?.0);
        let rest = after_call(&after(&between, &rest)?, &calls[1])?;
        let close = after_call(&after(&between, &rest)?, &calls[2])?;
        let close = self.model.spelling(until_end(self.model, &close));
        (close == syntax.close).then_some(between)
    }

    /// The form of arguments that are written one by one. `rest` is what follows the name of a call with one argument.
    /// Returns what stands before the first, what closes the turn, and the form.
    fn listed(&self, rest: &str) -> Option<(String, String, Arguments)> {
        let none = self.write(&[&Probe::new(0, [])])?;
        let none = none.split_once(NAMES[0])?.1;
        let (opening, value) = rest.split_once(KEYS[0])?;
        let (middle, closing) = value.split_once(VALUE)?;
        let n_close = common(none.chars().rev(), closing.chars().rev());
        let (begin, close) = none.split_at(none.len() - n_close);
        let before = opening.strip_prefix(begin)?;
        let after = &closing[..closing.len() - n_close];
        // Two arguments must be written as one and one, and numbers as strings are.
        let number = NUMBER.to_string();
        let values = [(VALUE, VALUE.into()), (&number, NUMBER.into())];
        let two = self.write(&[&Probe::new(0, values.clone().map(|(_, value)| value))])?;
        let expected = KEYS.iter().zip(&values);
        let expected =
            expected.map(|(key, (value, _))| [before, key, middle, value, after].concat());
        let expected = [begin, &expected.collect::<String>(), close].concat();
        if two.split_once(NAMES[0])?.1 != expected || [before, middle, after].contains(&"") {
            return None;
        }
        let truth = self.write(&[&Probe::new(0, [true.into()])])?;
        let truth = truth.split_once(KEYS[0])?.1.strip_prefix(middle)?;
        let has_python_words = truth.starts_with("True");
        if !has_python_words && !truth.starts_with("true") {
            return None;
        }
        let arguments = Arguments::Listed {
            has_python_words,
            before: self.model.spelling(before),
            middle: self.model.spelling(middle),
            after: self.model.spelling(after),
        };
        Some((begin.to_owned(), close.to_owned(), arguments))
    }
}

fn assistant(tool_calls: Vec<ToolCall>) -> ChatMessage {
    ChatMessage {
        tool_calls,
        ..ChatMessage::new(Role::Assistant, "")
    }
}
