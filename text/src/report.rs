//! What a reader found in a file, in OpenAI's words: the job's `error`, and one event per bad line.

use domain::error::JobError;
use domain::event::{EventType, Level, NewEvent};
use domain::x_training::DataFormat;
use serde_json::json;

use crate::dataset::Row;
use crate::formats::{LineError, LineErrorKind};

/// The fewest examples a training file may have: OpenAI's limit.
pub const MIN_TRAINING_EXAMPLES: u64 = 10;

/// How many bad lines are named one by one; the rest is counted.
pub const MAX_ERRORS: usize = 100;

/// Which of a job's two files was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileRole {
    Training,
    Validation,
}

impl FileRole {
    fn noun(self) -> &'static str {
        match self {
            FileRole::Training => "training",
            FileRole::Validation => "validation",
        }
    }

    fn title(self) -> &'static str {
        match self {
            FileRole::Training => "Training",
            FileRole::Validation => "Validation",
        }
    }

    /// The job's field that names the file.
    pub fn param(self) -> &'static str {
        match self {
            FileRole::Training => "training_file",
            FileRole::Validation => "validation_file",
        }
    }

    fn min_examples(self) -> u64 {
        match self {
            FileRole::Training => MIN_TRAINING_EXAMPLES,
            FileRole::Validation => 1,
        }
    }
}

/// The count of good rows, and the first [`MAX_ERRORS`] bad ones.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DatasetReport {
    pub n_examples: u64,
    pub errors: Vec<LineError>,
    /// All of them, also those that `errors` has no room for.
    pub n_errors: u64,
}

impl DatasetReport {
    /// Counts one row.
    pub fn add(&mut self, row: &Row) {
        match row {
            Ok(_) => self.n_examples += 1,
            Err(error) => self.add_error(error.clone()),
        }
    }

    /// Counts a line that cannot be trained on.
    pub fn add_error(&mut self, error: LineError) {
        self.n_errors += 1;
        if self.errors.len() < MAX_ERRORS {
            self.errors.push(error);
        }
    }

    /// Why the job must fail, or `None` if the file is good. `method` is the job's `method.type`.
    pub fn job_error(&self, role: FileRole, file_id: &str, method: &str) -> Option<JobError> {
        let Some(first) = self.errors.first() else {
            return self.too_few(role);
        };
        let noun = role.noun();
        let (code, mut message) = match first.kind {
            LineErrorKind::ExtraKey => (
                "invalid_file_format".to_owned(),
                format!("The job failed due to a file format error in the {noun} file. "),
            ),
            _ => (
                format!("invalid_{noun}_file"),
                format!("The job failed due to an invalid {noun} file. "),
            ),
        };
        message.push_str(&describe(first, file_id, method));
        if self.n_errors > 1 && !is_about_the_file(first) {
            let more = self.n_errors - 1;
            message.push_str(&format!(
                " ({more} more wrong; the job's events name the lines)"
            ));
        }
        Some(JobError {
            code,
            message,
            param: Some(role.param().to_owned()),
        })
    }

    fn too_few(&self, role: FileRole) -> Option<JobError> {
        let min = role.min_examples();
        if self.n_examples >= min {
            return None;
        }
        let message = format!(
            "{} file has {} example(s), but must have at least {min} examples",
            role.title(),
            self.n_examples
        );
        let code = "invalid_n_examples".to_owned();
        Some(JobError {
            code,
            message,
            param: Some(role.param().to_owned()),
        })
    }

    /// One event of level error per bad line, and one with the count if there are more.
    pub fn events(&self, role: FileRole) -> Vec<NewEvent> {
        let mut events: Vec<NewEvent> = self
            .errors
            .iter()
            .map(|error| line_event(error, role))
            .collect();
        if self.n_errors > self.errors.len() as u64 {
            let message = format!(
                "{} lines of the {} file are invalid; the first {} are listed",
                self.n_errors,
                role.noun(),
                self.errors.len()
            );
            events.push(NewEvent::message(Level::Error, message));
        }
        events
    }
}

fn line_event(error: &LineError, role: FileRole) -> NewEvent {
    let place = match error.pointer.as_str() {
        "" => String::new(),
        pointer => format!(" at {pointer}"),
    };
    NewEvent {
        level: Level::Error,
        event_type: EventType::Message,
        message: format!(
            "Invalid {} file: line {}{place} {}",
            role.noun(),
            error.line,
            error.reason
        ),
        data: json!({
            "file": role.param(),
            "line": error.line,
            "byte_offset": error.byte_offset,
            "pointer": error.pointer,
            "reason": error.reason,
        }),
    }
}

/// Whether the error says something of the whole file, because its first row is of another kind.
fn is_about_the_file(error: &LineError) -> bool {
    let kinds = matches!(
        error.kind,
        LineErrorKind::WrongFormat(_)
            | LineErrorKind::UnexpectedFormat
            | LineErrorKind::WrittenAs(_)
    );
    error.example == 1 && kinds
}

fn describe(error: &LineError, file_id: &str, method: &str) -> String {
    match error.kind {
        LineErrorKind::UnexpectedFormat if error.example == 1 => {
            "Unexpected file format, expected either prompt/completion pairs or chat messages."
                .to_owned()
        }
        LineErrorKind::WrittenAs(found) if error.example == 1 => written_as(found, file_id),
        LineErrorKind::WrongFormat(found) if error.example == 1 && found.method() == method => {
            format!(
                "Invalid file format. Input file {file_id} is in the {} format, which needs {}.",
                found.name(),
                found.training()
            )
        }
        LineErrorKind::WrongFormat(found) if error.example == 1 => format!(
            "Invalid file format. Input file {file_id} is in the {} format, but the specified fine-tuning job is not using '{}' as the training method (provided method={method}).",
            found.name(),
            found.method()
        ),
        LineErrorKind::InvalidJson => format!(
            "Invalid file format. Example {} {} (line {})",
            error.example, error.reason, error.line
        ),
        LineErrorKind::TooManyBlankLines => {
            format!("Invalid file format. Line {} {}.", error.line, error.reason)
        }
        LineErrorKind::ExtraKey | LineErrorKind::MissingKey => {
            format!(
                "Invalid file format. Example {} {}.",
                error.example, error.reason
            )
        }
        _ => {
            let place = message_number(&error.pointer)
                .map_or(String::new(), |number| format!(", message {number}"));
            format!(
                "Invalid file format. Example {}{place} {}",
                error.example, error.reason
            )
        }
    }
}

/// Differs: nothing is recorded of rows that other tools write, nor of prompts and completions for a model that chats.
fn written_as(found: DataFormat, file_id: &str) -> String {
    let why = match found {
        DataFormat::PromptCompletion => format!(
            "Invalid file format. Input file {file_id} is in the fine-tune-completions format, but the model is fine-tuned on chat messages."
        ),
        _ => "Unexpected file format, expected either prompt/completion pairs or chat messages."
            .to_owned(),
    };
    let found = found.as_str();
    format!("{why} The rows look like {found}; set x_training.data.format to \"{found}\".")
}

/// 1-based, of a pointer into `messages`, or into what other tools call them.
fn message_number(pointer: &str) -> Option<u64> {
    let lists = ["messages/", "conversations/", "conversation/"];
    let (_, rest) = lists.iter().find_map(|list| pointer.split_once(list))?;
    let digits = rest.split('/').next()?;
    digits.parse::<u64>().ok().map(|index| index + 1)
}
