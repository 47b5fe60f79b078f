//! A stream of bytes cut into rows, in constant memory. Validation, dry runs and training all read files through
//! here, so a file cannot validate as one thing and train as another.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hasher};
use std::io::{self, BufRead};

use crate::formats::{LineError, LineErrorKind, NumberedExample, RowError, RowFormat, parse_row};

/// The longest line that is read: an example of 65,536 tokens takes about 0.4 MB. Bytes.
pub const MAX_LINE_BYTES: usize = 8 << 20;

/// Blank lines a file may have; more is no training file.
pub const MAX_BLANK_LINES: u64 = 10_000;

const BOM: &[u8] = b"\xef\xbb\xbf";

/// One line that is not blank.
pub type Row = Result<NumberedExample, LineError>;

/// Rows out of chunks of bytes, however the stream is cut. A line that is wrong does not disturb the next one.
pub struct DatasetParser {
    format: RowFormat,
    /// The beginning of a line whose end has not come yet; at most [`MAX_LINE_BYTES`].
    pending: Vec<u8>,
    /// Of the first byte of `pending`, from the start of the file.
    byte_offset: u64,
    n_lines: u64,
    n_examples: u64,
    n_blank_lines: u64,
    /// The current line is too long and was reported.
    skipping: bool,
}

impl DatasetParser {
    /// For a file that should hold rows of `format`.
    pub fn new(format: RowFormat) -> Self {
        Self {
            format,
            pending: Vec::new(),
            byte_offset: 0,
            n_lines: 0,
            n_examples: 0,
            n_blank_lines: 0,
            skipping: false,
        }
    }

    /// Takes the next bytes and gives `sink` every row that ends in them.
    pub fn push(&mut self, chunk: &[u8], sink: &mut impl FnMut(Row)) {
        let mut rest = chunk;
        while let Some(end) = memchr::memchr(b'\n', rest) {
            let (line, after) = (&rest[..end], &rest[end + 1..]);
            if self.skipping {
                self.skipping = false;
                self.byte_offset += line.len() as u64 + 1;
            } else if self.pending.len() + line.len() > MAX_LINE_BYTES {
                self.refuse_long_line(sink);
                self.byte_offset += (self.pending.len() + line.len()) as u64 + 1;
                self.pending.clear();
                self.skipping = false;
            } else if self.pending.is_empty() {
                self.read_line(line, line.len() as u64 + 1, sink);
            } else {
                let mut whole = std::mem::take(&mut self.pending);
                whole.extend_from_slice(line);
                self.read_line(&whole, whole.len() as u64 + 1, sink);
                whole.clear();
                self.pending = whole;
            }
            rest = after;
        }
        self.keep(rest, sink);
    }

    /// Says that the file is at its end: the last line may lack its newline.
    pub fn finish(&mut self, sink: &mut impl FnMut(Row)) {
        let line = std::mem::take(&mut self.pending);
        if !line.is_empty() {
            self.read_line(&line, line.len() as u64, sink);
        }
        self.skipping = false;
    }

    /// Keeps the beginning of a line for later.
    fn keep(&mut self, start: &[u8], sink: &mut impl FnMut(Row)) {
        if !self.skipping && self.pending.len() + start.len() > MAX_LINE_BYTES {
            self.refuse_long_line(sink);
            self.byte_offset += self.pending.len() as u64;
            self.pending = Vec::new();
        }
        if self.skipping {
            self.byte_offset += start.len() as u64;
        } else {
            self.pending.extend_from_slice(start);
        }
    }

    fn refuse_long_line(&mut self, sink: &mut impl FnMut(Row)) {
        self.n_lines += 1;
        self.n_examples += 1;
        self.skipping = true;
        let reason = format!("is longer than {MAX_LINE_BYTES} bytes");
        sink(Err(self.error(at_start(LineErrorKind::LineTooLong, reason))));
    }

