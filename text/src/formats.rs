//! The rows of a training file, typed, and what can be wrong with one. The types live here; `row` and `message`
//! parse OpenAI's formats, `convert` those of other tools, `strict` is the JSON underneath, [`crate::dataset`] splits a stream into rows and [`crate::report`] turns
//! errors into OpenAI's words.

mod advice;
mod call;
mod content;
mod convert;
mod judge;
mod message;
mod row;
mod sniff;
mod strict;

use domain::generation::ChatMessage;
use domain::preference::Preference;
use domain::x_training::{Data, DataFormat};
use serde_json::Value;

pub use self::judge::{MAX_MESSAGES, MAX_TOOLS};
pub use self::row::parse_row;
pub(crate) use self::row::{Parsed, parse};
pub use self::strict::MAX_DEPTH;

/// Which kind of row a file holds; a file holds one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RowFormat {
    /// `{"messages": […]}`, for method `supervised`.
    Chat,
    /// `{"input": …, "preferred_output": …, "non_preferred_output": …}`, for method `dpo`.
    Preference,
    /// `{"messages": […], "label": true or false}`, for method `dpo` with the loss `kto`.
    UnpairedPreference,
    /// `{"messages": […], …}` with any further keys, for method `reinforcement`.
    Reinforcement,
    /// `{"prompt": …, "completion": …}`, the oldest one.
    Completion,
}

impl RowFormat {
    /// What OpenAI's messages call it. Only `fine-tune-chat` is recorded; the others are formed alike.
    pub fn name(self) -> &'static str {
        match self {
            RowFormat::Chat => "fine-tune-chat",
            RowFormat::Preference => "fine-tune-preference",
            RowFormat::UnpairedPreference => "fine-tune-unpaired-preference",
            RowFormat::Reinforcement => "fine-tune-reinforcement",
            RowFormat::Completion => "fine-tune-completions",
        }
    }

    /// The `method.type` that trains on it.
    pub fn method(self) -> &'static str {
        match self {
            RowFormat::Chat | RowFormat::Completion => "supervised",
            RowFormat::Preference | RowFormat::UnpairedPreference => "dpo",
            RowFormat::Reinforcement => "reinforcement",
        }
    }

    /// How to train on it.
    pub fn training(self) -> String {
        let method = self.method();
        match self {
            RowFormat::Preference => {
                format!("method '{method}' and an x_loss_type other than 'kto'")
            }
            RowFormat::UnpairedPreference => format!("method '{method}' and x_loss_type 'kto'"),
            _ => format!("method '{method}'"),
        }
    }
}

/// What the rows of a file should be, and how they are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    pub format: RowFormat,
    pub written: DataFormat,
}

impl Expected {
    /// What a job reads; with a `preference` it trains on pairs of answers, or on judged ones.
    pub fn of(preference: Option<&Preference>, data: &Data) -> Self {
        let format = match (preference, data.format) {
            (Some(preference), _) if preference.loss_type.is_unpaired() => {
                RowFormat::UnpairedPreference
            }
            (Some(_), _) => RowFormat::Preference,
            (None, DataFormat::PromptCompletion) => RowFormat::Completion,
            (None, _) => RowFormat::Chat,
        };
        Self {
            format,
            written: data.format,
        }
    }
}

/// As OpenAI writes them.
impl From<RowFormat> for Expected {
    fn from(format: RowFormat) -> Self {
        let written = match format {
            RowFormat::Completion => DataFormat::PromptCompletion,
            _ => DataFormat::Chat,
        };
        Self { format, written }
    }
}

/// One row of a training file.
#[derive(Debug, Clone, PartialEq)]
pub enum TrainingExample {
    Chat(ChatExample),
    Preference(PreferenceExample),
    Unpaired(UnpairedExample),
    Reinforcement(ReinforcementExample),
    Completion { prompt: String, completion: String },
}

/// A conversation whose assistant turns are learned.
/// Invariant: `trained.len() == messages.len()`, and `trained[i]` only where `messages[i]` is an assistant's.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatExample {
    pub messages: Vec<ChatMessage>,
    /// Whether message `i` gets loss: an assistant message whose `weight` is not 0.
    pub trained: Vec<bool>,
    /// As given; the deprecated `functions` are wrapped as tools of type `function`.
    pub tools: Vec<Value>,
    pub parallel_tool_calls: Option<bool>,
}

/// A prompt with a better and a worse answer.
#[derive(Debug, Clone, PartialEq)]
pub struct PreferenceExample {
    pub messages: Vec<ChatMessage>,
    pub tools: Vec<Value>,
    pub parallel_tool_calls: Option<bool>,
    pub preferred: ChatMessage,
    pub non_preferred: ChatMessage,
}

/// A conversation whose last message is an answer that was judged, the only one that is learned.
#[derive(Debug, Clone, PartialEq)]
pub struct UnpairedExample {
    pub chat: ChatExample,
    /// Whether the answer is a good one.
    pub label: bool,
}

/// A prompt whose answer a grader judges with the help of `item`.
#[derive(Debug, Clone, PartialEq)]
pub struct ReinforcementExample {
    pub messages: Vec<ChatMessage>,
    pub tools: Vec<Value>,
    /// Every further key of the row; graders say `{{item.key}}`.
    pub item: serde_json::Map<String, Value>,
}

/// A row that was read, with its place.
#[derive(Debug, Clone, PartialEq)]
pub struct NumberedExample {
    /// 1-based, counting every line.
    pub line: u64,
    /// 1-based, counting lines that are not blank.
    pub number: u64,
    /// Of the row's first byte, from the start of the file.
    pub byte_offset: u64,
    /// A hash of the row's bytes: equal rows have equal ones, and different rows hardly ever.
    pub fingerprint: u64,
    /// JSON pointer to what the row says: where an error stands that is found when it is rendered.
    pub place: &'static str,
    pub example: TrainingExample,
}

/// What is wrong with one line. `line` 1-based over all lines, `example` 1-based over the lines that are not blank.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, byte {byte_offset}, at '{pointer}': {reason}")]
pub struct LineError {
    pub line: u64,
    pub example: u64,
    /// From the start of the file, 0-based: where reading found the error.
    pub byte_offset: u64,
    /// JSON pointer into the row; empty for the row itself.
    pub pointer: String,
    /// Reads after "Example 5, message 2 ".
    pub reason: String,
    pub kind: LineErrorKind,
}

/// The kinds of errors that OpenAI words differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LineErrorKind {
    /// No row format is recognised.
    UnexpectedFormat,
    /// A row of another method.
    WrongFormat(RowFormat),
    /// A row that is written in another format than `x_training.data.format` says.
    WrittenAs(DataFormat),
    InvalidUtf8,
    Nul,
    InvalidJson,
    LineTooLong,
    TooDeep,
    TooManyBlankLines,
    DuplicateKey,
    /// An unknown key at the top of the row.
    ExtraKey,
    MissingKey,
    MissingRole,
    InvalidRole,
    /// A turn of a conversation from nobody, or from somebody who is not known.
    UnknownSpeaker,
    InvalidWeight,
    InvalidValue,
    Unsupported,
    TooLarge,
    NoAssistant,
    NothingToTrain,
    /// More tokens than are trained on, found when it was tokenized.
    TooLong,
    /// The chat template does not take it.
    NotRendered,
}

/// An error inside a row, before the line's place is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowError {
    /// Within the row, 0-based.
    pub byte_offset: u64,
    pub pointer: String,
    pub reason: String,
    pub kind: LineErrorKind,
}
