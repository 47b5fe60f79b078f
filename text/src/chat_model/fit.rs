//! How a tokenized example becomes one that a training step reads: no longer than `data.max_length`. Validation and
//! training both go through here, so both count the same examples and tokens.

use domain::generation::ChatMessage;
use domain::x_training::{Data, Truncation};

use super::{ChatModel, RenderError, TokenizedExample};
use crate::formats::{ChatExample, PreferenceExample, TrainingExample};

/// An example that is short enough, or its absence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fitted {
    Whole(TokenizedExample),
    /// One end was cut off.
    Cut(TokenizedExample),
    /// Its pieces, in order; those without a label are left out.
    Split(Vec<TokenizedExample>),
    /// It was too long and is left out.
    Dropped,
}

impl Fitted {
    /// What is trained on.
    pub fn examples(&self) -> &[TokenizedExample] {
        match self {
            Fitted::Whole(example) | Fitted::Cut(example) => std::slice::from_ref(example),
            Fitted::Split(pieces) => pieces,
            Fitted::Dropped => &[],
        }
    }

    /// As [`Self::examples`].
    pub fn into_examples(self) -> Vec<TokenizedExample> {
        match self {
            Fitted::Whole(example) | Fitted::Cut(example) => vec![example],
            Fitted::Split(pieces) => pieces,
            Fitted::Dropped => Vec::new(),
        }
    }
}

/// A prompt with each of its answers, both short enough, or their absence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FittedPair {
    Whole(TokenizedPair),
    /// One end of an answer or of both was cut off.
    Cut(TokenizedPair),
    /// An answer was too long and the pair is left out.
    Dropped,
}

/// The labels of each are its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenizedPair {
    pub preferred: TokenizedExample,
    pub non_preferred: TokenizedExample,
}

impl FittedPair {
    /// What is trained on.
    pub fn pair(&self) -> Option<&TokenizedPair> {
        match self {
            FittedPair::Whole(pair) | FittedPair::Cut(pair) => Some(pair),
            FittedPair::Dropped => None,
        }
    }

    /// As [`Self::pair`].
    pub fn into_pair(self) -> Option<TokenizedPair> {
        match self {
            FittedPair::Whole(pair) | FittedPair::Cut(pair) => Some(pair),
            FittedPair::Dropped => None,
        }
    }
}

impl ChatModel {
    /// The tokens of a pair, each answer behind the prompt and within `data.max_length` and the context. What cuts into pieces leaves a
    /// pair out.
    /// Errors: as [`ChatModel::fit`].
    pub fn fit_pair(
        &self,
        example: &PreferenceExample,
        data: &Data,
    ) -> Result<FittedPair, RenderError> {
        let mut is_cut = false;
        let mut fit = |answer: &ChatMessage| -> Result<Option<TokenizedExample>, RenderError> {
            let mut messages = example.messages.clone();
            messages.push(answer.clone());
            let mut trained = vec![false; messages.len()];
            trained[messages.len() - 1] = true;
            let chat = TrainingExample::Chat(ChatExample {
                messages,
                trained,
                tools: example.tools.clone(),
                parallel_tool_calls: example.parallel_tool_calls,
            });
            Ok(match self.fit(&chat, data)? {
                Fitted::Whole(example) => Some(example),
                Fitted::Cut(example) => {
                    is_cut = true;
                    Some(example)
                }
                Fitted::Split(_) | Fitted::Dropped => None,
            })
        };
        let (preferred, non_preferred) = (fit(&example.preferred)?, fit(&example.non_preferred)?);
        let (Some(preferred), Some(non_preferred)) = (preferred, non_preferred) else {
            return Ok(FittedPair::Dropped);
        };
        let pair = TokenizedPair {
            preferred,
            non_preferred,
        };
        Ok(match is_cut {
            true => FittedPair::Cut(pair),
            false => FittedPair::Whole(pair),
        })
    }

    /// The tokens of a training example within `data.max_length` and the context.
    /// Errors: those of [`ChatModel::example`]; `TooLong` where `data.truncation` refuses long ones; `NothingLeft`.
    pub fn fit(&self, example: &TrainingExample, data: &Data) -> Result<Fitted, RenderError> {
        let max_length = self.context_length.min(data.max_length as usize);
        let example = self.example(example)?;
        let n_tokens = example.tokens.len();
        let fitted = if n_tokens <= max_length {
            Fitted::Whole(example)
        } else {
            match data.truncation {
                Truncation::Drop => return Ok(Fitted::Dropped),
                Truncation::Error => {
                    return Err(RenderError::TooLong {
                        n_tokens,
                        max_length,
                    });
                }
                Truncation::Right => Fitted::Cut(example.between(0, max_length)),
                Truncation::Left => Fitted::Cut(example.between(n_tokens - max_length, n_tokens)),
                Truncation::Split => Fitted::Split(example.pieces(max_length)),
            }
        };
        if fitted.examples().iter().any(TokenizedExample::has_label) {
            Ok(fitted)
        } else {
            Err(RenderError::NothingLeft(max_length))
        }
    }
}

impl TokenizedExample {
    fn between(&self, start: usize, end: usize) -> Self {
        Self {
            tokens: self.tokens[start..end].to_vec(),
            mask: self.mask[start..end].to_vec(),
        }
    }

    /// Consecutive pieces of at most `max_length` ≥ 2 tokens, those that have a label. Each begins with the token that the one
    /// before it ends with, as the first token of an example cannot be learned: so every label is learned once.
    fn pieces(&self, max_length: usize) -> Vec<Self> {
        let n_tokens = self.tokens.len();
        let starts = (0..n_tokens - 1).step_by(max_length - 1);
        let pieces = starts.map(|start| {
            let mut piece = self.between(start, n_tokens.min(start + max_length));
            piece.mask[0] &= start == 0;
            piece
        });
        pieces.filter(Self::has_label).collect()
    }

    /// How many tokens are learned. The first token is nobody's next token, so it cannot be.
    pub fn n_labels(&self) -> usize {
        let learned = self.mask.iter().skip(1);
        learned.filter(|is_label| **is_label).count()
    }

    /// What stands before the first label. Tokens.
    pub fn n_prompt(&self) -> usize {
        let first = self.mask.iter().position(|is_label| *is_label);
        first.unwrap_or(self.tokens.len())
    }

    fn has_label(&self) -> bool {
        self.mask.iter().skip(1).any(|is_label| *is_label)
    }
}
