//! How a tokenized example becomes one that a training step reads: no longer than `data.max_length`. Validation and
//! training both go through here, so both count the same examples and tokens.

use domain::x_training::{Data, Truncation};

use super::{ChatModel, RenderError, TokenizedExample};
use crate::formats::TrainingExample;

/// An example that is short enough, or its absence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fitted {
    Whole(TokenizedExample),
    /// One end was cut off.
    Cut(TokenizedExample),
    /// It was too long and is left out.
    Dropped,
}

impl Fitted {
    /// `None` where the example is left out.
    pub fn into_example(self) -> Option<TokenizedExample> {
        match self {
            Fitted::Whole(example) | Fitted::Cut(example) => Some(example),
            Fitted::Dropped => None,
        }
    }
}

impl ChatModel {
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
            }
        };
        match &fitted {
            Fitted::Whole(example) | Fitted::Cut(example) if !example.has_label() => {
                Err(RenderError::NothingLeft(max_length))
            }
            _ => Ok(fitted),
        }
    }
}

impl TokenizedExample {
    fn between(mut self, start: usize, end: usize) -> Self {
        self.tokens = self.tokens[start..end].to_vec();
        self.mask = self.mask[start..end].to_vec();
        self
    }

    /// The first token is nobody's next token, so it cannot be learned.
    fn has_label(&self) -> bool {
        self.mask.iter().skip(1).any(|is_label| *is_label)
    }
}
