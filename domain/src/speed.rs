//! How fast trainings go, as finished ones measured it.

use serde::{Deserialize, Serialize};

use crate::words::words;

words! {
    /// What a training is computed on.
    DeviceKind {
        Cpu = "cpu",
        Gpu = "gpu",
    }
}

/// The speed of a training's steps, with the validations and checkpoints between them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TrainingSpeed {
    pub device: DeviceKind,
    pub tokens_per_s: f64,
}

/// How long a training on so many tokens takes at the median of these speeds. Seconds; `None` without any.
pub fn seconds_for(n_tokens: u64, speeds: &[TrainingSpeed]) -> Option<f64> {
    let mut speeds: Vec<f64> = speeds.iter().map(|speed| speed.tokens_per_s).collect();
    speeds.retain(|speed| speed.is_finite() && *speed > 0.0);
    speeds.sort_by(f64::total_cmp);
    let median = speeds.get(speeds.len() / 2)?;
    Some(n_tokens as f64 / median)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_training_takes_what_the_median_of_others_makes_of_it() {
        let seconds = |speeds: &[f64]| {
            let speeds = speeds.iter().map(|tokens_per_s| TrainingSpeed {
                device: DeviceKind::Cpu,
                tokens_per_s: *tokens_per_s,
            });
            seconds_for(1_000, &speeds.collect::<Vec<_>>())
        };
        assert_eq!(seconds(&[]), None);
        assert_eq!(seconds(&[0.0, f64::INFINITY]), None);
        assert_eq!(seconds(&[10.0]), Some(100.0));
        assert_eq!(seconds(&[1_000.0, 10.0, 20.0]), Some(50.0));
    }
}
