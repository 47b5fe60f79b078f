//! Takes calls out of an answer as it comes.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;

use super::{Arguments, Match, Part, Spelling, ToolSyntax, is_of_id};

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// What the model says, before any call.
    Text(String),
    /// A call begins.
    Call { name: String },
    /// More of the arguments of the last call: JSON text, once all pieces are put together.
    Arguments(String),
}

/// Reads one answer. What may be the beginning of a call is held back until it is clear.
pub struct CallReader {
    syntax: Arc<ToolSyntax>,
    /// The types that a function's parameters are declared to have.
    types: HashMap<(String, String), Value>,
    /// Of the functions.
    names: Vec<String>,
    state: State,
    unread: String,
    name: String,
    n_whole: usize,
}

enum State {
    /// What the model says; `at_start`: nothing of it yet.
    Text {
        at_start: bool,
    },
    /// What the model says, and no call will come.
    TextOnly,
    Open,
    Name,
    Json(JsonEnd),
    /// `n`: arguments so far.
    Listed {
        n: usize,
    },
    Behind,
    Closed,
}

/// Looks for the end of a JSON object.
#[derive(Default)]
struct JsonEnd {
    depth: usize,
    in_string: bool,
    is_escaped: bool,
}

impl CallReader {
    /// `is_forced`: the answer begins with a call.
    pub(crate) fn new(syntax: Arc<ToolSyntax>, tools: &[Value], is_forced: bool) -> Self {
        let state = if is_forced {
            State::Open
        } else {
            State::Text { at_start: true }
        };
        Self {
            syntax,
            types: declared_types(tools),
            names: names(tools),
            state,
            unread: String::new(),
            name: String::new(),
            n_whole: 0,
        }
    }

    /// Calls that were read to the end of their arguments.
    pub fn n_whole(&self) -> usize {
        self.n_whole
    }

    /// Whether the model calls functions by now.
    pub fn is_calling(&self) -> bool {
        !matches!(self.state, State::Text { .. } | State::TextOnly)
    }

    /// More of the answer, with its control tokens spelled.
    pub fn push(&mut self, text: &str) -> Vec<Heard> {
        self.unread += text;
        let mut heard = Vec::new();
        while self.advance(&mut heard) {}
        heard
    }

    /// A control token of the answer. Outside of calls it says nothing, unless it begins one.
    pub fn push_control(&mut self, spelling: &str) -> Vec<Heard> {
        let first = self.syntax.trigger.spelling.0.first();
        let begins = matches!(first, Some(Part::Control(_, text)) if text == spelling);
        if self.is_calling() || begins {
            self.push(spelling)
        } else {
            Vec::new()
        }
    }

    /// The rest of an answer that has ended.
    pub fn finish(&mut self) -> Vec<Heard> {
        let rest = std::mem::take(&mut self.unread);
        match self.state {
            State::Text { .. } | State::TextOnly | State::Open if !rest.is_empty() => {
                vec![Heard::Text(rest)]
            }
            // A call that breaks off, or what closes the turn.
            _ => Vec::new(),
        }
    }

