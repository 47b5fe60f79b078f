//! One file, row by row, in constant memory.

use std::io::{self, BufRead, Read};

use bytes::{Buf, Bytes};
use domain::error::JobError;
use domain::event::NewEvent;
use futures::StreamExt;
use platform::objects::ByteStream;
use text::chat_model::ChatModel;
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
    n_truncated: u64,
}

/// A file with its verdict.
#[derive(Debug)]
pub(super) struct Checked {
    pub n_examples: u64,
    /// Tokens of all examples, once.
    pub n_tokens: u64,
    /// Tokens of the longest example.
    pub longest: u64,
    /// Examples longer than the context: trained without their ends.
    pub n_truncated: u64,
    /// Why the job must fail.
    pub error: Option<JobError>,
    /// One for each bad line.
    pub events: Vec<NewEvent>,
}

/// Reads `body` to its end and tokenizes every row as training will. Blocks: it computes, and it
/// waits for the object store. Errors: the body's own, or that `stop` was cancelled.
pub(super) fn check(
    body: ByteStream,
    format: RowFormat,
    model: &ChatModel,
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
            found.tokenize(&row, example, model);
        }
    }
    Ok(found)
}

impl Found {
    /// Only conversations have one text that is trained on; the others are not trained yet.
    fn tokenize(&mut self, row: &NumberedExample, example: u64, model: &ChatModel) {
        if !matches!(row.example, TrainingExample::Chat(_)) {
            return;
        }
        match model.example(&row.example) {
            Ok(tokenized) => {
                let n_tokens = tokenized.tokens.len() as u64;
                self.n_tokens += n_tokens;
                self.longest = self.longest.max(n_tokens);
                self.n_truncated += u64::from(tokenized.is_truncated);
            }
            Err(error) => self.report.add_late_error(LineError {
                line: row.line,
                example,
                byte_offset: 0,
                pointer: "/messages".to_owned(),
                reason: format!("cannot be trained on: {error}"),
                kind: LineErrorKind::InvalidValue,
            }),
        }
    }

    pub(super) fn judge(self, role: FileRole, file_id: &str, method: &str) -> Checked {
        Checked {
            n_examples: self.report.n_examples,
            n_tokens: self.n_tokens,
            longest: self.longest,
            n_truncated: self.n_truncated,
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
