//! A stream of bytes cut into lines, in constant memory. It knows nothing of what stands in them.

use crate::formats::{LineError, LineErrorKind, RowError};

use super::{MAX_BLANK_LINES, MAX_LINE_BYTES};

const BOM: &[u8] = b"\xef\xbb\xbf";

/// Where a line stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// 1-based, counting every line.
    pub(super) line: u64,
    /// 1-based, over the lines that are not blank.
    pub(super) example: u64,
    /// Of its first byte, from the start of the file.
    pub(super) byte_offset: u64,
}

impl Place {
    /// What is wrong with the line that stands here.
    pub(super) fn error(self, error: RowError) -> LineError {
        LineError {
            line: self.line,
            example: self.example,
            byte_offset: self.byte_offset + error.byte_offset,
            pointer: error.pointer,
            reason: error.reason,
            kind: error.kind,
        }
    }
}

/// A line that is not blank, without its newline.
pub(super) struct Line<'b> {
    pub(super) place: Place,
    pub(super) bytes: &'b [u8],
}

/// A line, or why there is none.
pub(super) type Found<'b> = Result<Line<'b>, LineError>;

/// Lines out of chunks of bytes, however the stream is cut. A line that is wrong does not disturb the next one.
#[derive(Default)]
pub(super) struct Lines {
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

impl Lines {
    /// Takes the next bytes and gives `sink` every line that ends in them and is not blank.
    pub(super) fn push(&mut self, chunk: &[u8], sink: &mut impl FnMut(Found)) {
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
    pub(super) fn finish(&mut self, sink: &mut impl FnMut(Found)) {
        let line = std::mem::take(&mut self.pending);
        if !line.is_empty() {
            self.read_line(&line, line.len() as u64, sink);
        }
        self.skipping = false;
    }

    /// Keeps the beginning of a line for later.
    fn keep(&mut self, start: &[u8], sink: &mut impl FnMut(Found)) {
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

    fn refuse_long_line(&mut self, sink: &mut impl FnMut(Found)) {
        self.n_lines += 1;
        self.n_examples += 1;
        self.skipping = true;
        let reason = format!("is longer than {MAX_LINE_BYTES} bytes");
        sink(Err(self.error(at_start(LineErrorKind::LineTooLong, reason))));
    }

    /// Reads the line that starts at `self.byte_offset`, and moves past it.
    fn read_line(&mut self, line: &[u8], n_bytes: u64, sink: &mut impl FnMut(Found)) {
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
            sink(Ok(Line {
                place: self.place(),
                bytes: line,
            }));
        }
        self.byte_offset += n_bytes - bom as u64;
    }

    fn read_blank_line(&mut self, sink: &mut impl FnMut(Found)) {
        self.n_blank_lines += 1;
        if self.n_blank_lines == MAX_BLANK_LINES + 1 {
            let reason = format!("comes after more than {MAX_BLANK_LINES} blank lines");
            sink(Err(
                self.error(at_start(LineErrorKind::TooManyBlankLines, reason))
            ));
        }
    }

    fn error(&self, error: RowError) -> LineError {
        self.place().error(error)
    }

    fn place(&self) -> Place {
        Place {
            line: self.n_lines,
            example: self.n_examples,
            byte_offset: self.byte_offset,
        }
    }
}

fn at_start(kind: LineErrorKind, reason: String) -> RowError {
    RowError {
        byte_offset: 0,
        pointer: String::new(),
        reason,
        kind,
    }
}
