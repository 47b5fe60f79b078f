//! One answer on its way from tokens to text: whole characters, stop strings, calls of functions, and log-probabilities that come
//! with the text they belong to.

use domain::generation::{TokenLogprob, TopLogprob};
use domain::message::GenerateRequest;
use rand::RngExt;
use rand::distr::Alphanumeric;
use text::chat_model::ChatModel;
use text::decode::DecodeStream;
use text::tools::{CallReader, Heard};

use super::grammar::wanted;
use super::stop::{Shown, StopGuard};
use crate::device::Token;

/// What one more token adds to an answer.
#[derive(Debug, PartialEq)]
pub(super) struct Piece {
    pub text: String,
    pub logprobs: Vec<TokenLogprob>,
    pub calls: Vec<CallPiece>,
    /// A stop string came: the answer is over.
    pub stopped: bool,
}

/// A piece of a call, which is the `call`th of its answer.
#[derive(Debug, PartialEq)]
pub(super) enum CallPiece {
    Begins { call: u32, id: String, name: String },
    Arguments { call: u32, arguments: String },
}

pub(super) struct Answer<'a> {
    chat: &'a ChatModel,
    decoder: DecodeStream<'a>,
    /// Where the model may call functions.
    reader: Option<CallReader>,
    /// Calls that have begun.
    n_begun: u32,
    guard: StopGuard,
    /// Bytes of text decoded and shown so far.
    decoded: usize,
    shown: usize,
    /// Tokens whose text is not wholly shown: where it begins and ends, and what is said of it.
    pending: Vec<(usize, usize, TokenLogprob)>,
    with_logprobs: bool,
    /// Tokens of the answer, the end-of-turn token not counted.
    pub n_tokens: u64,
    pub ended: bool,
}

impl<'a> Answer<'a> {
    pub(super) fn new(chat: &'a ChatModel, asked: &GenerateRequest) -> Self {
        Self {
            chat,
            decoder: chat.decode_stream(),
            reader: chat.call_reader(&wanted(asked)),
            n_begun: 0,
            guard: StopGuard::new(&asked.stop),
            decoded: 0,
            shown: 0,
            pending: Vec::new(),
            with_logprobs: asked.top_logprobs.is_some(),
            n_tokens: 0,
            ended: false,
        }
    }

    /// Calls that were read to their end.
    pub(super) fn n_calls(&self) -> usize {
        self.reader.as_ref().map_or(0, CallReader::n_whole)
    }

    pub(super) fn push(&mut self, token: &Token) -> Piece {
        self.n_tokens += 1;
        let is_calling = |reader: &CallReader| reader.is_calling();
        if self.reader.as_ref().is_some_and(is_calling) {
            let heard = self.hear(token.token);
            return self.tell(heard);
        }
        let began = self.decoded;
        let heard = self.hear(token.token);
        if self.with_logprobs && !self.reader.as_ref().is_some_and(is_calling) {
            let entry = self.describe(token);
            self.pending.push((began, self.decoded, entry));
        }
        self.tell(heard)
    }

    /// What one more token adds, as it is meant.
    fn hear(&mut self, token: u32) -> Vec<Heard> {
        let text = self.decoder.push(token).unwrap_or_default();
        self.decoded += text.len();
        let Some(reader) = &mut self.reader else {
            return vec![Heard::Text(text)];
        };
        let mut heard = reader.push(&text);
        if self.chat.tokenizer().is_special(token) {
            heard.extend(reader.push_control(&self.chat.token_text(token).0));
        }
        heard
    }

