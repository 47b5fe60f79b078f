//! What was consumed.

use serde::{Deserialize, Serialize};

/// Tokens of one answer, as OpenAI's `usage`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TokenUsage {
    pub prompt_tokens: u64,
    /// Tokens of the prompt that were not computed again.
    #[serde(default)]
    pub cached_tokens: u64,
    pub completion_tokens: u64,
}
