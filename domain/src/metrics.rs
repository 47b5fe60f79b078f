//! What a step of training measured.

use serde::{Deserialize, Serialize};

/// The measurements of one optimizer step; the words are OpenAI's. Losses are nats per label token.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct StepMetrics {
    /// 1-based.
    pub step: u64,
    pub train_loss: f64,
    pub train_mean_token_accuracy: f64,
    /// Tokens the step read, labels or not; ours alone, hence the prefix.
    #[serde(rename = "x_n_tokens", default)]
    pub n_tokens: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_loss: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_mean_token_accuracy: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub full_valid_loss: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub full_valid_mean_token_accuracy: Option<f64>,
}
