//! How a job trains.

use serde::{Deserialize, Serialize};

use crate::hyperparameters::{Hyperparameters, ResolvedHyperparameters, base_learning_rate};
use crate::preference::Preference;

/// OpenAI's `method`. The unsupported ones are refused where the request is read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Method {
    Supervised {
        hyperparameters: Hyperparameters,
    },
    Dpo {
        #[serde(flatten)]
        preference: Preference,
        hyperparameters: Hyperparameters,
    },
}

/// Of the rate that suits a supervised training, what suits one by preference. TRL's and LLaMA-Factory's own examples lie a tenth to a
/// hundredth below their supervised ones: whole answers are pushed apart, and a model that is pushed too far talks nonsense.
const PREFERENCE_RATE: f64 = 0.1;

impl Method {
    pub fn hyperparameters(&self) -> Hyperparameters {
        match self {
            Method::Supervised { hyperparameters }
            | Method::Dpo {
                hyperparameters, ..
            } => *hyperparameters,
        }
    }

    /// What a training by preference minimises.
    pub fn preference(&self) -> Option<Preference> {
        match self {
            Method::Supervised { .. } => None,
            Method::Dpo { preference, .. } => Some(*preference),
        }
    }

    /// Replaces every `"auto"` of the hyperparameters. `n_examples` ≥ 1 training examples; `hidden_size` of the base model.
    pub fn resolve(&self, n_examples: u64, hidden_size: u32) -> ResolvedHyperparameters {
        let part = match self {
            Method::Supervised { .. } => 1.0,
            Method::Dpo { .. } => PREFERENCE_RATE,
        };
        let rate = part * base_learning_rate(hidden_size);
        self.hyperparameters().resolve(n_examples, rate)
    }

    /// The value of `method.type`.
    pub fn name(&self) -> &'static str {
        match self {
            Method::Supervised { .. } => "supervised",
            Method::Dpo { .. } => "dpo",
        }
    }
}
