//! One answer on its way from tokens to text: whole characters, stop strings, and log-probabilities that come with the
//! text they belong to.

use domain::generation::{TokenLogprob, TopLogprob};
use text::chat_model::ChatModel;
use text::decode::DecodeStream;

use super::stop::{Shown, StopGuard};

/// What one more token adds to an answer.
#[derive(Debug, PartialEq)]
pub(super) struct Piece {
    pub text: String,
    pub logprobs: Vec<TokenLogprob>,
    /// A stop string came: the answer is over.
    pub stopped: bool,
}

pub(super) struct Answer<'a> {
    chat: &'a ChatModel,
    decoder: DecodeStream<'a>,
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
    pub(super) fn new(chat: &'a ChatModel, stops: &[String], with_logprobs: bool) -> Self {
        Self {
            chat,
            decoder: chat.decode_stream(),
            guard: StopGuard::new(stops),
            decoded: 0,
            shown: 0,
            pending: Vec::new(),
            with_logprobs,
            n_tokens: 0,
            ended: false,
        }
    }

    pub(super) fn push(&mut self, token: u32, logprob: f32, top: &[(u32, f32)]) -> Piece {
        self.n_tokens += 1;
        let text = self.decoder.push(token).unwrap_or_default();
        let began = self.decoded;
        self.decoded += text.len();
        if self.with_logprobs {
            let entry = self.describe(token, logprob, top);
            self.pending.push((began, self.decoded, entry));
        }
        let shown = self.guard.push(&text);
        self.show(shown)
    }

    /// The rest of an answer that ended without a stop string: a broken character, a beginning of a stop string.
    pub(super) fn finish(&mut self) -> Piece {
        let rest = self.decoder.flush().unwrap_or_default();
        self.decoded += rest.len();
        let Shown { mut text, stopped } = self.guard.push(&rest);
        if !stopped {
            text += &self.guard.flush();
        }
        let mut piece = self.show(Shown { text, stopped });
        if !stopped {
            piece
                .logprobs
                .extend(self.pending.drain(..).map(|(_, _, entry)| entry));
        }
        piece
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
            stopped,
        }
    }

    fn describe(&self, token: u32, logprob: f32, top: &[(u32, f32)]) -> TokenLogprob {
        let (text, bytes) = self.chat.token_text(token);
        let top = top.iter().map(|(token, logprob)| {
            let (token, bytes) = self.chat.token_text(*token);
            TopLogprob {
                token,
                bytes,
                logprob: finite(*logprob),
            }
        });
        TokenLogprob {
            token: text,
            bytes,
            logprob: finite(logprob),
            top: top.collect(),
        }
    }
}

/// JSON has no infinity; OpenAI writes −9999 for a token that cannot come.
fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() {
        logprob
    } else {
        -9999.0
    }
}
