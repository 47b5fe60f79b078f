//! What a file's rows are for a model: read, rendered, tokenized and counted as training will do it, on several threads,
//! in constant memory.

use std::io::{self, BufRead};
use std::num::NonZeroUsize;

use domain::error::JobError;
use domain::event::{Level, NewEvent};
use domain::id::FileId;
use domain::method::Method;
use domain::x_training::Data;

use crate::chat_model::{ChatModel, Fitted, FittedPair, RenderError, TokenizedExample};
use crate::dataset::{Row, read_rows};
use crate::formats::{
    Expected, LineError, LineErrorKind, NumberedExample, RowFormat, TrainingExample,
};
use crate::report::{DatasetReport, FileRole};

/// What was found in a file.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    pub report: DatasetReport,
    /// Lines that are not blank.
    pub n_rows: u64,
    /// Tokens of all examples, once.
    pub n_tokens: u64,
    /// Tokens of the longest example.
    pub longest: u64,
    /// Tokens of what shares a pass of a training at most: an example, both answers of a pair, or a prompt with another row's answer.
    pub longest_together: u64,
    /// Of rows with judged answers, those whose answer is a good one.
    pub n_desirable: Option<u64>,
    /// Rows that are too long, by what becomes of them.
    pub n_cut: u64,
    pub n_split: u64,
    pub n_dropped: u64,
}

/// A good row, and what of it is learned.
pub struct Seen<'a> {
    pub row: &'a NumberedExample,
    /// Tokens.
    pub n_labels: u64,
}

/// Whoever looks at the good rows while a file is checked.
pub trait See {
    fn see(&mut self, seen: Seen);
}

/// Nobody.
impl See for () {
    fn see(&mut self, _seen: Seen) {}
}

/// Reads a file of rows as `expected` to its end; `see` has the good ones in their order, on this thread.
/// Errors: the reader's.
pub fn check(
    reader: impl BufRead,
    expected: Expected,
    model: &ChatModel,
    data: &Data,
    n_threads: NonZeroUsize,
    see: &mut impl See,
) -> io::Result<Found> {
    let mut found = Found {
        n_desirable: (expected.format == RowFormat::UnpairedPreference).then_some(0),
        ..Found::default()
    };
    let mut mismatched = Mismatched::default();
    let count = |row: Row| {
        let row = row?;
        let counts = Counts::of(&row, model, data)?;
        Ok((row, counts))
    };
    let add = |counted: Result<(NumberedExample, Counts), LineError>| {
        found.n_rows += 1;
        match counted {
            Ok((row, counts)) => {
                found.add(&counts);
                mismatched.add(&counts);
                see.see(Seen {
                    row: &row,
                    n_labels: counts.n_labels,
                });
            }
            Err(error) => found.report.add_error(error),
        }
    };
    read_rows(reader, expected, n_threads, count, add)?;
    let max_length = model.context_length().min(data.max_length as usize) as u64;
    let mismatched = mismatched.longest().min(max_length);
    found.longest_together = found.longest_together.max(mismatched);
    Ok(found)
}

/// What a row becomes.
#[derive(Default)]
struct Counts {
    n_examples: u64,
    n_tokens: u64,
    longest: u64,
    longest_together: u64,
    n_labels: u64,
    judged: Option<Judged>,
    length: Length,
}

/// An answer that was judged.
struct Judged {
    is_desirable: bool,
    /// Tokens before the first label.
    n_prompt: u64,
    /// The other ones.
    n_answer: u64,
}

/// The longest prompt and the longest answer that was judged: a loss over judged answers puts one behind the other. Tokens.
#[derive(Default)]
struct Mismatched {
    prompt: u64,
    answer: u64,
}

impl Mismatched {
    fn add(&mut self, counts: &Counts) {
        if let Some(judged) = &counts.judged {
            self.prompt = self.prompt.max(judged.n_prompt);
            self.answer = self.answer.max(judged.n_answer);
        }
    }

    fn longest(&self) -> u64 {
        self.prompt + self.answer
    }
}

#[derive(Default)]
enum Length {
    #[default]
    Fits,
    Cut,
    Split,
    Dropped,
}

impl Counts {
    /// Errors: the row cannot be trained on.
    fn of(row: &NumberedExample, model: &ChatModel, data: &Data) -> Result<Self, LineError> {
        let counts = match &row.example {
            TrainingExample::Preference(pair) => model
                .fit_pair(pair, data)
                .map(|fitted| Self::of_pair(&fitted)),
            TrainingExample::Unpaired(unpaired) => model
                .fit(&row.example, data)
                .map(|fitted| Self::of_judged(&fitted, unpaired.label)),
            example => model
                .fit(example, data)
                .map(|fitted| Self::of_fitted(&fitted)),
        };
        counts.map_err(|error| untrainable(row, &error))
    }