    /// Reads on by one step; returns whether another may follow.
    fn advance(&mut self, heard: &mut Vec<Heard>) -> bool {
        let syntax = Arc::clone(&self.syntax);
        match &mut self.state {
            State::TextOnly => {
                self.say(self.unread.len(), heard);
                false
            }
            State::Text { at_start } => {
                let at_start = *at_start;
                self.text(&syntax, at_start, heard)
            }
            State::Open => {
                let skipped = self.unread.len() - self.unread.trim_start().len();
                match syntax.open.matches(&self.unread[skipped..]) {
                    Match::Whole(len) => match self.is_call(&syntax, &self.unread[skipped + len..])
                    {
                        Some(true) => self.read(skipped + len, State::Name),
                        Some(false) => self.no_call(&syntax, heard),
                        None => false,
                    },
                    Match::Partial => false,
                    Match::Not => self.no_call(&syntax, heard),
                }
            }
            State::Name => {
                let len = self.unread.len() - self.unread.trim_start_matches(is_of_id).len();
                if len == self.unread.len() {
                    // It may go on.
                    return false;
                }
                match syntax.middle.matches(&self.unread[len..]) {
                    Match::Whole(n_middle) => {
                        self.name = self.unread[..len].to_owned();
                        heard.push(Heard::Call {
                            name: self.name.clone(),
                        });
                        let state = match syntax.arguments {
                            Arguments::Json => State::Json(JsonEnd::default()),
                            Arguments::Listed { .. } => State::Listed { n: 0 },
                        };
                        self.read(len + n_middle, state)
                    }
                    Match::Partial => false,
                    Match::Not => self.go(State::Closed),
                }
            }
            State::Json(end) => {
                let found = end.find(&self.unread);
                let text: String = self
                    .unread
                    .drain(..found.unwrap_or(self.unread.len()))
                    .collect();
                if !text.is_empty() {
                    heard.push(Heard::Arguments(text));
                }
                found.is_some() && self.whole()
            }
            State::Listed { n } => {
                let n = *n;
                self.listed(&syntax, n, heard)
            }
            State::Behind => self.behind(&syntax),
            State::Closed => {
                self.unread.clear();
                false
            }
        }
    }

    /// Whether a known name and what follows it stand here; `None` where more must come to tell.
    fn is_call(&self, syntax: &ToolSyntax, text: &str) -> Option<bool> {
        let name = &text[..text.len() - text.trim_start_matches(is_of_id).len()];
        if name.len() == text.len() {
            let may_be = self.names.iter().any(|known| known.starts_with(name));
            return (!may_be).then_some(false);
        }
        let is_known = self.names.iter().any(|known| known == name);
        match syntax.middle.matches(&text[name.len()..]) {
            _ if !is_known => Some(false),
            Match::Whole(_) => Some(true),
            Match::Partial => None,
            Match::Not => Some(false),
        }
    }

    /// It only looked like a call: a tag may still open one later.
    fn no_call(&mut self, syntax: &ToolSyntax, heard: &mut Vec<Heard>) -> bool {
        if !syntax.trigger.is_tag {
            return self.go(State::TextOnly);
        }
        let spaces = self.unread.len() - self.unread.trim_start().len();
        let first = self.unread[spaces..]
            .chars()
            .next()
            .map_or(0, char::len_utf8);
        self.say(spaces + first, heard);
        self.go(State::Text { at_start: false })
    }

    fn text(&mut self, syntax: &ToolSyntax, at_start: bool, heard: &mut Vec<Heard>) -> bool {
        let trigger = &syntax.trigger;
        let places = self
            .unread
            .char_indices()
            .filter(|(_, c)| !c.is_whitespace());
        let mut places = places.map(|(at, _)| at).peekable();
        let Some(&first) = places.peek() else {
            // Space between what is said and a call belongs to neither.
            return false;
        };
        let mut places = places.take_while(|&at| trigger.is_tag || at_start && at == first);
        let found = places.find_map(|at| match trigger.spelling.matches(&self.unread[at..]) {
            Match::Whole(_) => Some((at, true)),
            Match::Partial => Some((at, false)),
            Match::Not => None,
        });
        match found {
            Some((at, is_whole)) => {
                let said = self.unread[..at].trim_end().len();
                if is_whole {
                    self.say(said, heard);
                    self.go(State::Open)
                } else {
                    self.say_some(said, at_start, heard)
                }
            }
            None if !trigger.is_tag => self.go(State::TextOnly),
            None => {
                let said = self.unread.trim_end().len();
                self.say_some(said, at_start, heard)
            }
        }
    }

    fn say_some(&mut self, len: usize, at_start: bool, heard: &mut Vec<Heard>) -> bool {
        self.say(len, heard);
        self.state = State::Text {
            at_start: at_start && len == 0,
        };
        false
    }

    fn say(&mut self, len: usize, heard: &mut Vec<Heard>) {
        if len > 0 {
            heard.push(Heard::Text(self.unread.drain(..len).collect()));
        }
    }

