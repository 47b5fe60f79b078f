//! The file of a batch's requests: read in pieces, judged line by line, and found again by where each line stands.

use std::collections::HashSet;

use bytes::{Bytes, BytesMut};
use domain::batch::{BatchEndpoint, LineError, MAX_REQUESTS};
use futures::TryStreamExt;
use platform::objects::{Objects, ObjectsError};

use crate::body::MAX_JSON_BYTES;
use crate::error::ApiError;
use crate::wire::batches::RequestLine;
use crate::wire::decode::echo;

/// Read at once: a request of hours would be cut off by the bucket. Bytes.
const PIECE: u64 = 1 << 20;
/// More would not be read by anyone.
const MAX_ERRORS: usize = 100;

/// The object that holds the requests.
#[derive(Clone)]
pub struct Input {
    pub objects: Objects,
    pub key: String,
    pub size_bytes: u64,
}

/// Where a line stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// From 1.
    pub number: u32,
    /// Bytes, the line break excluded.
    pub start: u64,
    pub end: u64,
}

/// Why the input cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    #[error(transparent)]
    Objects(#[from] ObjectsError),
    #[error("the input broke off: {0}")]
    Read(#[from] std::io::Error),
    #[error("line {0} is longer than {MAX_JSON_BYTES} bytes")]
    TooLong(u32),
}

impl Input {
    /// The lines that are not blank, in order.
    pub fn lines(&self) -> Lines {
        Lines {
            input: self.clone(),
            buffer: BytesMut::new(),
            start: 0,
            number: 0,
        }
    }

    /// A line that was seen before.
    pub async fn line(&self, span: Span) -> Result<Bytes, InputError> {
        self.range(span.start, span.end).await
    }

    async fn range(&self, start: u64, end: u64) -> Result<Bytes, InputError> {
        let pieces = self.objects.get_range(&self.key, start, end).await?;
        let whole = pieces.try_fold(BytesMut::new(), |mut whole, piece| async move {
            whole.extend_from_slice(&piece);
            Ok(whole)
        });
        Ok(whole.await?.freeze())
    }
}

pub struct Lines {
    input: Input,
    /// What was read and is not yet given out; begins at `start` of the object.
    buffer: BytesMut,
    start: u64,
    /// Of the last line that was given out.
    number: u32,
}

impl Lines {
    /// The next line that is not blank. In memory is at most one, and a piece.
    pub async fn next(&mut self) -> Result<Option<(Span, Bytes)>, InputError> {
        while let Some((span, line)) = self.next_even_blank().await? {
            if !line.trim_ascii().is_empty() {
                return Ok(Some((span, line)));
            }
        }
        Ok(None)
    }

    async fn next_even_blank(&mut self) -> Result<Option<(Span, Bytes)>, InputError> {
        loop {
            let read_to = self.start + self.buffer.len() as u64;
            let is_last = read_to >= self.input.size_bytes;
            let line_break = memchr::memchr(b'\n', &self.buffer);
            let (length, skipped) = match line_break {
                Some(length) => (length, length + 1),
                None if is_last && self.buffer.is_empty() => return Ok(None),
                None if is_last => (self.buffer.len(), self.buffer.len()),
                None if self.buffer.len() > MAX_JSON_BYTES => {
                    return Err(InputError::TooLong(self.number + 1));
                }
                None => {
                    let end = (read_to + PIECE).min(self.input.size_bytes);
                    let piece = self.input.range(read_to, end).await?;
                    self.buffer.extend_from_slice(&piece);
                    continue;
                }
            };
            self.number += 1;
            let span = Span {
                number: self.number,
                start: self.start,
                end: self.start + length as u64,
            };
            let line = self.buffer.split_to(skipped).freeze().slice(..length);
            self.start += skipped as u64;
            return Ok(Some((span, line)));
        }
    }
}

/// What a file of requests turned out to be.
#[derive(Debug, PartialEq)]
pub enum Verdict {
    Good { total: u64, model: String },
    Bad(Vec<LineError>),
}

/// Judges every line. Errors: the file cannot be read.
pub async fn judge(input: &Input, endpoint: BatchEndpoint) -> Result<Verdict, InputError> {
    let (mut lines, mut seen) = (input.lines(), Seen::default());
    loop {
        match lines.next().await {
            Ok(Some((span, line))) => seen.judge(span.number, &line, endpoint),
            Ok(None) => break,
            Err(InputError::TooLong(number)) => {
                let message = format!("This line is longer than {MAX_JSON_BYTES} bytes.");
                seen.refuse(Some(number), "line_too_long", message);
                break;
            }
            Err(error) => return Err(error),
        }
        if seen.errors.len() >= MAX_ERRORS || seen.total > MAX_REQUESTS {
            break;
        }
    }
    Ok(seen.verdict())
}

/// What the lines so far held.
#[derive(Default)]
struct Seen {
    total: u64,
    custom_ids: HashSet<String>,
    model: Option<String>,
    errors: Vec<LineError>,
}

impl Seen {
    fn judge(&mut self, number: u32, line: &[u8], endpoint: BatchEndpoint) {
        self.total += 1;
        let judged = RequestLine::decode(line, endpoint).and_then(|request| self.among(request));
        if let Err(error) = judged {
            self.errors.push(LineError {
                code: error.code.unwrap_or("invalid_request").to_owned(),
                message: error.message,
                param: error.param,
                line: Some(number),
            });
        }
    }

    /// Judges a line by those before it.
    fn among(&mut self, request: RequestLine) -> Result<(), ApiError> {
        let model = self.model.get_or_insert_with(|| request.model.clone());
        if *model != request.model {
            let message = format!(
                "All requests of a batch must name the same model: this one names '{}', the first one '{}'.",
                echo(&request.model),
                echo(model)
            );
            let error = ApiError::invalid("body.model", "mismatched_model", message);
            return Err(error);
        }
        if self.custom_ids.contains(&request.custom_id) {
            let message = format!(
                "The custom_id '{}' stands in an earlier line, too: each request needs its own.",
                echo(&request.custom_id)
            );
            let error = ApiError::invalid("custom_id", "duplicate_custom_id", message);
            return Err(error);
        }
        self.custom_ids.insert(request.custom_id);
        Ok(())
    }

    fn refuse(&mut self, line: Option<u32>, code: &str, message: impl Into<String>) {
        self.errors.push(LineError {
            code: code.to_owned(),
            message: message.into(),
            param: None,
            line,
        });
    }

    fn verdict(mut self) -> Verdict {
        if self.total > MAX_REQUESTS {
            let message = format!("The input file has more than {MAX_REQUESTS} requests.");
            self.refuse(None, "too_many_requests", message);
        }
        match self.model {
            Some(model) if self.errors.is_empty() => Verdict::Good {
                total: self.total,
                model,
            },
            None if self.errors.is_empty() => {
                let message = "The input file is empty: a batch needs at least one request.";
                self.refuse(None, "empty_file", message);
                Verdict::Bad(self.errors)
            }
            _ => Verdict::Bad(self.errors),
        }
    }
}

#[cfg(test)]
mod tests {
    use platform::config::ObjectsConfig;

    use super::*;

    async fn input(directory: &tempfile::TempDir, content: &str) -> Input {
        let config = ObjectsConfig {
            url: format!("file://{}", directory.path().display()),
            ..ObjectsConfig::default()
        };
        let objects = Objects::open(&config).unwrap();
        let content = Bytes::copy_from_slice(content.as_bytes());
        let stored = objects.put_bytes("input", content).await.unwrap();
        Input {
            objects,
            key: "input".to_owned(),
            size_bytes: stored.size_bytes,
        }
    }

    fn line(custom_id: &str, model: &str) -> String {
        let body = format!(r#"{{"model": "{model}"}}"#);
        format!(
            r#"{{"custom_id": "{custom_id}", "method": "POST", "url": "/v1/completions", "body": {body}}}"#
        )
    }

    async fn errors(content: &str) -> Vec<(String, Option<u32>)> {
        let directory = tempfile::tempdir().unwrap();
        let input = input(&directory, content).await;
        match judge(&input, BatchEndpoint::Completions).await.unwrap() {
            Verdict::Good { .. } => Vec::new(),
            Verdict::Bad(errors) => errors.into_iter().map(|e| (e.code, e.line)).collect(),
        }
    }

    #[tokio::test]
    async fn every_line_is_found_again_wherever_the_pieces_end() {
        let directory = tempfile::tempdir().unwrap();
        let long = "x".repeat(PIECE as usize * 3 / 2);
        let input = input(&directory, &format!("a\r\n\n  \n{long}\nlast")).await;
        let mut lines = input.lines();
        let mut found = Vec::new();
        while let Some((span, line)) = lines.next().await.unwrap() {
            assert_eq!(input.line(span).await.unwrap(), line);
            found.push((span.number, line.trim_ascii().len()));
        }
        assert_eq!(found, [(1, 1), (4, long.len()), (5, 4)]);
    }

    #[tokio::test]
    async fn a_good_file_has_one_model_and_its_own_name_for_each_request() {
        let content = format!("{}\n\n{}\n", line("a", "m"), line("b", "m"));
        let directory = tempfile::tempdir().unwrap();
        let input = input(&directory, &content).await;
        let verdict = judge(&input, BatchEndpoint::Completions).await.unwrap();
        let model = "m".to_owned();
        assert_eq!(verdict, Verdict::Good { total: 2, model });
    }

    #[tokio::test]
    async fn what_is_wrong_with_a_file_is_said_line_by_line() {
        let content = [
            &line("a", "m"),
            "{",
            &line("a", "m"),
            &line("b", "other"),
            "",
        ];
        let expected = [
            ("invalid_json_line".to_owned(), Some(2)),
            ("duplicate_custom_id".to_owned(), Some(3)),
            ("mismatched_model".to_owned(), Some(4)),
        ];
        assert_eq!(errors(&content.join("\n")).await, expected);
        for empty in ["", "\n \n"] {
            assert_eq!(errors(empty).await, [("empty_file".to_owned(), None)]);
        }
        assert_eq!(errors(&"{\n".repeat(300)).await.len(), MAX_ERRORS);
    }

    #[tokio::test]
    async fn a_file_of_too_many_requests_is_refused() {
        let lines = |n: u64| {
            (0..n)
                .map(|i| line(&i.to_string(), "m") + "\n")
                .collect::<String>()
        };
        assert_eq!(errors(&lines(MAX_REQUESTS)).await, []);
        let one = ("too_many_requests".to_owned(), None);
        assert_eq!(errors(&lines(MAX_REQUESTS + 1)).await, [one]);
    }
}
