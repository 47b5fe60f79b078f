//! Answers to texts: `text_completion`, whole and in pieces.

use domain::generation::TokenLogprob;

use super::chat_reply::Usage;
use super::nullable::Nullable;
use super::reply::reply;

reply! {
    /// Whole answers.
    Completion as "Completion" {
        id: String,
        /// `text_completion`.
        object: &'static str,
        /// Unix seconds.
        created: i64,
        /// As asked for.
        model: String,
        /// Those of the first prompt first.
        choices: Vec<CompletionChoice>,
        usage: Usage,
    }

    CompletionChoice as "CompletionChoice" {
        text: String,
        index: u32,
        logprobs: Nullable<CompletionLogprobs>,
        /// `stop` or `length`.
        finish_reason: &'static str,
    }

    /// Log-probabilities of an answer's tokens, natural.
    CompletionLogprobs as "CompletionLogprobs" {
        tokens: Vec<String>,
        token_logprobs: Vec<f64>,
        /// For each place, the likeliest tokens with theirs.
        top_logprobs: Vec<serde_json::Value>,
        /// Where each token begins in the text. Characters.
        text_offset: Vec<u64>,
    }

    /// A piece of a streamed answer.
    CompletionChunk as "CompletionChunk" {
        id: String,
        /// `text_completion`.
        object: &'static str,
        /// Unix seconds, the same in every chunk.
        created: i64,
        model: String,
        /// Empty in the last chunk of a stream with usage.
        choices: Vec<CompletionChunkChoice>,
        /// Only with `include_usage`: null except in the last chunk.
        usage: Option<Nullable<Usage>>,
    }

    CompletionChunkChoice as "CompletionChunkChoice" {
        text: String,
        index: u32,
        logprobs: Nullable<CompletionLogprobs>,
        finish_reason: Nullable<&'static str>,
    }
}

impl CompletionLogprobs {
    pub fn none() -> Self {
        Self {
            tokens: Vec::new(),
            token_logprobs: Vec::new(),
            top_logprobs: Vec::new(),
            text_offset: Vec::new(),
        }
    }

    /// Adds a token that begins at `offset`; returns where it ends.
    pub fn push(&mut self, token: TokenLogprob, offset: u64) -> u64 {
        let top = token.top.into_iter();
        let top: serde_json::Map<_, _> = top
            .map(|top| (top.token, f64::from(top.logprob).into()))
            .collect();
        let end = offset + token.token.chars().count() as u64;
        self.tokens.push(token.token);
        self.token_logprobs.push(f64::from(token.logprob));
        self.top_logprobs.push(top.into());
        self.text_offset.push(offset);
        end
    }
}
