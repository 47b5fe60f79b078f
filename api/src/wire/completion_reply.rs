//! Answers to texts: `text_completion`, whole and in pieces.

use domain::generation::{EchoedToken, TokenLogprob, TopLogprob};

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

    /// Log-probabilities of an answer's tokens, natural; with `echo` of the prompt's, too, and of the token that ended the answer.
    CompletionLogprobs as "CompletionLogprobs" {
        tokens: Vec<String>,
        /// `null` of a prompt's first token.
        token_logprobs: Vec<Nullable<f64>>,
        /// For each place, the likeliest tokens with theirs, and the one that stands there; `null` in that of a prompt's first token.
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
        let end = offset + token.token.chars().count() as u64;
        self.top_logprobs
            .push(by_token(token.top, &token.token, token.logprob));
        self.tokens.push(token.token);
        self.token_logprobs
            .push(Nullable(Some(f64::from(token.logprob))));
        self.text_offset.push(offset);
        end
    }

    /// Adds a token of the prompt.
    pub fn push_echoed(&mut self, token: EchoedToken) {
        let top = (token.logprob).map(|logprob| by_token(token.top, &token.token, logprob));
        self.tokens.push(token.token);
        self.token_logprobs
            .push(Nullable(token.logprob.map(f64::from)));
        self.top_logprobs.push(top.unwrap_or_default());
        self.text_offset.push(token.offset);
    }
}

/// Of tokens that are spelled alike the likeliest counts. `chosen` is told of, too, where any are.
fn by_token(top: Vec<TopLogprob>, chosen: &str, logprob: f32) -> serde_json::Value {
    let mut by_token = serde_json::Map::new();
    for TopLogprob { token, logprob, .. } in top {
        by_token
            .entry(token)
            .or_insert_with(|| f64::from(logprob).into());
    }
    if !by_token.is_empty() {
        by_token
            .entry(chosen)
            .or_insert_with(|| f64::from(logprob).into());
    }
    by_token.into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn of_likeliest_tokens_that_are_spelled_alike_the_first_counts() {
        let top = |token: &str, logprob| TopLogprob {
            token: token.to_owned(),
            bytes: Vec::new(),
            logprob,
        };
        let likeliest = vec![top("\u{fffd}", -0.5), top("a", -1.0), top("\u{fffd}", -2.0)];
        let told = by_token(likeliest, "a", -1.0);
        assert_eq!(told, json!({"\u{fffd}": -0.5, "a": -1.0}));
    }

    #[test]
    fn a_token_that_is_not_among_the_likeliest_is_told_of() {
        let likeliest = || TopLogprob {
            token: "a".to_owned(),
            bytes: Vec::new(),
            logprob: -0.5,
        };
        let told = by_token(vec![likeliest()], "z", -9.0);
        assert_eq!(told, json!({"a": -0.5, "z": -9.0}));
        assert_eq!(
            by_token(Vec::new(), "z", -9.0),
            json!({}),
            "nothing was asked for"
        );
    }
}
