//! What an attempt trains on: conversations, or pairs of answers with what the reference says of them.

use engine::batch::Example;
use engine::train::{Pair, PairLogprobs};

use crate::device::{DeviceError, PairBatch, Training};

/// The rows of a dataset, as its format has them.
pub(super) enum Rows {
    Conversations(Vec<Example>),
    Pairs(Pairs),
}

/// Pairs, and log p of each by the adapter that the job began with, once it was asked for: it is the same in every epoch.
pub(super) struct Pairs {
    pairs: Vec<Pair>,
    references: Vec<Option<PairLogprobs>>,
}

impl From<Vec<Pair>> for Pairs {
    fn from(pairs: Vec<Pair>) -> Self {
        let references = vec![None; pairs.len()];
        Self { pairs, references }
    }
}

impl Pairs {
    /// Those at `places`, ready to be trained or scored on.
    pub async fn choose(
        &mut self,
        training: &Training,
        has_reference: bool,
        places: &[usize],
    ) -> Result<PairBatch, DeviceError> {
        let pairs: Vec<Pair> = places.iter().map(|i| self.pairs[*i].clone()).collect();
        if !has_reference {
            let references = Vec::new();
            return Ok(PairBatch { pairs, references });
        }
        let unknown: Vec<usize> = places
            .iter()
            .copied()
            .filter(|i| self.references[*i].is_none())
            .collect();
        if !unknown.is_empty() {
            let asked = unknown.iter().map(|i| self.pairs[*i].clone()).collect();
            let told = training.reference_logprobs(asked).await?;
            for (place, logprobs) in unknown.into_iter().zip(told) {
                self.references[place] = Some(logprobs);
            }
        }
        let references = places.iter().filter_map(|i| self.references[*i]).collect();
        Ok(PairBatch { pairs, references })
    }

    /// Tokens of both answers of the longest at `places`.
    pub fn longest(&self, places: &[usize]) -> usize {
        let lengths = places.iter().map(|i| n_tokens(&self.pairs[*i]));
        lengths.max().unwrap_or(0)
    }
}

impl Rows {
    /// No validation file was given.
    pub fn none() -> Self {
        Rows::Conversations(Vec::new())
    }

    pub fn len(&self) -> usize {
        match self {
            Rows::Conversations(examples) => examples.len(),
            Rows::Pairs(Pairs { pairs, .. }) => pairs.len(),
        }
    }

    /// Tokens of what shares a pass at most: a conversation, or both answers of a pair.
    pub fn longest(&self) -> usize {
        let lengths: Vec<usize> = match self {
            Rows::Conversations(examples) => examples.iter().map(|e| e.tokens.len()).collect(),
            Rows::Pairs(Pairs { pairs, .. }) => pairs.iter().map(n_tokens).collect(),
        };
        lengths.into_iter().max().unwrap_or(0)
    }

    pub fn n_tokens(&self) -> u64 {
        let n: usize = match self {
            Rows::Conversations(examples) => examples.iter().map(|e| e.tokens.len()).sum(),
            Rows::Pairs(Pairs { pairs, .. }) => pairs.iter().map(n_tokens).sum(),
        };
        n as u64
    }

    /// What the tuned model is to say: the conversations, or the better answers.
    pub fn wanted(&self) -> Vec<&Example> {
        match self {
            Rows::Conversations(examples) => examples.iter().collect(),
            Rows::Pairs(Pairs { pairs, .. }) => pairs.iter().map(|pair| &pair.chosen).collect(),
        }
    }
}

/// Of both answers.
fn n_tokens(pair: &Pair) -> usize {
    pair.chosen.tokens.len() + pair.rejected.tokens.len()
}
