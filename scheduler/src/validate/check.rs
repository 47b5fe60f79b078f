//! One file, row by row, in constant memory.

use std::io::{self, BufRead, Read};

use bytes::{Buf, Bytes};
use domain::error::JobError;
use domain::event::{Level, NewEvent};
use domain::id::FileId;
use domain::method::Method;
use domain::x_training::Data;
use futures::StreamExt;
use platform::objects::ByteStream;
use text::chat_model::{ChatModel, Fitted, FittedPair, RenderError, TokenizedExample};
use text::dataset::DatasetReader;
use text::formats::{LineError, LineErrorKind, NumberedExample, RowFormat, TrainingExample};
use text::report::{DatasetReport, FileRole};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

/// What was found in a file.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub report: DatasetReport,
    /// Lines that are not blank.
    pub n_rows: u64,
    /// Tokens of all examples, once.
    pub n_tokens: u64,
    /// Tokens of the longest example.
    pub longest: u64,
    /// Rows that are too long, by what becomes of them.
    pub n_cut: u64,
    pub n_split: u64,
    pub n_dropped: u64,
}

/// A good row, and what of it is learned.
pub(super) struct Seen<'a> {
    pub row: &'a NumberedExample,
    /// Tokens.
    pub n_labels: u64,
}

/// Whoever looks at the good rows while a file is judged.
pub(super) trait See: Send + 'static {
    fn see(&mut self, seen: Seen);
}

/// Nobody.
impl See for () {
    fn see(&mut self, _seen: Seen) {}
}

/// Reads `body` to its end and tokenizes every row as training will. Blocks: it computes, and it
/// waits for the object store. Errors: the body's own, or that `stop` was cancelled.
pub(super) fn check(
    body: ByteStream,
    format: RowFormat,
    model: &ChatModel,
    data: &Data,
    stop: &CancellationToken,
    see: &mut impl See,
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
        found.n_rows += 1;
        found.report.add(&row);
        if let Ok(row) = &row
            && let Some(n_labels) = found.tokenize(row, example, model, data)
        {
            see.see(Seen { row, n_labels });
        }
    }
    Ok(found)
}

impl Found {
    /// How many tokens of the row are learned; `None`: it cannot be trained on. Conversations and pairs of answers; other
    /// rows belong to methods that are not trained yet.
    fn tokenize(
        &mut self,
        row: &NumberedExample,
        example: u64,
        model: &ChatModel,
        data: &Data,
    ) -> Option<u64> {
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
            TrainingExample::Reinforcement(_) | TrainingExample::Completion { .. } => return None,
        };
        let error = match counted {
            Ok(n_labels) => return Some(n_labels),
            Err(error) => error,
        };
        let (reason, kind) = match &error {
            RenderError::TooLong { .. } => (error.to_string(), LineErrorKind::TooLong),
            RenderError::NothingLeft(_) => (untrainable(&error), LineErrorKind::TooLong),
            _ => (untrainable(&error), LineErrorKind::NotRendered),
        };
        self.report.add_late_error(LineError {
            line: row.line,
            example,
            byte_offset: row.byte_offset,
            pointer: pointer.to_owned(),
            reason,
            kind,
        });
        None
    }

    /// How many tokens are learned. The report has counted a row as an example already.
    fn count(&mut self, fitted: &Fitted) -> u64 {
        let examples = fitted.examples();
        self.report.n_examples = self.report.n_examples - 1 + examples.len() as u64;
        match fitted {
            Fitted::Whole(_) => {}
            Fitted::Cut(_) => self.n_cut += 1,
            Fitted::Split(_) => self.n_split += 1,
            Fitted::Dropped => self.n_dropped += 1,
        }
        examples
            .iter()
            .map(|example| self.count_tokens(example))
            .sum()
    }

    /// As [`Self::count`]: a pair is one example.
    fn count_pair(&mut self, fitted: &FittedPair) -> u64 {
        match fitted {
            FittedPair::Whole(_) => {}
            FittedPair::Cut(_) => self.n_cut += 1,
            FittedPair::Dropped => {
                self.n_dropped += 1;
                self.report.n_examples -= 1;
            }
        }
        fitted.pair().map_or(0, |pair| {
            self.count_tokens(&pair.preferred) + self.count_tokens(&pair.non_preferred)
        })
    }

    fn count_tokens(&mut self, example: &TokenizedExample) -> u64 {
        let n_tokens = example.tokens.len() as u64;
        self.n_tokens += n_tokens;
        self.longest = self.longest.max(n_tokens);
        example.n_labels() as u64
    }

    /// Nobody should find out from a result that their data was shortened.
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
        ];
        notices.into_iter().flatten().collect()
    }

    /// Why a job on the file must fail.
    pub fn error(&self, role: FileRole, file: &FileId, method: &Method) -> Option<JobError> {
        self.report.job_error(role, file.as_str(), method.name())
    }
}

fn untrainable(error: &RenderError) -> String {
    format!("cannot be trained on: {error}")
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
