//! Functions that may be called and calls of them, as other tools write them: JSON, or JSON in a text.

use std::cell::{Cell, RefCell};

use domain::generation::ToolCall;
use serde::de::{self, DeserializeSeed, Deserializer};
use serde_json::{Value, json};

use super::super::LineErrorKind as Kind;
use super::super::judge::{MAX_TOOLS, check_tool};
use super::super::strict::{Trail, ValueSeed};

/// A list of tools or of functions, which become tools.
pub(super) struct ToolsSeed<'t>(pub(super) &'t Trail);

impl<'de> DeserializeSeed<'de> for ToolsSeed<'_> {
    type Value = Vec<Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<Value>, D::Error> {
        let trail = self.0;
        let tools = match list(ValueSeed(trail).deserialize(deserializer)?, trail)? {
            tools if tools.len() > MAX_TOOLS => {
                let reason = format!("has more than {MAX_TOOLS} tools");
                return Err(trail.fail(Kind::TooLarge, reason));
            }
            tools => tools.into_iter().map(as_tool),
        };
        let checked = tools.enumerate().map(|(index, tool)| {
            trail.index(index, || check_tool(&tool, trail))?;
            Ok(tool)
        });
        checked.collect()
    }
}

fn list<E: de::Error>(value: Value, trail: &Trail) -> Result<Vec<Value>, E> {
    match value {
        Value::Null => Ok(Vec::new()),
        Value::Array(values) => Ok(values),
        Value::String(text) if text.trim().is_empty() => Ok(Vec::new()),
        Value::String(text) => match json_in(&text, trail)? {
            Value::String(_) => Err(no_list(trail)),
            value => list(value, trail),
        },
        _ => Err(no_list(trail)),
    }
}

fn no_list<E: de::Error>(trail: &Trail) -> E {
    trail.fail(Kind::InvalidValue, "has tools that are not a list")
}

fn as_tool(value: Value) -> Value {
    match value.get("type") {
        Some(Value::String(kind)) if kind == "function" => value,
        _ => json!({"type": "function", "function": value}),
    }
}

/// The value that a text of the row spells, read as strictly as the row.
fn json_in<E: de::Error>(text: &str, trail: &Trail) -> Result<Value, E> {
    let inner = Trail::default();
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let value = ValueSeed(&inner).deserialize(&mut deserializer);
    let value = value.and_then(|value| deserializer.end().map(|()| value));
    value.map_err(|error| {
        let why = match inner.take_problem() {
            Some((_, reason)) => reason,
            None => error.to_string(),
        };
        trail.fail(
            Kind::InvalidValue,
            format!("has a text that should be JSON: {why}"),
        )
    })
}

/// The calls of one conversation: other tools write them without ids, and what a function answers stands behind its call.
#[derive(Default)]
pub(super) struct Calls {
    n_calls: Cell<usize>,
    /// Ids of the last turn's calls that have no answer yet, the next one last.
    open: RefCell<Vec<String>>,
    last: RefCell<String>,
}

impl Calls {
    /// The calls that a turn writes: an object with `name` and `arguments`, or a list of them.
    pub(super) fn written<E: de::Error>(
        &self,
        text: &str,
        trail: &Trail,
    ) -> Result<Vec<ToolCall>, E> {
        let calls = match json_in(text, trail)? {
            Value::Array(calls) if calls.is_empty() || calls.len() > MAX_TOOLS => {
                let reason = format!("has to call 1 to {MAX_TOOLS} functions");
                return Err(trail.fail(Kind::InvalidValue, reason));
            }
            Value::Array(calls) => calls,
            call => vec![call],
        };
        let calls = calls.into_iter().map(|call| self.call(call, trail));
        let calls: Vec<ToolCall> = calls.collect::<Result<_, E>>()?;
        *self.open.borrow_mut() = calls.iter().rev().map(|call| call.id.clone()).collect();
        Ok(calls)
    }

    fn call<E: de::Error>(&self, call: Value, trail: &Trail) -> Result<ToolCall, E> {
        let name = call.get("name").and_then(Value::as_str);
        let Some(name) = name.filter(|name| !name.is_empty()) else {
            let reason = "calls a function without a 'name'";
            return Err(trail.fail(Kind::InvalidValue, reason));
        };
        let arguments = match call.get("arguments") {
            Some(Value::String(text)) => text.clone(),
            Some(arguments @ Value::Object(_)) => arguments.to_string(),
            _ => {
                let reason = "calls a function without 'arguments'";
                return Err(trail.fail(Kind::InvalidValue, reason));
            }
        };
        let n = self.n_calls.get() + 1;
        self.n_calls.set(n);
        Ok(ToolCall {
            // Nine letters and digits: some templates take nothing else.
            id: format!("call{n:05}"),
            name: name.to_owned(),
            arguments,
        })
    }

    /// The call that the next answer of a function belongs to: calls are answered in their order, and what comes after belongs to the
    /// last of them. `None`: nothing was called.
    pub(super) fn answered(&self) -> Option<String> {
        if let Some(id) = self.open.borrow_mut().pop() {
            *self.last.borrow_mut() = id;
        }
        Some(self.last.borrow().clone()).filter(|id| !id.is_empty())
    }
}
