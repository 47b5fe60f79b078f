//! Owns one sequence: its tokens, what of them is cached, and how it begins, goes on and ends.

use std::collections::HashMap;

use super::{
    AdmitError, Drawn, FailReason, Failed, FinishReason, GenerateRequest, Known, Limits,
    SequenceId, StepOutput, Walk,
};
use crate::config::ModelConfig;
use crate::kv::{Beginning, KvCache, PAGE, Pages};
use crate::sampling::{Choice, Draw, Nothing, choose};

/// A sequence that is taken in and not finished.
pub(super) struct Sequence {
    pub id: SequenceId,
    pub request: GenerateRequest,
    /// Prompt and answer; those beyond the cache are yet to be run.
    pub tokens: Vec<u32>,
    /// Where the sequence ends, at the latest.
    pub max_tokens: usize,
    pub cache: KvCache,
    /// Tokens of a prompt that is scored, up to the last one that was: the first has no score.
    n_scored: usize,
    /// The tokens of the full pages, and what it was before the first.
    beginning: Beginning,
    nothing: Beginning,
    generated: HashMap<u32, u32>,
    walk: Option<Box<dyn Walk>>,
    n_reused: usize,
}

impl Sequence {
    /// `beginning`: of no token yet.
    pub fn new(
        id: SequenceId,
        request: GenerateRequest,
        max_tokens: usize,
        cache: KvCache,
        beginning: Beginning,
    ) -> Self {
        // Nothing is asked of what follows the last token of a prompt that is scored.
        let n_run = request.prompt.len() - usize::from(request.max_new_tokens == 0);
        Self {
            id,
            tokens: request.prompt[..n_run].to_vec(),
            n_scored: 1,
            walk: request.grammar.as_ref().map(|grammar| grammar.begin()),
            request,
            max_tokens,
            cache,
            beginning: beginning.clone(),
            nothing: beginning,
            generated: HashMap::new(),
            n_reused: 0,
        }
    }

    pub fn pending(&self) -> &[u32] {
        &self.tokens[self.cache.n_cached..]
    }

    /// Pages that its pending tokens need, and the next one.
    pub fn n_missing(&self) -> usize {
        let next = self.max_tokens.min(self.tokens.len() + 1);
        self.cache.n_missing(next - self.cache.n_cached)
    }

    /// Begins with the pages of what was run before; rows whose logits are wanted are always run: the last one, or those before tokens
    /// that are yet to be scored.
    pub fn reuse(&mut self, pages: &mut Pages) {
        let n_unwanted = match self.is_scored() {
            true => self.n_scored - 1,
            false => self.tokens.len() - 1,
        };
        let whole = self.tokens[..n_unwanted].chunks_exact(PAGE);
        for tokens in whole {
            let Some((longer, page)) = pages.find(&self.beginning, tokens) else {
                break;
            };
            self.beginning = longer;
            self.cache.pages.push(page);
            self.cache.n_cached += PAGE;
        }
        if self.generated.is_empty() {
            self.n_reused = self.cache.n_cached;
        }
    }

    /// `n` more tokens are cached; pages that are full now are kept for others.
    pub fn advance(&mut self, n: usize, pages: &mut Pages) {
        let full = self.cache.n_cached / PAGE..(self.cache.n_cached + n) / PAGE;
        for i in full {
            let tokens = &self.tokens[i * PAGE..(i + 1) * PAGE];
            self.beginning = pages.keep(&self.beginning, tokens, &mut self.cache.pages[i]);
        }
        self.cache.n_cached += n;
    }

    /// Leaves its pages to others; what is still there when it runs again is used again.
    pub fn start_again(&mut self, pages: &mut Pages) {
        pages.give_back(self.cache.pages.drain(..));
        self.cache.n_cached = 0;
        self.beginning = self.nothing.clone();
    }

    /// Whether its prompt is scored, and no token is drawn.
    pub fn is_scored(&self) -> bool {
        self.request.max_new_tokens == 0
    }

    /// Of the next `n` rows, the first of which is `first` in the step, those before tokens that are yet to be scored.
    pub fn known(&self, first: usize, n: usize) -> impl Iterator<Item = Known> {
        let start = self.cache.n_cached;
        let n_top = self.request.top_logprobs.unwrap_or(0);
        let next = match self.is_scored() {
            true => self.n_scored..start + n + 1,
            false => 0..0,
        };
        next.map(move |at| Known {
            row: first + at - 1 - start,
            token: self.request.prompt[at],
            n_top,
        })
    }

