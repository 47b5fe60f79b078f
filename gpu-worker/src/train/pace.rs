//! How fast an attempt goes, and how long it will go on.

use tokio::time::Instant;

/// Steps after the first before anything is said: one long example must not decide.
const ENOUGH: u64 = 5;

/// Counts steps by the clock that it is told.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// The end of the first step, which brings to memory what the others find there, and is not counted.
    since: Option<Instant>,
    until: Option<Instant>,
    n_steps: u64,
    n_tokens: u64,
}

impl Pace {
    /// A step on so many tokens has ended, and what came with it: validation, the checkpoint before it.
    pub fn step_ended(&mut self, n_tokens: u64, at: Instant) {
        if self.since.is_none() {
            self.since = Some(at);
            return;
        }
        self.until = Some(at);
        self.n_steps += 1;
        self.n_tokens += n_tokens;
    }

    /// At the mean speed so far. Seconds; `None`: too early to say.
    pub fn seconds_for(&self, n_steps: u64) -> Option<f64> {
        let per_step_s = self.seconds()? / self.n_steps as f64;
        Some(per_step_s * n_steps as f64)
    }

    /// `None`: too early to say.
    pub fn tokens_per_s(&self) -> Option<f64> {
        let seconds = self.seconds()?;
        (seconds > 0.0).then(|| self.n_tokens as f64 / seconds)
    }

    fn seconds(&self) -> Option<f64> {
        let (since, until) = (self.since?, self.until?);
        (self.n_steps >= ENOUGH).then(|| (until - since).as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn nothing_is_said_before_enough_steps_and_the_first_one_does_not_count() {
        let start = Instant::now();
        let mut pace = Pace::default();
        let mut step = |at_s: u64| {
            pace.step_ended(100, start + Duration::from_secs(at_s));
            (pace.seconds_for(10), pace.tokens_per_s())
        };
        // The first one takes 60 s, the others 2 s each.
        for at_s in [60, 62, 64, 66, 68] {
            assert_eq!(step(at_s), (None, None));
        }
        assert_eq!(step(70), (Some(20.0), Some(50.0)));
        // A slow one weighs as much as any.
        assert_eq!(step(84), (Some(40.0), Some(25.0)));
    }
}
