//! `multipart/form-data`, read as it comes: memory stays at one chunk, whatever the sender does.
//! Source: RFC 7578, RFC 2046 section 5.1.

use std::io;

use bytes::{Buf, Bytes};
use futures::{Stream, StreamExt};
use memchr::memmem;

/// RFC 2046: a boundary has at most 70 characters.
const MAX_BOUNDARY: usize = 70;
/// What may stand before the first boundary. Bytes.
const MAX_PREAMBLE: usize = 1024;
/// The headers of one part. Bytes.
const MAX_HEADERS: usize = 16 * 1024;
/// A form of ours has four.
const MAX_PARTS: usize = 16;

/// Why the body is no form.
#[derive(Debug, thiserror::Error)]
pub enum MultipartError {
    #[error(
        "the content type is not multipart/form-data with a boundary of at most {MAX_BOUNDARY} characters"
    )]
    ContentType,
    #[error("the body ended in the middle of the form")]
    Incomplete,
    #[error("the form has more than {MAX_PARTS} parts")]
    TooManyParts,
    #[error("the form is malformed: {0}")]
    Malformed(&'static str),
    #[error("the body could not be read: {0}")]
    Read(io::Error),
}

/// A form, of which one part is read after the other.
pub struct Multipart<S> {
    chunks: S,
    /// What came and was not given away yet; where it can, a piece of what the connection holds.
    buffer: Bytes,
    /// A line break, two dashes and the boundary.
    delimiter: Vec<u8>,
    place: Place,
    n_parts: usize,
}

enum Place {
    Preamble,
    /// In the content of a part.
    Content,
    /// Right behind a delimiter.
    Boundary,
    End,
}

/// What a part's headers say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    pub name: String,
    pub filename: Option<String>,
}

impl<S: Stream<Item = io::Result<Bytes>> + Unpin> Multipart<S> {
    /// Errors: `ContentType`.
    pub fn new(content_type: Option<&str>, chunks: S) -> Result<Self, MultipartError> {
        let boundary = content_type
            .and_then(boundary)
            .ok_or(MultipartError::ContentType)?;
        Ok(Self {
            chunks,
            // The first delimiter needs no line break before it; this one stands in for it.
            buffer: Bytes::from_static(b"\r\n"),
            delimiter: format!("\r\n--{boundary}").into_bytes(),
            place: Place::Preamble,
            n_parts: 0,
        })
    }

    /// Goes on to the next part, past what was left of the one before.
    pub async fn next_part(&mut self) -> Result<Option<Part>, MultipartError> {
        match self.place {
            Place::Preamble => self.skip_preamble().await?,
            Place::Content => while self.chunk().await?.is_some() {},
            Place::Boundary | Place::End => {}
        }
        if matches!(self.place, Place::End) || !self.enter_part().await? {
            self.place = Place::End;
            return Ok(None);
        }
        self.n_parts += 1;
        if self.n_parts > MAX_PARTS {
            return Err(MultipartError::TooManyParts);
        }
        let headers = self.headers().await?;
        self.place = Place::Content;
        part(&headers).map(Some)
    }