    fn of_fitted(fitted: &Fitted) -> Self {
        let mut counts = Self {
            length: match fitted {
                Fitted::Whole(_) => Length::Fits,
                Fitted::Cut(_) => Length::Cut,
                Fitted::Split(_) => Length::Split,
                Fitted::Dropped => Length::Dropped,
            },
            ..Self::default()
        };
        for example in fitted.examples() {
            counts.n_examples += 1;
            counts.add(example);
        }
        counts
    }

    fn of_judged(fitted: &Fitted, is_desirable: bool) -> Self {
        let judged = fitted.examples().first().map(|example| {
            let n_prompt = example.n_prompt();
            Judged {
                is_desirable,
                n_prompt: n_prompt as u64,
                n_answer: (example.tokens.len() - n_prompt) as u64,
            }
        });
        Self {
            judged,
            ..Self::of_fitted(fitted)
        }
    }

    /// A pair is one example.
    fn of_pair(fitted: &FittedPair) -> Self {
        let mut counts = Self {
            length: match fitted {
                FittedPair::Whole(_) => Length::Fits,
                FittedPair::Cut(_) => Length::Cut,
                FittedPair::Dropped => Length::Dropped,
            },
            ..Self::default()
        };
        if let Some(pair) = fitted.pair() {
            counts.n_examples = 1;
            counts.add(&pair.preferred);
            counts.add(&pair.non_preferred);
            counts.longest_together = counts.n_tokens;
        }
        counts
    }

    fn add(&mut self, example: &TokenizedExample) {
        let n_tokens = example.tokens.len() as u64;
        self.n_tokens += n_tokens;
        self.longest = self.longest.max(n_tokens);
        self.longest_together = self.longest_together.max(n_tokens);
        self.n_labels += example.n_labels() as u64;
    }
}

fn untrainable(row: &NumberedExample, error: &RenderError) -> LineError {
    let reason = match error {
        RenderError::TooLong { .. } => error.to_string(),
        _ => format!("cannot be trained on: {error}"),
    };
    let kind = match error {
        RenderError::TooLong { .. } | RenderError::NothingLeft(_) => LineErrorKind::TooLong,
        _ => LineErrorKind::NotRendered,
    };
    LineError {
        line: row.line,
        example: row.number,
        byte_offset: row.byte_offset,
        pointer: row.place.to_owned(),
        reason,
        kind,
    }
}

impl Found {
    fn add(&mut self, counts: &Counts) {
        self.report.n_examples += counts.n_examples;
        self.n_tokens += counts.n_tokens;
        self.longest = self.longest.max(counts.longest);
        self.longest_together = self.longest_together.max(counts.longest_together);
        if let (Some(n_desirable), Some(judged)) = (&mut self.n_desirable, &counts.judged) {
            *n_desirable += u64::from(judged.is_desirable);
        }
        match counts.length {
            Length::Fits => {}
            Length::Cut => self.n_cut += 1,
            Length::Split => self.n_split += 1,
            Length::Dropped => self.n_dropped += 1,
        }
    }

    /// Nobody should find out from a result that their data was shortened, or says of every answer the same.
    pub fn notices(&self, role: FileRole, data: &Data) -> Vec<NewEvent> {
        let notice = |n: u64, what: &str| {
            let (param, max_length) = (role.param(), data.max_length);
            let message = format!(
                "{n} example(s) of the {param} with more than {max_length} tokens were {what}"
            );
            (n > 0).then(|| NewEvent::message(Level::Warn, message))
        };
        let notices = [
            notice(self.n_cut, "cut"),
            notice(self.n_split, "split"),
            notice(self.n_dropped, "left out"),
            self.one_label(role),
        ];
        notices.into_iter().flatten().collect()
    }

    fn one_label(&self, role: FileRole) -> Option<NewEvent> {
        let n = self.report.n_examples;
        let label = match self.n_desirable? {
            _ if n == 0 => return None,
            0 => false,
            n_desirable if n_desirable == n => true,
            _ => return None,
        };
        let param = role.param();
        let message = format!(
            "all {n} example(s) of the {param} have the label {label}; 'kto' learns from good answers beside bad ones"
        );
        Some(NewEvent::message(Level::Warn, message))
    }

    /// Why a job on the file must fail.
    pub fn error(&self, role: FileRole, file: &FileId, method: &Method) -> Option<JobError> {
        self.report.job_error(role, file.as_str(), method.name())
    }
}
