//! The prompt that answers begin with, and what the model says of each of its tokens.

use domain::generation::EchoedToken;
use domain::message::{GenerateError, GenerateEvent, GenerateRequest, Prompt};
use text::chat_model::ChatModel;

use super::answer::{finite, likeliest};
use super::unrenderable;
use crate::base_models::Base;
use crate::device::Token;

/// Tokens of one line, which has its limit at the reader.
const TOKENS_PER_LINE: usize = 256;
/// Tokens that several answers to one prompt repeat together, with their log-probabilities: each costs the reader some hundred bytes.
const MAX_REPEATED: usize = 1 << 18;

pub(super) struct Echo {
    text: String,
    scored: Option<Scored>,
}

/// The prompt's tokens, of which log-probabilities are told.
struct Scored {
    /// Those of the text, which are the last of the prompt.
    ids: Vec<u32>,
    /// Of the whole prompt. Tokens.
    n_prompt: usize,
}

impl Echo {
    /// What answers to a prompt of `n_prompt` tokens begin with, if that was asked for. Errors: too much to repeat.
    pub(super) fn of(
        base: &Base,
        asked: &GenerateRequest,
        n_prompt: usize,
    ) -> Result<Option<Self>, GenerateError> {
        let Some(prompt) = asked.prompt.as_ref().filter(|_| asked.echo) else {
            return Ok(None);
        };
        let text = match prompt {
            Prompt::Text(text) => text.clone(),
            Prompt::Tokens(ids) => base.chat.tokenizer().decode(ids),
        };
        if !asked.echo_logprobs {
            return Ok(Some(Self { text, scored: None }));
        }
        if asked.n > 1 && asked.n as usize * n_prompt > MAX_REPEATED {
            return Err(GenerateError::Unanswerable {
                param: "n".to_owned(),
                reason: format!(
                    "{} answers that each begin with the log-probabilities of {n_prompt} tokens are too much at once",
                    asked.n
                ),
            });
        }
        let ids = match prompt {
            Prompt::Text(text) => base.chat.encode_text(text).map_err(unrenderable)?,
            Prompt::Tokens(ids) => ids.clone(),
        };
        let scored = Some(Scored { ids, n_prompt });
        Ok(Some(Self { text, scored }))
    }

    /// How many tokens of the prompt are to be scored: all after the first.
    pub(super) fn n_scores(&self) -> usize {
        self.scored.as_ref().map_or(0, |scored| scored.n_prompt - 1)
    }

    /// The beginnings of `n` answers.
    pub(super) fn events(
        self,
        chat: &ChatModel,
        n: u32,
        scores: &[Token],
    ) -> impl Iterator<Item = GenerateEvent> {
        let Self { text, scored } = self;
        let tokens = scored.map(|scored| scored.tokens(chat, scores));
        (0..n).flat_map(move |index| match &tokens {
            Some(tokens) => lines(index, &text, tokens),
            None => vec![GenerateEvent::Delta {
                index,
                text: text.clone(),
                logprobs: Vec::new(),
            }],
        })
    }
}

impl Scored {
    /// The first one has no score, whatever the tokenizer puts before it.
    fn tokens(&self, chat: &ChatModel, scores: &[Token]) -> Vec<EchoedToken> {
        let mut decoder = chat.decode_stream();
        let mut offset = 0;
        let first = self.n_prompt - self.ids.len();
        let tokens = self.ids.iter().enumerate().map(|(i, &id)| {
            let score = (i > 0).then(|| &scores[first + i - 1]);
            let began = offset;
            offset += decoder
                .push(id)
                .map_or(0, |text| text.chars().count() as u64);
            EchoedToken {
                token: chat.token_text(id).0,
                offset: began,
                logprob: score.map(|score| finite(score.logprob)),
                top: score.map_or(Vec::new(), |score| likeliest(chat, score)),
            }
        });
        tokens.collect()
    }
}

/// The whole text comes first.
fn lines(index: u32, text: &str, tokens: &[EchoedToken]) -> Vec<GenerateEvent> {
    let n_lines = tokens.len().div_ceil(TOKENS_PER_LINE).max(1);
    let line = |i: usize| GenerateEvent::Echo {
        index,
        text: if i == 0 {
            text.to_owned()
        } else {
            String::new()
        },
        tokens: tokens
            .iter()
            .skip(i * TOKENS_PER_LINE)
            .take(TOKENS_PER_LINE)
            .cloned()
            .collect(),
    };
    (0..n_lines).map(line).collect()
}
