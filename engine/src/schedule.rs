//! Owns how the learning rate changes over a run.

/// The shape of the learning rate after its warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Schedule {
    Constant,
    /// Down to 0 at the last step.
    #[default]
    Linear,
    /// Half a cosine, down to 0 at the last step.
    Cosine,
}

impl Schedule {
    /// The share of the full learning rate at 0-based `step` of `total_steps`: t/w during the `warmup_steps`, so 0 at
    /// the first, then the shape over what is left. Source: transformers' `get_scheduler`.
    pub fn factor(self, step: u64, warmup_steps: u64, total_steps: u64) -> f64 {
        if step < warmup_steps {
            return step as f64 / warmup_steps.max(1) as f64;
        }
        let done =
            (step - warmup_steps) as f64 / total_steps.saturating_sub(warmup_steps).max(1) as f64;
        match self {
            Schedule::Constant => 1.0,
            Schedule::Linear => (1.0 - done).max(0.0),
            Schedule::Cosine => {
                (0.5 * (1.0 + (std::f64::consts::PI * done.min(1.0)).cos())).max(0.0)
            }
        }
    }

    /// The name in a configuration.
    pub fn name(self) -> &'static str {
        match self {
            Schedule::Constant => "constant",
            Schedule::Linear => "linear",
            Schedule::Cosine => "cosine",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_factors_are_those_of_transformers() {
        let cases = [
            (Schedule::Constant, 0, 0, 1.0),
            (Schedule::Constant, 5, 10, 0.5),
            (Schedule::Linear, 0, 0, 1.0),
            (Schedule::Linear, 0, 10, 0.0),
            (Schedule::Linear, 10, 10, 1.0),
            (Schedule::Linear, 55, 10, 0.5),
            (Schedule::Linear, 100, 10, 0.0),
            (Schedule::Cosine, 10, 10, 1.0),
            (Schedule::Cosine, 55, 10, 0.5),
            (Schedule::Cosine, 200, 10, 0.0),
        ];
        for (schedule, step, warmup, expected) in cases {
            let factor = schedule.factor(step, warmup, 100);
            assert!(
                (factor - expected).abs() < 1e-12,
                "{schedule:?} at {step} after {warmup}: {factor}"
            );
        }
    }
}