    /// All that its next token needs, if that is a draw from the softmax as it is.
    pub fn draw(&self, vocab: usize) -> Option<Draw> {
        let request = &self.request;
        let is_plain = self.walk.is_none() && request.top_logprobs.unwrap_or(0) == 0;
        let n_generated = (self.tokens.len() - request.prompt.len()) as u64;
        let draw = || request.sampling.plain_draw(vocab, n_generated);
        is_plain.then(draw).flatten()
    }

    /// What the model drew for it.
    pub fn take(&self, drawn: Drawn) -> Result<Choice, Failed> {
        match drawn {
            Drawn::Token { token, logprob } => Ok(Choice {
                token,
                logprob,
                top: Vec::new(),
            }),
            Drawn::NotFinite => Err(self.failed(Nothing::NotFinite)),
        }
    }

    /// The next token out of its logits.
    pub fn choose(&mut self, logits: &mut [f32]) -> Result<Choice, Failed> {
        let n_generated = (self.tokens.len() - self.request.prompt.len()) as u64;
        let id = self.id;
        let allowed = match &mut self.walk {
            Some(walk) => walk.allowed().map_err(|reason| Failed {
                id,
                reason: FailReason::Grammar(reason),
            })?,
            None => None,
        };
        let n_top = self.request.top_logprobs.unwrap_or(0);
        let sampling = &self.request.sampling;
        choose(
            logits,
            sampling,
            &self.generated,
            allowed,
            n_generated,
            n_top,
        )
        .map_err(|nothing| self.failed(nothing))
    }

    /// Why it ends without a token.
    pub fn failed(&self, nothing: Nothing) -> Failed {
        let reason = match nothing {
            Nothing::NotFinite => FailReason::NotFinite,
            Nothing::Allowed => {
                FailReason::Grammar("it allows no token of the vocabulary".to_owned())
            }
        };
        Failed {
            id: self.id,
            reason,
        }
    }

    /// The next token of the prompt has its score.
    pub fn score(&mut self, score: Choice) -> StepOutput {
        self.n_scored += 1;
        let is_last = self.n_scored == self.request.prompt.len();
        self.output(score, is_last.then_some(FinishReason::Length))
    }

    pub fn push(&mut self, choice: Choice) -> StepOutput {
        self.tokens.push(choice.token);
        *self.generated.entry(choice.token).or_default() += 1;
        let walk = self.walk.as_mut();
        let is_complete = walk.is_some_and(|walk| walk.take(choice.token));
        let finished = if self.request.stop_token_ids.contains(&choice.token) {
            Some(FinishReason::Stop)
        } else if is_complete {
            Some(FinishReason::Complete)
        } else if self.tokens.len() >= self.max_tokens {
            Some(FinishReason::Length)
        } else {
            None
        };
        self.output(choice, finished)
    }

    fn output(&self, choice: Choice, finished: Option<FinishReason>) -> StepOutput {
        StepOutput {
            id: self.id,
            token: choice.token,
            logprob: choice.logprob,
            top: choice.top,
            n_reused: self.n_reused,
            finished,
        }
    }
}

/// Judges a request; returns the most tokens it can come to.
pub(super) fn check_request(
    config: &ModelConfig,
    limits: Limits,
    request: &GenerateRequest,
) -> Result<usize, AdmitError> {
    let n_tokens = request.prompt.len();
    if n_tokens == 0 {
        return Err(AdmitError::EmptyPrompt);
    }
    if request.max_new_tokens == 0 && n_tokens == 1 {
        return Err(AdmitError::NothingToScore);
    }
    let max_tokens = n_tokens
        .saturating_add(request.max_new_tokens)
        .min(config.max_position_embeddings);
    let limit = config.max_position_embeddings.min(limits.max_cached_tokens);
    if n_tokens + request.max_new_tokens.min(1) > limit || max_tokens > limits.max_cached_tokens {
        return Err(AdmitError::TooLong { n_tokens, limit });
    }
    check_tokens(config, &request.prompt)?;
    match &request.adapter {
        Some(adapter) if !adapter.layout().fits(config) => Err(AdmitError::WrongAdapter),
        _ => Ok(max_tokens),
    }
}

pub(super) fn check_tokens(config: &ModelConfig, tokens: &[u32]) -> Result<(), AdmitError> {
    let vocab_size = config.vocab_size;
    match tokens.iter().find(|&&token| token as usize >= vocab_size) {
        Some(&token) => Err(AdmitError::UnknownToken { token, vocab_size }),
        None => Ok(()),
    }
}
