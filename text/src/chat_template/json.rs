//! Python's `json.dumps`, as transformers' filter `tojson` uses it.

use std::io::{self, Write};

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, State};
use serde::Serialize;
use serde_json::ser::{CharEscape, Formatter};

use super::python::{Generator, MAX_DEPTH, failed, float, visit};

/// Nothing is escaped for HTML, and `ensure_ascii` is off by itself.
pub(super) fn tojson(
    state: &State,
    value: &Value,
    ensure_ascii: Option<bool>,
    options: Kwargs,
) -> Result<Value, Error> {
    let ensure_ascii = match ensure_ascii {
        Some(ensure_ascii) => ensure_ascii,
        None => options
            .get::<Option<bool>>("ensure_ascii")?
            .unwrap_or(false),
    };
    let indent = options
        .get::<Option<Value>>("indent")?
        .filter(|indent| !indent.is_none());
    let separators = options
        .get::<Option<Value>>("separators")?
        .filter(|pair| !pair.is_none());
    let is_sorted = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    options.assert_all_used()?;

    check_serializable(state, value, MAX_DEPTH)?;
    let (item, key) = match separators {
        Some(pair) => (separator(&pair, 0)?, separator(&pair, 1)?),
        None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        None => (", ".to_owned(), ": ".to_owned()),
    };
    let style = Style {
        ensure_ascii,
        indent: indent.map(indentation).transpose()?,
        item,
        key,
        depth: 0,
        is_empty: true,
    };
    let mut bytes = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, style);
    let written = if is_sorted {
        serde_json::to_value(value).and_then(|mut value| {
            value.sort_all_objects();
            value.serialize(&mut serializer)
        })
    } else {
        value.serialize(&mut serializer)
    };
    written.map_err(|error| failed(format!("tojson: {error}")))?;
    state.consume_fuel(bytes.len() as u64 / 64)?;
    String::from_utf8(bytes)
        .map(Value::from)
        .map_err(|error| failed(format!("tojson: {error}")))
}

/// What Python's `json` refuses.
fn check_serializable(state: &State, value: &Value, depth: usize) -> Result<(), Error> {
    let inner = visit(state, value, depth)?;
    if value.downcast_object_ref::<Generator>().is_some() {
        return Err(failed("a generator is not JSON serializable"));
    }
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => value
            .try_iter()?
            .try_for_each(|item| check_serializable(state, &item, inner)),
        ValueKind::Map => value
            .try_iter()?
            .try_for_each(|key| check_serializable(state, &value.get_item(&key)?, inner)),
        ValueKind::Undefined | ValueKind::Plain => {
            Err(failed(format!("{} is not JSON serializable", value.kind())))
        }
        _ => Ok(()),
    }
}

fn separator(pair: &Value, index: usize) -> Result<String, Error> {
    let separator = pair.get_item_by_index(index)?;
    let text = separator.as_str().map(str::to_owned);
    text.ok_or_else(|| failed("tojson: separators are two strings"))
}

/// A number of spaces, or the indentation itself.
fn indentation(indent: Value) -> Result<String, Error> {
    match indent.as_str() {
        Some(text) => Ok(text.to_owned()),
        None => Ok(" ".repeat(usize::try_from(indent)?.min(64))),
    }
}

/// How `json.dumps` lays JSON out.
struct Style {
    ensure_ascii: bool,
    indent: Option<String>,
    item: String,
    key: String,
    depth: usize,
    /// Whether nothing was written yet into the list or mapping at hand.
    is_empty: bool,
}

impl Style {
    fn open<W: ?Sized + Write>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth += 1;
        self.is_empty = true;
        writer.write_all(bracket)
    }

    fn close<W: ?Sized + Write>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth -= 1;
        if !self.is_empty {
            self.line(writer)?;
        }
        self.is_empty = false;
        writer.write_all(bracket)
    }

    fn next<W: ?Sized + Write>(&mut self, writer: &mut W, is_first: bool) -> io::Result<()> {
        if !is_first {
            writer.write_all(self.item.as_bytes())?;
        }
        self.is_empty = false;
        self.line(writer)
    }

    fn line<W: ?Sized + Write>(&self, writer: &mut W) -> io::Result<()> {
        let Some(indent) = &self.indent else {
            return Ok(());
        };
        writer.write_all(b"\n")?;
        (0..self.depth).try_for_each(|_| writer.write_all(indent.as_bytes()))
    }
}

impl Formatter for Style {
    fn write_f64<W: ?Sized + Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        writer.write_all(float(value).as_bytes())
    }

    fn write_string_fragment<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        if !self.ensure_ascii {
            return writer.write_all(fragment.as_bytes());
        }
        for c in fragment.chars() {
            // Differs: private-use characters stay, since contents are marked with one
            if matches!(c, ' '..='~' | '\u{e000}'..='\u{f8ff}' | '\u{f0000}'..) {
                write!(writer, "{c}")?;
            } else {
                c.encode_utf16(&mut [0; 2])
                    .iter()
                    .try_for_each(|unit| write!(writer, "\\u{unit:04x}"))?;
            }
        }
        Ok(())
    }

    fn write_char_escape<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        escape: CharEscape,
    ) -> io::Result<()> {
        match escape {
            CharEscape::Quote => writer.write_all(b"\\\""),
            CharEscape::ReverseSolidus => writer.write_all(b"\\\\"),
            CharEscape::Solidus => writer.write_all(b"/"),
            CharEscape::Backspace => writer.write_all(b"\\b"),
            CharEscape::FormFeed => writer.write_all(b"\\f"),
            CharEscape::LineFeed => writer.write_all(b"\\n"),
            CharEscape::CarriageReturn => writer.write_all(b"\\r"),
            CharEscape::Tab => writer.write_all(b"\\t"),
            CharEscape::AsciiControl(byte) => write!(writer, "\\u{byte:04x}"),
        }
    }

    fn begin_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open(writer, b"[")
    }

    fn end_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer, b"]")
    }

    fn begin_array_value<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.next(writer, first)
    }

    fn begin_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open(writer, b"{")
    }

    fn end_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer, b"}")
    }

    fn begin_object_key<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.next(writer, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(self.key.as_bytes())
    }
}