    /// More of the part's content, or `None` at its end.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, MultipartError> {
        if !matches!(self.place, Place::Content) {
            return Ok(None);
        }
        loop {
            match memmem::find(&self.buffer, &self.delimiter) {
                Some(0) => {
                    self.buffer.advance(self.delimiter.len());
                    self.place = Place::Boundary;
                    return Ok(None);
                }
                Some(end) => return Ok(Some(self.buffer.split_to(end))),
                None => {
                    let safe = self.buffer.len() - self.begun();
                    if safe > 0 {
                        return Ok(Some(self.buffer.split_to(safe)));
                    }
                    self.fill().await?;
                }
            }
        }
    }

    /// How many bytes at the end of the buffer may be the beginning of a delimiter: mostly none, so that a chunk goes on as
    /// it came.
    fn begun(&self) -> usize {
        let most = self.buffer.len().min(self.delimiter.len() - 1);
        let tail = &self.buffer[self.buffer.len() - most..];
        let starts = memchr::memchr_iter(b'\r', tail);
        starts
            .map(|start| &tail[start..])
            .find(|rest| self.delimiter.starts_with(rest))
            .map_or(0, <[u8]>::len)
    }

    async fn skip_preamble(&mut self) -> Result<(), MultipartError> {
        loop {
            if let Some(start) = memmem::find(&self.buffer, &self.delimiter) {
                self.buffer.advance(start + self.delimiter.len());
                self.place = Place::Boundary;
                return Ok(());
            }
            if self.buffer.len() > MAX_PREAMBLE {
                return Err(MultipartError::Malformed(
                    "it does not begin with its boundary",
                ));
            }
            self.fill().await?;
        }
    }

    /// Behind a delimiter: a line break begins a part, two dashes end the form.
    async fn enter_part(&mut self) -> Result<bool, MultipartError> {
        while self.buffer.len() < 2 {
            self.fill().await?;
        }
        let is_part = match &self.buffer[..2] {
            b"\r\n" => true,
            b"--" => false,
            _ => {
                return Err(MultipartError::Malformed(
                    "a boundary line has something behind it",
                ));
            }
        };
        if is_part {
            // The line break stays: a part without headers has its empty line right here.
            return Ok(true);
        }
        Ok(false)
    }

    async fn headers(&mut self) -> Result<String, MultipartError> {
        loop {
            if let Some(end) = memmem::find(&self.buffer, b"\r\n\r\n") {
                let headers = self.buffer.split_to(end);
                self.buffer.advance(4);
                return Ok(String::from_utf8_lossy(&headers).into_owned());
            }
            if self.buffer.len() > MAX_HEADERS {
                return Err(MultipartError::Malformed(
                    "the headers of a part are too long",
                ));
            }
            self.fill().await?;
        }
    }

    async fn fill(&mut self) -> Result<(), MultipartError> {
        match self.chunks.next().await {
            Some(chunk) => {
                let chunk = chunk.map_err(MultipartError::Read)?;
                self.buffer = if self.buffer.is_empty() {
                    chunk
                } else {
                    [&self.buffer[..], &chunk].concat().into()
                };
                Ok(())
            }
            None => Err(MultipartError::Incomplete),
        }
    }
}

fn boundary(content_type: &str) -> Option<String> {
    let (essence, parameters) = content_type.split_once(';')?;
    if !essence.trim().eq_ignore_ascii_case("multipart/form-data") {
        return None;
    }
    let boundary = parameter(parameters, "boundary")?;
    (1..=MAX_BOUNDARY)
        .contains(&boundary.len())
        .then_some(boundary)
}

fn part(headers: &str) -> Result<Part, MultipartError> {
    let disposition = headers
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.trim().eq_ignore_ascii_case("content-disposition"))
        .and_then(|(_, value)| value.split_once(';'))
        .ok_or(MultipartError::Malformed(
            "a part has no content disposition",
        ))?
        .1;
    let name =
        parameter(disposition, "name").ok_or(MultipartError::Malformed("a part has no name"))?;
    let extended = parameter(disposition, "filename*").and_then(|value| {
        let encoded = value
            .strip_prefix("UTF-8''")
            .or_else(|| value.strip_prefix("utf-8''"))?;
        Some(percent_decode(encoded))
    });
    let filename = extended.or_else(|| parameter(disposition, "filename"));
    Ok(Part { name, filename })
}

/// A header parameter's value, quoted or not.
fn parameter(parameters: &str, wanted: &str) -> Option<String> {
    let mut rest = parameters;
    loop {
        let (name, after) = rest.split_once('=')?;
        let name = name.trim_matches([' ', '\t', ';']);
        let (value, behind) = value(after.trim_start())?;
        if name.eq_ignore_ascii_case(wanted) {
            return Some(value);
        }
        rest = behind;
    }
}

/// The value at the beginning of `text`, and what stands behind it.
fn value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(';').unwrap_or(text.len());
        return Some((text[..end].trim().to_owned(), &text[end..]));
    };
    let (mut value, mut escaped) = (String::new(), false);
    for (i, c) in quoted.char_indices() {
        match c {
            _ if escaped => {
                // Browsers send a lone backslash of a Windows path unescaped.
                if c != '"' && c != '\\' {
                    value.push('\\');
                }
                value.push(c);
                escaped = false;
            }
            '\\' => escaped = true,
            '"' => return Some((value.replace("%22", "\""), &quoted[i + 1..])),
            _ => value.push(c),
        }
    }
    None
}