    /// The rest of an answer that ended without a stop string: a broken character, a beginning of a stop string or of a call.
    pub(super) fn finish(&mut self) -> Piece {
        let rest = self.decoder.flush().unwrap_or_default();
        self.decoded += rest.len();
        let heard = match &mut self.reader {
            None => vec![Heard::Text(rest)],
            Some(reader) => {
                let mut heard = reader.push(&rest);
                heard.extend(reader.finish());
                heard
            }
        };
        let mut piece = self.tell(heard);
        if !piece.stopped {
            let text = self.guard.flush();
            let rest = self.show(Shown {
                text,
                stopped: false,
            });
            piece.text += &rest.text;
            piece.logprobs.extend(rest.logprobs);
            piece
                .logprobs
                .extend(self.pending.drain(..).map(|(_, _, entry)| entry));
        }
        piece
    }

    fn tell(&mut self, heard: Vec<Heard>) -> Piece {
        let mut told = self.show(Shown {
            text: String::new(),
            stopped: false,
        });
        for heard in heard {
            match heard {
                Heard::Text(text) => {
                    let shown = self.guard.push(&text);
                    let piece = self.show(shown);
                    told.text += &piece.text;
                    told.logprobs.extend(piece.logprobs);
                    if piece.stopped {
                        told.stopped = true;
                        break;
                    }
                }
                Heard::Call { name } => {
                    if self.n_begun == 0 {
                        let rest = self.end_of_text();
                        told.text += &rest.text;
                        told.logprobs.extend(rest.logprobs);
                    }
                    let (call, id) = (self.n_begun, self.new_id());
                    self.n_begun += 1;
                    told.calls.push(CallPiece::Begins { call, id, name });
                }
                Heard::Arguments(arguments) => {
                    let call = self.n_begun.saturating_sub(1);
                    told.calls.push(CallPiece::Arguments { call, arguments });
                }
            }
        }
        told
    }

    /// What is left to show before the first call. Tokens that make calls have no log-probabilities in an answer.
    fn end_of_text(&mut self) -> Piece {
        let text = self.guard.flush();
        let piece = self.show(Shown {
            text,
            stopped: false,
        });
        self.pending.clear();
        piece
    }

    /// An id that the model's template takes when the client sends the call back.
    fn new_id(&self) -> String {
        let is_short = self
            .chat
            .tool_syntax()
            .is_some_and(|syntax| syntax.has_short_ids);
        let (prefix, n) = if is_short { ("", 9) } else { ("call_", 24) };
        let random = rand::rng().sample_iter(Alphanumeric).take(n);
        prefix.chars().chain(random.map(char::from)).collect()
    }

    fn show(&mut self, Shown { text, stopped }: Shown) -> Piece {
        self.shown += text.len();
        let shown = self.shown;
        let n_ready = if stopped {
            // A token that is partly in the answer is in its log-probabilities.
            self.pending
                .iter()
                .take_while(|(began, ..)| *began < shown)
                .count()
        } else {
            self.pending
                .iter()
                .take_while(|(_, ended, _)| *ended <= shown)
                .count()
        };
        let logprobs = self
            .pending
            .drain(..n_ready)
            .map(|(_, _, entry)| entry)
            .collect();
        Piece {
            text,
            logprobs,
            calls: Vec::new(),
            stopped,
        }
    }

    /// What is said of a token, though it may not be part of the answer.
    pub(super) fn describe(&self, token: &Token) -> TokenLogprob {
        let (text, bytes) = self.chat.token_text(token.token);
        TokenLogprob {
            token: text,
            bytes,
            logprob: finite(token.logprob),
            top: likeliest(self.chat, token),
        }
    }
}

/// The likeliest tokens in the place of `token`.
pub(super) fn likeliest(chat: &ChatModel, token: &Token) -> Vec<TopLogprob> {
    let top = token.top.iter().map(|&(token, logprob)| {
        let (token, bytes) = chat.token_text(token);
        TopLogprob {
            token,
            bytes,
            logprob: finite(logprob),
        }
    });
    top.collect()
}

/// JSON has no infinity; OpenAI writes −9999 for a token that cannot come.
pub(super) fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() {
        logprob
    } else {
        -9999.0
    }
}
