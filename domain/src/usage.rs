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

/// What several requests have taken together.
impl std::ops::AddAssign for TokenUsage {
    fn add_assign(&mut self, other: Self) {
        self.prompt_tokens += other.prompt_tokens;
        self.cached_tokens += other.cached_tokens;
        self.completion_tokens += other.completion_tokens;
    }
}
