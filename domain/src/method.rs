//! How a job trains.

use serde::{Deserialize, Serialize};

use crate::hyperparameters::Hyperparameters;

/// OpenAI's `method`. The unsupported ones are refused where the request is read, except `dpo`, which is
/// accepted so that a file of another format fails the job as it does at OpenAI.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Method {
    Supervised {
        hyperparameters: Hyperparameters,
    },
    Dpo {
        beta: crate::hyperparameters::Auto<f64>,
        hyperparameters: Hyperparameters,
    },
}

impl Method {
    pub fn hyperparameters(&self) -> Hyperparameters {
        match self {
            Method::Supervised { hyperparameters }
            | Method::Dpo {
                hyperparameters, ..
            } => *hyperparameters,
        }
    }

    /// The value of `method.type`.
    pub fn name(&self) -> &'static str {
        match self {
            Method::Supervised { .. } => "supervised",
            Method::Dpo { .. } => "dpo",
        }
    }
}
