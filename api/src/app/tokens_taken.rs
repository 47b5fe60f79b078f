//! What answers take, counted as their events pass by: for the ledger and for limits alike.

use domain::message::GenerateEvent;
use domain::usage::TokenUsage;

/// Tokens of one request, which may have several prompts.
#[derive(Default)]
pub struct TokensTaken {
    /// What workers said that answers took.
    told: TokenUsage,
    /// What was seen of answers that have not said so.
    seen: TokenUsage,
    /// Prompts that have begun to be answered and have not said what that took.
    n_open: u64,
}

impl TokensTaken {
    pub fn see(&mut self, event: &GenerateEvent) {
        match event {
            GenerateEvent::Started { prompt_tokens } => {
                self.n_open += 1;
                self.seen.prompt_tokens += prompt_tokens;
            }
            // A piece of text is about one token.
            GenerateEvent::Delta { .. } => self.seen.completion_tokens += 1,
            GenerateEvent::Done { usage } => {
                self.told += *usage;
                self.n_open = self.n_open.saturating_sub(1);
            }
            _ => {}
        }
    }

    /// What was told; of an answer that broke off at least what was seen of it.
    pub fn tokens(&self) -> TokenUsage {
        if self.n_open == 0 {
            return self.told;
        }
        let (told, seen) = (self.told, self.seen);
        TokenUsage {
            prompt_tokens: told.prompt_tokens.max(seen.prompt_tokens),
            cached_tokens: told.cached_tokens,
            completion_tokens: told.completion_tokens.max(seen.completion_tokens),
        }
    }
}