    /// Reads the line that starts at `self.byte_offset`, and moves past it.
    fn read_line(&mut self, line: &[u8], n_bytes: u64, sink: &mut impl FnMut(Row)) {
        self.n_lines += 1;
        let bom = if self.n_lines == 1 && line.starts_with(BOM) {
            BOM.len()
        } else {
            0
        };
        self.byte_offset += bom as u64;
        let line = &line[bom..];
        if line.trim_ascii().is_empty() {
            self.read_blank_line(sink);
        } else {
            self.n_examples += 1;
            let row = match parse_bytes(line, self.format) {
                Ok(example) => Ok(NumberedExample {
                    line: self.n_lines,
                    byte_offset: self.byte_offset,
                    fingerprint: fingerprint(line),
                    example,
                }),
                Err(error) => Err(self.error(error)),
            };
            sink(row);
        }
        self.byte_offset += n_bytes - bom as u64;
    }

    fn read_blank_line(&mut self, sink: &mut impl FnMut(Row)) {
        self.n_blank_lines += 1;
        if self.n_blank_lines == MAX_BLANK_LINES + 1 {
            let reason = format!("comes after more than {MAX_BLANK_LINES} blank lines");
            sink(Err(
                self.error(at_start(LineErrorKind::TooManyBlankLines, reason))
            ));
        }
    }

    fn error(&self, error: RowError) -> LineError {
        LineError {
            line: self.n_lines,
            example: self.n_examples,
            byte_offset: self.byte_offset + error.byte_offset,
            pointer: error.pointer,
            reason: error.reason,
            kind: error.kind,
        }
    }
}

/// Spaces around a row and the kind of its line break do not make it another one.
fn fingerprint(line: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(line.trim_ascii());
    hasher.finish()
}

fn at_start(kind: LineErrorKind, reason: String) -> RowError {
    RowError {
        byte_offset: 0,
        pointer: String::new(),
        reason,
        kind,
    }
}

fn parse_bytes(
    line: &[u8],
    format: RowFormat,
) -> Result<crate::formats::TrainingExample, RowError> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let at = |kind, byte_offset: usize, reason: String| RowError {
        byte_offset: byte_offset as u64,
        pointer: String::new(),
        reason,
        kind,
    };
    if let Some(place) = memchr::memchr(0, line) {
        let reason = format!("contains a NUL byte at byte {} of the line", place + 1);
        return Err(at(LineErrorKind::Nul, place, reason));
    }
    let text = std::str::from_utf8(line).map_err(|error| {
        let place = error.valid_up_to();
        let reason = format!("is not valid UTF-8 at byte {} of the line", place + 1);
        at(LineErrorKind::InvalidUtf8, place, reason)
    })?;
    parse_row(text, format)
}

/// Rows out of a reader.
pub struct DatasetReader<R> {
    reader: R,
    parser: DatasetParser,
    /// Rows of the last chunk that were not asked for yet.
    ready: VecDeque<Row>,
    at_end: bool,
}

impl<R: BufRead> DatasetReader<R> {
    /// For a file that should hold rows of `format`.
    pub fn new(reader: R, format: RowFormat) -> Self {
        Self {
            reader,
            parser: DatasetParser::new(format),
            ready: VecDeque::new(),
            at_end: false,
        }
    }

    fn fill(&mut self) -> io::Result<()> {
        let ready = &mut self.ready;
        let mut sink = |row| ready.push_back(row);
        let chunk = loop {
            match self.reader.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => break other?,
            }
        };
        let n_bytes = chunk.len();
        if n_bytes == 0 {
            self.parser.finish(&mut sink);
            self.at_end = true;
        } else {
            self.parser.push(chunk, &mut sink);
        }
        self.reader.consume(n_bytes);
        Ok(())
    }
}

impl<R: BufRead> Iterator for DatasetReader<R> {
    type Item = io::Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.ready.is_empty() && !self.at_end {
            if let Err(error) = self.fill() {
                self.at_end = true;
                return Some(Err(error));
            }
        }
        self.ready.pop_front().map(Ok)
    }
}
