//! Hyperparameters: what a client may ask for, and the numbers that `"auto"` becomes.

use serde::{Deserialize, Serialize};

/// A number, or `"auto"`: let the service choose from the data.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Auto<T> {
    #[default]
    Auto,
    Given(T),
}

impl<T: Copy> Auto<T> {
    pub fn unwrap_or(self, chosen: T) -> T {
        match self {
            Auto::Auto => chosen,
            Auto::Given(value) => value,
        }
    }
}

impl<T: Serialize> Serialize for Auto<T> {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Auto::Auto => s.serialize_str("auto"),
            Auto::Given(value) => value.serialize(s),
        }
    }
}

impl<'de, T: serde::de::DeserializeOwned> Deserialize<'de> for Auto<T> {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(d)?;
        if value == "auto" {
            return Ok(Auto::Auto);
        }
        serde_json::from_value(value)
            .map(Auto::Given)
            .map_err(serde::de::Error::custom)
    }
}

/// What the client asked for.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Hyperparameters {
    #[serde(default)]
    pub n_epochs: Auto<u32>,
    #[serde(default)]
    pub batch_size: Auto<u32>,
    #[serde(default)]
    pub learning_rate_multiplier: Auto<f64>,
}

/// What the job runs with: every number known. Fixed during validation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ResolvedHyperparameters {
    pub n_epochs: u32,
    pub batch_size: u32,
    pub learning_rate_multiplier: f64,
    /// At its highest: what suits the base model and the method, times `learning_rate_multiplier`.
    pub learning_rate: f64,
}

pub const N_EPOCHS: std::ops::RangeInclusive<u32> = 1..=50;
pub const BATCH_SIZE: std::ops::RangeInclusive<u32> = 1..=256;

impl Hyperparameters {
    /// Replaces every `"auto"`. `n_examples` ≥ 1 training examples; `base_rate`: the peak learning rate at multiplier 1.
    pub fn resolve(self, n_examples: u64, base_rate: f64) -> ResolvedHyperparameters {
        let learning_rate_multiplier = self.learning_rate_multiplier.unwrap_or(1.0);
        ResolvedHyperparameters {
            n_epochs: self.n_epochs.unwrap_or(auto_n_epochs(n_examples)),
            batch_size: self.batch_size.unwrap_or(auto_batch_size(n_examples)),
            learning_rate_multiplier,
            learning_rate: round_12_digits(base_rate * learning_rate_multiplier),
        }
    }
}

/// To 12 significant digits. The number is written as JSON text and read back with each change of the job and by each
/// attempt; one of 17 digits may come back as its neighbour, and another attempt would train another model.
fn round_12_digits(value: f64) -> f64 {
    format!("{value:.11e}")
        .parse()
        .expect("a printed number reads back — a bug in round_12_digits")
}

/// OpenAI's public rule: 3 epochs, more for fewer than 34 examples, fewer above 8,333, so that a job sees
/// between 100 and 25,000 examples. Source: OpenAI cookbook, `Chat_finetuning_data_prep`.
pub fn auto_n_epochs(n_examples: u64) -> u32 {
    let n = n_examples.max(1);
    let epochs = match n {
        _ if 3 * n < 100 => (100 / n).min(25),
        _ if 3 * n > 25_000 => (25_000 / n).max(1),
        _ => 3,
    };
    u32::try_from(epochs).expect("at most 25 epochs — a bug in auto_n_epochs")
}

/// About 0.2 % of the examples, as OpenAI's older documentation says, but at least 4 (fewer when there are fewer
/// examples) and at most 64. Differs: OpenAI answers 1 for small files; a LoRA step on one short example
/// wastes most of a device.
pub fn auto_batch_size(n_examples: u64) -> u32 {
    let n = n_examples.max(1);
    u32::try_from((n / 500).clamp(4, 64).min(n)).expect("at most 64 — a bug in auto_batch_size")
}

/// Peak learning rate for LoRA on all linears at multiplier 1: `5e-4 · (2000 / hidden_size)^0.78`.
/// Source: Schulman et al. 2025, "LoRA Without Regret" (the Llama fit, ten times the full fine-tuning rate).
pub fn base_learning_rate(hidden_size: u32) -> f64 {
    5e-4 * (2000.0 / f64::from(hidden_size.max(1))).powf(0.781)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_epochs_follow_the_public_rule() {
        for (n, expected) in [
            (1, 25),
            (10, 10),
            (33, 3),
            (34, 3),
            (100, 3),
            (8_333, 3),
            (9_000, 2),
            (30_000, 1),
        ] {
            assert_eq!(auto_n_epochs(n), expected, "n = {n}");
        }
    }

    #[test]
    fn a_learning_rate_survives_any_number_of_trips_through_json() {
        for hidden_size in [64, 576, 896, 1536, 2048, 4096] {
            for multiplier in [0.1, 1.8, 2.0 / 3.0, 7.123456789123457] {
                let asked = Hyperparameters {
                    learning_rate_multiplier: Auto::Given(multiplier),
                    ..Hyperparameters::default()
                };
                let resolved = asked
                    .resolve(100, base_learning_rate(hidden_size))
                    .learning_rate;
                let mut read = resolved;
                for _ in 0..5 {
                    let text = serde_json::to_string(&read).unwrap();
                    read = serde_json::from_str(&text).unwrap();
                }
                assert_eq!(
                    read.to_bits(),
                    resolved.to_bits(),
                    "{hidden_size} × {multiplier}"
                );
            }
        }
    }

    #[test]
    fn given_numbers_stand_and_auto_is_resolved() {
        let asked: Hyperparameters =
            serde_json::from_str(r#"{"n_epochs": 7, "batch_size": "auto"}"#).unwrap();
        let resolved = asked.resolve(200, base_learning_rate(576));
        assert_eq!((resolved.n_epochs, resolved.batch_size), (7, 4));
        assert!(
            (resolved.learning_rate - 1.32e-3).abs() < 1e-5,
            "{}",
            resolved.learning_rate
        );
        assert_eq!(
            serde_json::to_string(&asked).unwrap(),
            r#"{"n_epochs":7,"batch_size":"auto","learning_rate_multiplier":"auto"}"#
        );
    }
}