fn percent_decode(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((&first, tail)) = rest.split_first() {
        let hex = tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) if first == b'%' => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORM: &str = "multipart/form-data; boundary=XX";

    /// The parts and their contents, when the body comes in chunks of `size` bytes.
    async fn read(body: &[u8], size: usize) -> Result<Vec<(Part, Vec<u8>)>, MultipartError> {
        let chunks: Vec<_> = body
            .chunks(size)
            .map(|c| Ok(Bytes::copy_from_slice(c)))
            .collect();
        let mut form = Multipart::new(Some(FORM), futures::stream::iter(chunks))?;
        let mut parts = Vec::new();
        while let Some(part) = form.next_part().await? {
            let mut content = Vec::new();
            while let Some(chunk) = form.chunk().await? {
                assert!(!chunk.is_empty() && form.buffer.len() <= size + 64 + MAX_PREAMBLE);
                content.extend_from_slice(&chunk);
            }
            parts.push((part, content));
        }
        Ok(parts)
    }

    #[tokio::test]
    async fn the_same_parts_come_out_however_the_body_is_cut() {
        let content = b"a\r\n--X\r\n--XYZ\r\n\r\n-";
        let body = [
            b"--XX\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nfine-tune\r\n--XX\r\n".as_slice(),
            "content-disposition: form-data; filename=\"\u{e4} \\\"q\\\"; x.jsonl\"; name=file\r\nContent-Type:\r\n\r\n".as_bytes(),
            content,
            b"\r\n--XX--\r\nepilogue",
        ]
        .concat();
        for size in [1, 2, 3, 7, 64, 10_000] {
            let parts = read(&body, size).await.unwrap();
            assert_eq!(parts.len(), 2, "size {size}");
            assert_eq!(parts[0].1, b"fine-tune");
            assert_eq!(parts[1].0.name, "file");
            assert_eq!(
                parts[1].0.filename.as_deref(),
                Some("\u{e4} \"q\"; x.jsonl")
            );
            assert_eq!(parts[1].1, content, "size {size}");
        }
    }

    #[tokio::test]
    async fn a_body_that_is_no_form_is_refused() {
        for body in [
            "",
            "--XX",
            "--XX\r\n\r\n",
            "--XX\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\nabc",
        ] {
            let error = read(body.as_bytes(), 5).await.unwrap_err();
            assert!(
                matches!(
                    error,
                    MultipartError::Incomplete | MultipartError::Malformed(_)
                ),
                "{body:?}: {error}"
            );
        }
        let endless = "x".repeat(MAX_PREAMBLE * 2);
        assert!(matches!(
            read(endless.as_bytes(), 100).await,
            Err(MultipartError::Malformed(_))
        ));
        let headers = format!("--XX\r\n{}", "a: b\r\n".repeat(MAX_HEADERS));
        assert!(matches!(
            read(headers.as_bytes(), 100).await,
            Err(MultipartError::Malformed(_))
        ));
        let many =
            "--XX\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\nb\r\n".repeat(MAX_PARTS + 1);
        assert!(matches!(
            read(many.as_bytes(), 100).await,
            Err(MultipartError::TooManyParts)
        ));
    }

    #[test]
    fn the_boundary_is_found_and_bounded() {
        assert_eq!(
            boundary("multipart/form-data; charset=x; boundary=\"a b\"").as_deref(),
            Some("a b")
        );
        assert_eq!(boundary("multipart/form-data; boundary=").as_deref(), None);
        assert_eq!(boundary("application/json").as_deref(), None);
        assert_eq!(
            boundary(&format!("multipart/form-data; boundary={}", "x".repeat(71))),
            None
        );
    }

    #[test]
    fn an_extended_filename_stands_above_the_plain_one() {
        let headers = "Content-Disposition: form-data; name=\"file\"; filename=\"x\"; filename*=UTF-8''%C3%A4.jsonl";
        assert_eq!(part(headers).unwrap().filename.as_deref(), Some("ä.jsonl"));
    }
}
