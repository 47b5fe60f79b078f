//! A stream of bytes cut into rows, in constant memory. Validation, dry runs and training all read files through
//! here, so a file cannot validate as one thing and train as another.

mod lines;
mod parallel;

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hasher};
use std::io::{self, BufRead};

use crate::formats::{
    Expected, LineError, LineErrorKind, NumberedExample, Parsed, RowError, parse,
};

use self::lines::{Lines, Place};
pub use self::parallel::read_rows;

/// The longest line that is read: an example of 65,536 tokens takes about 0.4 MB. Bytes.
pub const MAX_LINE_BYTES: usize = 8 << 20;

/// Blank lines a file may have; more is no training file.
pub const MAX_BLANK_LINES: u64 = 10_000;

/// One line that is not blank.
pub type Row = Result<NumberedExample, LineError>;

/// Rows out of chunks of bytes, however the stream is cut. A line that is wrong does not disturb the next one.
pub struct DatasetParser {
    expected: Expected,
    lines: Lines,
}

impl DatasetParser {
    /// For a file that should hold rows as `expected`.
    pub fn new(expected: impl Into<Expected>) -> Self {
        Self {
            expected: expected.into(),
            lines: Lines::default(),
        }
    }

    /// Takes the next bytes and gives `sink` every row that ends in them.
    pub fn push(&mut self, chunk: &[u8], sink: &mut impl FnMut(Row)) {
        let expected = self.expected;
        let mut read = |found: lines::Found| {
            sink(found.and_then(|line| read_line(line.place, line.bytes, expected)));
        };
        self.lines.push(chunk, &mut read);
    }

    /// Says that the file is at its end: the last line may lack its newline.
    pub fn finish(&mut self, sink: &mut impl FnMut(Row)) {
        let expected = self.expected;
        let mut read = |found: lines::Found| {
            sink(found.and_then(|line| read_line(line.place, line.bytes, expected)));
        };
        self.lines.finish(&mut read);
    }
}

fn read_line(place: Place, line: &[u8], expected: Expected) -> Row {
    let parsed = parse_bytes(line, expected).map_err(|error| place.error(error))?;
    Ok(NumberedExample {
        line: place.line,
        number: place.example,
        byte_offset: place.byte_offset,
        fingerprint: fingerprint(line),
        place: parsed.place,
        example: parsed.example,
    })
}

/// Spaces around a row and the kind of its line break do not make it another one.
fn fingerprint(line: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(line.trim_ascii());
    hasher.finish()
}

fn parse_bytes(line: &[u8], expected: Expected) -> Result<Parsed, RowError> {
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
    parse(text, expected)
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
    /// For a file that should hold rows as `expected`.
    pub fn new(reader: R, expected: impl Into<Expected>) -> Self {
        Self {
            reader,
            parser: DatasetParser::new(expected),
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
