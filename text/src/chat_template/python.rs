//! Values as Python writes them with `str` and `repr`. Chat templates were written against these.

use std::fmt::Write as _;
use std::sync::Arc;

use minijinja::value::{Enumerator, Object, ObjectRepr, Value, ValueKind};
use minijinja::{Error, ErrorKind, State};

/// How deep lists and mappings may lie in each other where they are written; each level is one call on the stack.
pub(super) const MAX_DEPTH: usize = 200;

/// Python's `str(value)`.
pub(super) fn str(state: &State, value: &Value) -> Result<String, Error> {
    match value.kind() {
        ValueKind::Number | ValueKind::Seq | ValueKind::Iterable | ValueKind::Map => {
            let mut text = String::new();
            repr(state, value, MAX_DEPTH, &mut text)?;
            Ok(text)
        }
        _ => Ok(value.to_string()),
    }
}

fn repr(state: &State, value: &Value, depth: usize, text: &mut String) -> Result<(), Error> {
    let inner = visit(state, value, depth)?;
    match value.kind() {
        ValueKind::Number if !value.is_integer() => {
            text.push_str(&float(f64::try_from(value.clone())?))
        }
        ValueKind::String => quote(value.as_str().unwrap_or_default(), text),
        ValueKind::Seq | ValueKind::Iterable => {
            let (open, close) = if value.is_tuple() {
                ('(', ')')
            } else {
                ('[', ']')
            };
            text.push(open);
            for (index, item) in value.try_iter()?.enumerate() {
                text.push_str(if index == 0 { "" } else { ", " });
                repr(state, &item, inner, text)?;
            }
            if value.is_tuple() && value.len() == Some(1) {
                text.push(',');
            }
            text.push(close);
        }
        ValueKind::Map => {
            text.push('{');
            for (index, key) in value.try_iter()?.enumerate() {
                text.push_str(if index == 0 { "" } else { ", " });
                repr(state, &key, inner, text)?;
                text.push_str(": ");
                repr(state, &value.get_item(&key)?, inner, text)?;
            }
            text.push('}');
        }
        ValueKind::Undefined => text.push_str("Undefined"),
        _ => text.push_str(&value.to_string()),
    }
    Ok(())
}

/// What `map` and the like give in Jinja: it can be gone through, but is no list.
#[derive(Debug)]
pub(super) struct Generator(pub(super) Vec<Value>);

impl Object for Generator {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Iterable
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.0.clone())
    }

    fn is_true(self: &Arc<Self>) -> bool {
        true
    }
}

/// Pays for one value, since a list may hold the same list over and over, and gives the depth left for what is in it.
pub(super) fn visit(state: &State, value: &Value, depth: usize) -> Result<usize, Error> {
    state.consume_fuel(1 + value.as_str().map_or(0, str::len) as u64 / 64)?;
    depth
        .checked_sub(1)
        .ok_or_else(|| failed("lists and mappings lie too deep in each other"))
}

pub(super) fn failed(text: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, text.into())
}

/// The shortest digits that read back as the same number; the exponent has a sign and two digits.
pub(super) fn float(number: f64) -> String {
    let digits = format!("{number:?}");
    match digits.split_once('e') {
        Some((mantissa, exponent)) => {
            let (sign, exponent) = match exponent.strip_prefix('-') {
                Some(exponent) => ('-', exponent),
                None => ('+', exponent),
            };
            format!("{mantissa}e{sign}{exponent:0>2}")
        }
        None => digits,
    }
}

/// A string in Python's quotes.
fn quote(string: &str, text: &mut String) {
    let quote = if string.contains('\'') && !string.contains('"') {
        '"'
    } else {
        '\''
    };
    text.push(quote);
    for c in string.chars() {
        let code = u32::from(c);
        // writing to a String cannot fail
        let _ = match c {
            '\n' => text.write_str("\\n"),
            '\r' => text.write_str("\\r"),
            '\t' => text.write_str("\\t"),
            '\\' => text.write_str("\\\\"),
            c if c == quote => write!(text, "\\{c}"),
            c if is_printable(c) => text.write_char(c),
            _ if code < 0x100 => write!(text, "\\x{code:02x}"),
            _ if code < 0x1_0000 => write!(text, "\\u{code:04x}"),
            _ => write!(text, "\\U{code:08x}"),
        };
    }
    text.push(quote);
}

/// Python's `str.isprintable`: no control or format characters and no spaces but the usual one.
/// Differs: private-use characters pass, since contents are marked with one; so do unassigned ones.
fn is_printable(c: char) -> bool {
    let is_format = matches!(u32::from(c),
        0xad | 0x600..=0x605 | 0x61c | 0x6dd | 0x70f | 0x890..=0x891 | 0x8e2 | 0x180e | 0x200b..=0x200f | 0x202a..=0x202e
        | 0x2060..=0x206f | 0xfeff | 0xfff9..=0xfffb | 0x110bd | 0x110cd | 0x13430..=0x1343f | 0x1bca0..=0x1bca3
        | 0x1d173..=0x1d17a | 0xe0001 | 0xe0020..=0xe007f);
    c == ' ' || !(c.is_control() || c.is_whitespace() || is_format)
}
