//! One file, row by row, in constant memory.

use std::io::{self, BufRead, Read};

use bytes::{Buf, Bytes};
use domain::error::JobError;
use domain::event::{Level, NewEvent};
use domain::x_training::Data;
use futures::StreamExt;
use platform::objects::ByteStream;
use text::chat_model::{ChatModel, Fitted, FittedPair, RenderError};
use text::dataset::DatasetReader;
use text::formats::{LineError, LineErrorKind, NumberedExample, RowFormat, TrainingExample};
use text::report::{DatasetReport, FileRole};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

/// What was found in a file.
#[derive(Debug, Default)]
pub(super) struct Found {
    report: DatasetReport,
    n_tokens: u64,
    longest: u64,
    n_cut: u64,
    n_split: u64,
    n_dropped: u64,
}

/// A file with its verdict.
#[derive(Debug)]
pub(super) struct Checked {
    pub n_examples: u64,
    /// Tokens of all examples, once.
    pub n_tokens: u64,
    /// Tokens of the longest example.
    pub longest: u64,
    /// Why the job must fail.
    pub error: Option<JobError>,
    /// One for each bad line.
    pub events: Vec<NewEvent>,
    /// What is trained otherwise than it stands in the file.
    pub notices: Vec<NewEvent>,
}

/// Reads `body` to its end and tokenizes every row as training will. Blocks: it computes, and it
/// waits for the object store. Errors: the body's own, or that `stop` was cancelled.
pub(super) fn check(
    body: ByteStream,
    format: RowFormat,
    model: &ChatModel,
    data: &Data,
    stop: &CancellationToken,
) -> io::Result<Found> {
    let reader = Blocking {
        body,
        handle: Handle::current(),
        chunk: Bytes::new(),
    };
    let mut found = Found::default();
    for (row, example) in DatasetReader::new(reader, format).zip(1..) {
        if stop.is_cancelled() {
            return Err(io::Error::other("the scheduler is shutting down"));
        }
        let row = row?;
        found.report.add(&row);
        if let Ok(row) = row {
            found.tokenize(&row, example, model, data);
        }
    }
    Ok(found)
}

impl Found {
    /// Conversations and pairs of answers; other rows belong to methods that are not trained yet.
    fn tokenize(&mut self, row: &NumberedExample, example: u64, model: &ChatModel, data: &Data) {
        let (counted, pointer) = match &row.example {
            TrainingExample::Chat(_) => {
                let fitted = model.fit(&row.example, data);
                (fitted.map(|fitted| self.count(&fitted)), "/messages")
            }
            TrainingExample::Preference(pair) => {
                let fitted = model.fit_pair(pair, data);
                (
                    fitted.map(|fitted| self.count_pair(&fitted)),
                    "/input/messages",
                )
            }
            TrainingExample::Reinforcement(_) | TrainingExample::Completion { .. } => return,
        };
        match counted {
            Ok(()) => {}
            Err(error) => self.report.add_late_error(LineError {
                line: row.line,
                example,
                byte_offset: 0,
                pointer: pointer.to_owned(),
                reason: match error {
                    RenderError::TooLong { .. } => error.to_string(),
                    _ => format!("cannot be trained on: {error}"),
                },
                kind: LineErrorKind::InvalidValue,
            }),
        }
    }

    /// The report has counted a row as an example already.
    fn count(&mut self, fitted: &Fitted) {
        let examples = fitted.examples();
        self.report.n_examples = self.report.n_examples - 1 + examples.len() as u64;
        examples
            .iter()
            .for_each(|example| self.count_tokens(example.tokens.len()));
        match fitted {
            Fitted::Whole(_) => {}
            Fitted::Cut(_) => self.n_cut += 1,
            Fitted::Split(_) => self.n_split += 1,
            Fitted::Dropped => self.n_dropped += 1,
        }
    }

    /// As [`Self::count`]: a pair is one example.
    fn count_pair(&mut self, fitted: &FittedPair) {
        if let Some(pair) = fitted.pair() {
            self.count_tokens(pair.preferred.tokens.len());
            self.count_tokens(pair.non_preferred.tokens.len());
        }
        match fitted {
            FittedPair::Whole(_) => {}
            FittedPair::Cut(_) => self.n_cut += 1,
            FittedPair::Dropped => {
                self.n_dropped += 1;
                self.report.n_examples -= 1;
            }
        }
    }

    fn count_tokens(&mut self, n_tokens: usize) {
        self.n_tokens += n_tokens as u64;
        self.longest = self.longest.max(n_tokens as u64);
    }

    /// Nobody should find out from a result that their data was shortened.
    fn notices(&self, role: FileRole, data: &Data) -> Vec<NewEvent> {
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
        ];
        notices.into_iter().flatten().collect()
    }

    pub(super) fn judge(self, role: FileRole, file_id: &str, method: &str, data: &Data) -> Checked {
        Checked {
            notices: self.notices(role, data),
            n_examples: self.report.n_examples,
            n_tokens: self.n_tokens,
            longest: self.longest,
            error: self.report.job_error(role, file_id, method),
            events: self.report.events(role),
        }
    }
}

/// An object's bytes for a thread that may wait; one chunk is held at a time.
struct Blocking {
    body: ByteStream,
    handle: Handle,
    chunk: Bytes,
}

impl BufRead for Blocking {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.chunk.is_empty() {
            match self.handle.block_on(self.body.next()) {
                Some(chunk) => self.chunk = chunk?,
                None => break,
            }
        }
        Ok(&self.chunk)
    }

    fn consume(&mut self, n_bytes: usize) {
        self.chunk.advance(n_bytes);
    }
}

impl Read for Blocking {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n_bytes = self.fill_buf()?.read(buffer)?;
        self.consume(n_bytes);
        Ok(n_bytes)
    }
}
