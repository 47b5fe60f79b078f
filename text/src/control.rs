//! Control tokens that a content spells. The template's own stay what they are; those in a content are broken by a
//! mark, a private-use character that is taken out again after the rendered text was cut at its control tokens.

use std::borrow::Cow;

use serde_json::{Map, Value};

/// The added tokens that mean something to the model, by their spelling.
#[derive(Debug, Clone, Default)]
pub struct ControlTokens {
    /// At least two characters each.
    spellings: Vec<String>,
    /// Whether some spelling starts with this byte.
    starts: Vec<bool>,
}

impl ControlTokens {
    /// Spellings of a single character cannot be broken and are left out.
    pub fn new(spellings: impl IntoIterator<Item = String>) -> Self {
        let spellings: Vec<String> = spellings
            .into_iter()
            .filter(|text| text.chars().nth(1).is_some())
            .collect();
        let mut starts = vec![false; 256];
        for spelling in &spellings {
            starts[usize::from(spelling.as_bytes()[0])] = true;
        }
        Self { spellings, starts }
    }

    /// Whether `text` spells a control token.
    pub fn are_spelled_in(&self, text: &str) -> bool {
        self.mark_places(text).next().is_some()
    }

    /// `text` with `mark` inside every spelling of a control token, and at an edge where `text` together with what
    /// the template puts beside it could spell one. Whitespace around `text` stays outermost, so templates trim as ever.
    pub fn mark<'t>(&self, text: &'t str, mark: char) -> Cow<'t, str> {
        let (first, last) = self.edges(text);
        let mut places: Vec<usize> = self.mark_places(text).chain(first).chain(last).collect();
        if places.is_empty() {
            return Cow::Borrowed(text);
        }
        places.sort_unstable();
        let mut marked = String::with_capacity(text.len() + places.len() * mark.len_utf8());
        let mut copied = 0;
        for place in places {
            marked.push_str(&text[copied..place]);
            marked.push(mark);
            copied = place;
        }
        marked.push_str(&text[copied..]);
        Cow::Owned(marked)
    }

    /// As [`ControlTokens::mark`], in every string and key of a JSON value.
    pub fn mark_json(&self, value: &Value, mark: char) -> Value {
        match value {
            Value::String(text) => Value::String(self.mark(text, mark).into_owned()),
            Value::Array(values) => values
                .iter()
                .map(|value| self.mark_json(value, mark))
                .collect(),
            Value::Object(values) => {
                let pair = |(key, value): (&String, &Value)| {
                    (
                        self.mark(key, mark).into_owned(),
                        self.mark_json(value, mark),
                    )
                };
                Value::Object(values.iter().map(pair).collect::<Map<_, _>>())
            }
            other => other.clone(),
        }
    }

    /// After the first character of each spelling in `text`, overlapping ones too.
    fn mark_places<'a>(&'a self, text: &'a str) -> impl Iterator<Item = usize> + 'a {
        let bytes = text.as_bytes();
        let starts = (0..bytes.len()).filter(|at| self.starts[usize::from(bytes[*at])]);
        starts.filter_map(move |at| {
            let spelling = self
                .spellings
                .iter()
                .find(|s| bytes[at..].starts_with(s.as_bytes()))?;
            Some(at + spelling.chars().next()?.len_utf8())
        })
    }

    /// Before the first and after the last character that is not whitespace, where a control token may straddle it.
    fn edges(&self, text: &str) -> (Option<usize>, Option<usize>) {
        let core = text.trim();
        if core.is_empty() {
            return (None, None);
        }
        let from = text.len() - text.trim_start().len();
        // the template could write what is missing of a control token before `core`, after it, or both
        let opens = |spelling: &String| straddles(core, spelling) || spelling.contains(core);
        let closes = |spelling: &String| straddles(spelling, core);
        let first = self.spellings.iter().any(opens).then_some(from);
        let last = self
            .spellings
            .iter()
            .any(closes)
            .then_some(from + core.len());
        (first, last)
    }
}

/// Whether an end of `left` is a beginning of `right`, with something of `right` left over.
fn straddles(right: &str, left: &str) -> bool {
    let (right, left) = (right.as_bytes(), left.as_bytes());
    let Some(first) = right.first() else {
        return false;
    };
    let end = &left[left.len().saturating_sub(right.len() - 1)..];
    memchr::memchr_iter(*first, end).any(|at| right.starts_with(&end[at..]))
}

/// A private-use character that occurs in none of the texts.
pub fn unused_char<'t>(texts: impl Iterator<Item = &'t str> + Clone) -> char {
    ('\u{e000}'..='\u{f8ff}')
        .chain('\u{f0000}'..='\u{ffffd}')
        .find(|mark| !texts.clone().any(|text| text.contains(*mark)))
        .unwrap_or('\u{10fffd}')
}
