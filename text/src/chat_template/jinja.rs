//! Where Jinja, as transformers sets it up, does something else than minijinja.
//!
//! Differs: `~` writes a number below 1e-4 or from 1e16 on without an exponent, adding to a `safe` string does not escape
//! for HTML, and a whole number beyond 64 bits is a fraction: minijinja has no place to say so.

use std::borrow::Cow;
use std::fmt;

use chrono::NaiveDateTime;
use minijinja::value::{Kwargs, Value, ValueKind, ValueOrKwargs, from_args};
use minijinja::{Environment, Error, Output, State, filters};

use super::json;
use super::python::{self, Generator, failed};

/// Adds and replaces filters, tests and functions. `strftime_now` exists if `now` is given.
pub(super) fn set_up(environment: &mut Environment<'static>, now: Option<NaiveDateTime>) {
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.set_formatter(format);
    environment.add_function("raise_exception", raise_exception);
    if let Some(now) = now {
        environment.add_function("strftime_now", move |format: String| strftime(now, &format));
    }
    environment.add_test("iterable", |value: &Value| {
        !value.is_none() && value.try_iter().is_ok()
    });
    environment.add_filter("iterated", iterated);
    environment.add_filter("tojson", json::tojson);
    environment.add_filter("string", |state: &State, value: &Value| {
        python::str(state, value)
    });
    environment.add_filter("indent", indent);
    environment.add_filter("map", map);
    environment.add_filter("select", select);
    environment.add_filter("reject", reject);
    environment.add_filter("selectattr", selectattr);
    environment.add_filter("rejectattr", rejectattr);
}

type Name<'n> = Cow<'n, str>;
type Rest = minijinja::value::Rest<ValueOrKwargs>;

fn map(state: &mut State, value: Value, args: Rest) -> Result<Value, Error> {
    filters::map(state, value, args).map(generator)
}

fn select(
    state: &mut State,
    value: Value,
    test: Option<Name<'_>>,
    args: Rest,
) -> Result<Value, Error> {
    filters::select(state, value, test, args).map(generator)
}

fn reject(
    state: &mut State,
    value: Value,
    test: Option<Name<'_>>,
    args: Rest,
) -> Result<Value, Error> {
    filters::reject(state, value, test, args).map(generator)
}

fn selectattr(
    state: &mut State,
    value: Value,
    attr: Name<'_>,
    test: Option<Name<'_>>,
    args: Rest,
) -> Result<Value, Error> {
    filters::selectattr(state, value, attr, test, args).map(generator)
}

fn rejectattr(
    state: &mut State,
    value: Value,
    attr: Name<'_>,
    test: Option<Name<'_>>,
    args: Rest,
) -> Result<Value, Error> {
    filters::rejectattr(state, value, attr, test, args).map(generator)
}

fn generator(values: Vec<Value>) -> Value {
    Value::from_object(Generator(values))
}

fn format(output: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    match value.as_str() {
        Some(text) => output.write_str(text)?,
        None => output.write_str(&python::str(state, value)?)?,
    }
    Ok(())
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(failed(message))
}

fn strftime(now: NaiveDateTime, format: &str) -> Result<String, Error> {
    let mut text = String::new();
    // chrono reports a bad format as an error of the write, which `to_string` would turn into a panic
    fmt::Write::write_fmt(&mut text, format_args!("{}", now.format(format)))
        .map_err(|_| failed("strftime_now: bad format"))?;
    Ok(text)
}

/// What a loop goes through: minijinja takes `none` for an empty list, Python refuses it.
fn iterated(value: Value) -> Result<Value, Error> {
    if value.kind() == ValueKind::None {
        return Err(failed("none is not iterable"));
    }
    Ok(value)
}

