//! How a model writes the functions it calls. Every family has a form of its own, and the template knows it: `probe` lets it write
//! some calls and looks at them, `reader` takes calls out of an answer as it comes, and `told` lends a form to templates that have none.

mod probe;
mod reader;
pub(crate) mod told;

pub use self::reader::{CallReader, Heard};

/// The form of a turn that calls functions: `open`, the calls with `between` after each but the last, `close`. A call is the function's
/// name, `middle`, and its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolSyntax {
    pub(crate) open: Spelling,
    pub(crate) middle: Spelling,
    /// `None`: a turn has one call.
    pub(crate) between: Option<Spelling>,
    pub(crate) close: Spelling,
    pub(crate) arguments: Arguments,
    pub(crate) trigger: Trigger,
    /// Whether the template refuses ids that are not nine letters and digits, as Mistral's do.
    pub has_short_ids: bool,
}

impl ToolSyntax {
    /// Whether a turn may have more than one call.
    pub fn takes_several(&self) -> bool {
        self.between.is_some()
    }

    /// Whether a turn may say something before it calls functions.
    pub fn may_follow_text(&self) -> bool {
        self.trigger.is_tag
    }
}

/// How arguments are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Arguments {
    /// As one JSON object.
    Json,
    /// One after the other: `before`, name, `middle`, value, `after`. Strings without quotes, other values as JSON.
    Listed {
        before: Spelling,
        middle: Spelling,
        after: Spelling,
        /// `True` and `False`, as Python has them.
        has_python_words: bool,
    },
}

/// What tells that a call begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Trigger {
    /// A beginning of `open`.
    pub spelling: Spelling,
    /// Whether it means a call anywhere, and not at the beginning of an answer alone.
    pub is_tag: bool,
}

/// What a template writes around names and arguments.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Spelling(pub Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part {
    Text(String),
    /// A control token and how it is spelled.
    Control(u32, String),
    /// The id of a call.
    Id,
}

/// How a text begins, compared with a spelling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Match {
    /// With all of it, in so many bytes.
    Whole(usize),
    /// The text is a beginning of it.
    Partial,
    Not,
}

impl Spelling {
    pub fn matches(&self, text: &str) -> Match {
        let mut rest = text;
        for part in &self.0 {
            match part {
                Part::Text(wanted) | Part::Control(_, wanted) => {
                    if let Some(after) = rest.strip_prefix(wanted.as_str()) {
                        rest = after;
                    } else if wanted.starts_with(rest) {
                        return Match::Partial;
                    } else {
                        return Match::Not;
                    }
                }
                Part::Id => {
                    rest = rest.trim_start_matches(is_of_id);
                    if rest.is_empty() {
                        return Match::Partial;
                    }
                }
            }
        }
        Match::Whole(text.len() - rest.len())
    }
}

/// Whether an id, or the name of a function, may hold this character.
pub(crate) fn is_of_id(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '-'
}