    fn listed(&mut self, syntax: &ToolSyntax, n: usize, heard: &mut Vec<Heard>) -> bool {
        let Arguments::Listed {
            before,
            middle,
            after,
            ..
        } = &syntax.arguments
        else {
            unreachable!("only such arguments lead here — a bug in CallReader")
        };
        match before.matches(&self.unread) {
            Match::Whole(start) => {
                let rest = &self.unread[start..];
                let Some((key, value)) = split(rest, middle) else {
                    return false;
                };
                let Some((value, rest)) = split(value, after) else {
                    return false;
                };
                let (key, value) = (Value::from(key), self.value(key, value));
                let opening = if n == 0 { "{" } else { ", " };
                heard.push(Heard::Arguments(format!("{opening}{key}: {value}")));
                let read = self.unread.len() - rest.len();
                self.read(read, State::Listed { n: n + 1 })
            }
            // It may also be the beginning of what closes the call; what follows tells.
            Match::Partial => false,
            Match::Not => {
                let closing = if n == 0 { "{}" } else { "}" };
                heard.push(Heard::Arguments(closing.to_owned()));
                self.whole()
            }
        }
    }

    /// A value as JSON: what is declared to be a string, or is neither JSON nor a word of Python's, is a string.
    fn value(&self, key: &str, text: &str) -> Value {
        let declared = self.types.get(&(self.name.clone(), key.to_owned()));
        if declared.is_some_and(|declared| declared == "string") {
            return Value::from(text);
        }
        match text {
            "True" => Value::Bool(true),
            "False" => Value::Bool(false),
            "None" => Value::Null,
            text => serde_json::from_str(text).unwrap_or_else(|_| Value::from(text)),
        }
    }

    fn behind(&mut self, syntax: &ToolSyntax) -> bool {
        match syntax
            .between
            .as_ref()
            .map(|between| between.matches(&self.unread))
        {
            Some(Match::Whole(len)) => self.read(len, State::Name),
            // With nothing unread anything may follow.
            Some(Match::Partial) => false,
            _ => self.go(State::Closed),
        }
    }

    fn whole(&mut self) -> bool {
        self.n_whole += 1;
        self.go(State::Behind)
    }

    fn read(&mut self, len: usize, state: State) -> bool {
        self.unread.drain(..len);
        self.go(state)
    }

    fn go(&mut self, state: State) -> bool {
        self.state = state;
        true
    }
}

impl JsonEnd {
    /// Where the object ends in the next piece of text.
    fn find(&mut self, text: &str) -> Option<usize> {
        for (at, byte) in text.bytes().enumerate() {
            match byte {
                _ if self.is_escaped => self.is_escaped = false,
                b'\\' if self.in_string => self.is_escaped = true,
                b'"' => self.in_string = !self.in_string,
                b'{' | b'[' if !self.in_string => self.depth += 1,
                b'}' | b']' if !self.in_string => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        return Some(at + 1);
                    }
                }
                _ => {}
            }
        }
        None
    }
}

/// What stands before and after the first place where `text` goes on as `spelling`.
fn split<'t>(text: &'t str, spelling: &Spelling) -> Option<(&'t str, &'t str)> {
    let mut places = text.char_indices().map(|(at, _)| at);
    places.find_map(|at| match spelling.matches(&text[at..]) {
        Match::Whole(len) => Some((&text[..at], &text[at + len..])),
        _ => None,
    })
}

fn names(tools: &[Value]) -> Vec<String> {
    let names = tools.iter().map(|tool| &tool["function"]["name"]);
    names
        .filter_map(|name| name.as_str().map(str::to_owned))
        .collect()
}

fn declared_types(tools: &[Value]) -> HashMap<(String, String), Value> {
    let mut types = HashMap::new();
    for function in tools.iter().map(|tool| &tool["function"]) {
        let name = function["name"].as_str().unwrap_or_default();
        let properties = function["parameters"]["properties"].as_object();
        for (key, property) in properties.into_iter().flatten() {
            types.insert((name.to_owned(), key.clone()), property["type"].clone());
        }
    }
    types
}