/// Jinja's `indent(width=4, first=false, blank=false)`; minijinja's drops a line break at the end.
fn indent(state: &State, args: Rest) -> Result<String, Error> {
    let args = args.into_values();
    let (text, width, first, blank, options): (
        &str,
        Option<Value>,
        Option<bool>,
        Option<bool>,
        Kwargs,
    ) = from_args(&args)?;
    let width = width.or(options.get("width")?).unwrap_or(Value::from(4));
    let first = first.or(options.get("first")?).unwrap_or(false);
    let blank = blank.or(options.get("blank")?).unwrap_or(false);
    options.assert_all_used()?;
    let (indention, n_times) = match width.as_str() {
        Some(indention) => (indention, 1),
        None => (" ", usize::try_from(width.clone())?),
    };
    let text = text.replace("\r\n", "\n");
    let lines: Vec<&str> = text.split(is_line_break).collect();
    let n_bytes = lines
        .len()
        .saturating_mul(indention.len())
        .saturating_mul(n_times);
    state.consume_fuel(n_bytes as u64 / 64)?;
    let indention = indention.repeat(n_times);
    let mut indented = String::with_capacity(text.len() + n_bytes);
    for (index, line) in lines.iter().enumerate() {
        indented.push_str(if index == 0 { "" } else { "\n" });
        if (index == 0 && first) || (index > 0 && (blank || !line.is_empty())) {
            indented.push_str(&indention);
        }
        indented.push_str(line);
    }
    Ok(indented)
}

/// What Python's `splitlines` splits at.
fn is_line_break(c: char) -> bool {
    matches!(
        c,
        '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}'
    )
}

/// The template as minijinja reads it: line breaks are `\n`, `{% generation %}`, with which transformers marks assistant text, is a block
/// that is always there, and what a `for` goes through passes the filter `iterated`.
pub(super) fn adapt(source: &str) -> String {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut result = String::with_capacity(source.len());
    let mut rest = source.as_str();
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else {
            break;
        };
        let tag = &rest[start..start + length];
        result.push_str(&rest[..start]);
        result.push_str(&adapt_tag(tag));
        rest = &rest[start + length..];
    }
    result.push_str(rest);
    result
}

/// One tag without its closing `%}`.
fn adapt_tag(tag: &str) -> String {
    let inner = tag[2..].trim_matches(|c: char| c == '-' || c == '+' || c.is_whitespace());
    match inner {
        "generation" => tag.replacen("generation", "if true", 1),
        "endgeneration" => tag.replacen("endgeneration", "endif", 1),
        _ => adapt_for(tag, inner).unwrap_or_else(|| tag.to_owned()),
    }
}

/// `for x in y if z` with `(y)|iterated`.
fn adapt_for(tag: &str, inner: &str) -> Option<String> {
    inner
        .strip_prefix("for")
        .filter(|rest| rest.starts_with(char::is_whitespace))?;
    let start = word(inner, "in", 0)? + 2;
    let end = [word(inner, "if", start), word(inner, "recursive", start)];
    let end = end.into_iter().flatten().min().unwrap_or(inner.len());
    let (before, values, after) = (&inner[..start], inner[start..end].trim(), &inner[end..]);
    let space = if after.is_empty() { "" } else { " " };
    Some(tag.replacen(
        inner,
        &format!("{before} ({values})|iterated{space}{after}"),
        1,
    ))
}

/// Where `word` stands by itself at or after `from`, outside of strings and brackets.
fn word(text: &str, word: &str, from: usize) -> Option<usize> {
    let is_part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '.');
    let (mut quote, mut depth, mut last) = (None, 0_usize, None);
    for (at, c) in text.char_indices().skip_while(|(at, _)| *at < from) {
        match (quote, c) {
            (Some(open), c) if c == open && last != Some('\\') => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(c),
            (None, '(' | '[' | '{') => depth += 1,
            (None, ')' | ']' | '}') => depth = depth.saturating_sub(1),
            (None, _) if depth == 0 && !is_part(last) && text[at..].starts_with(word) => {
                if !is_part(text[at + word.len()..].chars().next()) {
                    return Some(at);
                }
            }
            (None, _) => {}
        }
        last = Some(c);
    }
    None
}
