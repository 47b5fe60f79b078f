//! Tokens back to text, one at a time, without ever cutting a character in two.

use std::collections::HashMap;

use serde_json::Value;

use crate::tokenizer::Tokenizer;

/// How a vocabulary writes bytes, from the `decoder` of `tokenizer.json`.
pub(crate) enum Pieces {
    /// GPT-2's alphabet: every byte is one printable character.
    ByteLevel(HashMap<char, u8>),
    /// SentencePiece's: `▁` is a space, `<0x0A>` a byte; the first space of a text is not there.
    SentencePiece,
    /// The token is its text.
    Plain,
}

impl Pieces {
    pub(crate) fn new(decoder: &Value) -> Self {
        if names(decoder, "ByteLevel") {
            Pieces::ByteLevel(byte_alphabet().map(|(byte, c)| (c, byte)).collect())
        } else if names(decoder, "Metaspace") || names(decoder, "ByteFallback") {
            Pieces::SentencePiece
        } else {
            Pieces::Plain
        }
    }

    pub(crate) fn strips_first_space(&self) -> bool {
        matches!(self, Pieces::SentencePiece)
    }

    pub(crate) fn bytes(&self, token: &str) -> Vec<u8> {
        match self {
            Pieces::ByteLevel(bytes) => {
                // a character outside the alphabet means that the token is written as it is, as the decoder has it
                let known = token.chars().map(|c| bytes.get(&c).copied()).collect();
                let known: Option<Vec<u8>> = known;
                known.unwrap_or_else(|| token.as_bytes().to_vec())
            }
            Pieces::SentencePiece => match byte_token(token) {
                Some(byte) => vec![byte],
                None => token.replace('▁', " ").into_bytes(),
            },
            Pieces::Plain => token.as_bytes().to_vec(),
        }
    }
}

/// `<0x0A>` → 10.
fn byte_token(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (hex.len() == 2).then(|| u8::from_str_radix(hex, 16).ok())?
}

/// Whether the decoder, or one in its sequence, is of this type.
fn names(decoder: &Value, name: &str) -> bool {
    decoder["type"] == name
        || decoder["decoders"]
            .as_array()
            .is_some_and(|all| all.iter().any(|d| names(d, name)))
}

/// GPT-2's alphabet: printable Latin-1 bytes stand for themselves, the others follow from U+0100 on.
pub(crate) fn byte_alphabet() -> impl Iterator<Item = (u8, char)> {
    let is_printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 0x100;
    (0..=255).map(move |byte| {
        if is_printable(byte) {
            return (byte, char::from(byte));
        }
        next += 1;
        (
            byte,
            char::from_u32(next - 1).expect("below the surrogates — a bug in byte_alphabet"),
        )
    })
}

/// The text of a growing sequence of tokens. What was given out is never taken back.
pub struct DecodeStream<'t> {
    tokenizer: &'t Tokenizer,
    /// The beginning of a character whose end has not come: at most three bytes.
    pending: Vec<u8>,
    strip_space: bool,
}

impl<'t> DecodeStream<'t> {
    pub(crate) fn new(tokenizer: &'t Tokenizer, strip_space: bool) -> Self {
        Self {
            tokenizer,
            pending: Vec::new(),
            strip_space,
        }
    }

    /// The text that is certain now; `None` where the token is special, empty or half a character.
    /// Bytes that no further token can make a character become U+FFFD.
    pub fn push(&mut self, token: u32) -> Option<String> {
        if self.tokenizer.is_special(token) {
            return None;
        }
        let bytes = self.tokenizer.token_bytes(token);
        self.pending.extend_from_slice(&bytes);
        if self.strip_space && !self.pending.is_empty() {
            self.strip_space = false;
            if self.pending[0] == b' ' {
                self.pending.remove(0);
            }
        }
        let text = self.take_whole();
        (!text.is_empty()).then_some(text)
    }

    /// Ends the text: half a character becomes U+FFFD.
    pub fn flush(&mut self) -> Option<String> {
        let rest = std::mem::take(&mut self.pending);
        (!rest.is_empty()).then(|| String::from_utf8_lossy(&rest).into_owned())
    }

    /// Takes all but an unfinished character from `pending`.
    fn take_whole(&mut self) -> String {
        let mut text = String::new();
        loop {
            match std::str::from_utf8(&self.pending) {
                Ok(valid) => {
                    text.push_str(valid);
                    self.pending.clear();
                    return text;
                }
                Err(error) => {
                    let (valid, rest) = self.pending.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    let Some(n_invalid) = error.error_len() else {
                        self.pending = rest.to_vec();
                        return text;
                    };
                    text.push(char::REPLACEMENT_CHARACTER);
                    self.pending = rest[n_invalid..].to_vec();
                }
            }
        }
    }
}
