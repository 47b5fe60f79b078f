//! What a job with method `dpo` minimises.

use serde::{Deserialize, Serialize};

use crate::hyperparameters::Auto;

/// `method.dpo.hyperparameters` beside what every method has. The names are TRL's and LLaMA-Factory's; a request and a job spell all but
/// `beta` with `x_` before them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Preference {
    /// How much a nat of log p counts; above 0, at most 2.
    pub beta: Auto<f64>,
    #[serde(default)]
    pub loss_type: PreferenceLoss,
    /// Part of the pairs that are taken to be the wrong way round, below ½.
    #[serde(default)]
    pub label_smoothing: f64,
    /// By how much the better answer should be ahead, for `simpo`.
    #[serde(default = "simpo_gamma")]
    pub simpo_gamma: f64,
    /// How much the mean of −log p over the better answer counts beside the loss.
    #[serde(default)]
    pub pref_ftx: f64,
    /// How much a good answer counts, for `kto`.
    #[serde(default = "weight")]
    pub desirable_weight: f64,
    /// How much a bad answer counts, for `kto`.
    #[serde(default = "weight")]
    pub undesirable_weight: f64,
}

/// That of TRL and LLaMA-Factory.
pub const DEFAULT_BETA: f64 = 0.1;
/// That of TRL and LLaMA-Factory.
pub const DEFAULT_SIMPO_GAMMA: f64 = 0.5;
/// The fewest rows of a step of `kto`, which compares a row with the others.
pub const MIN_KTO_BATCH: u32 = 2;

fn simpo_gamma() -> f64 {
    DEFAULT_SIMPO_GAMMA
}

fn weight() -> f64 {
    1.0
}

impl Default for Preference {
    fn default() -> Self {
        Self {
            beta: Auto::Auto,
            loss_type: PreferenceLoss::default(),
            label_smoothing: 0.0,
            simpo_gamma: DEFAULT_SIMPO_GAMMA,
            pref_ftx: 0.0,
            desirable_weight: weight(),
            undesirable_weight: weight(),
        }
    }
}

/// A loss over a better and a worse answer, or (`kto`) over one that was judged, by TRL's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PreferenceLoss {
    /// DPO.
    #[default]
    Sigmoid,
    Robust,
    Hinge,
    Ipo,
    ExoPair,
    NcaPair,
    BcoPair,
    SppoHard,
    ApoZero,
    ApoDown,
    Aot,
    AotUnpaired,
    Kto,
    Orpo,
    Simpo,
    Cpo,
}

impl PreferenceLoss {
    pub const ALL: [PreferenceLoss; 16] = [
        PreferenceLoss::Sigmoid,
        PreferenceLoss::Robust,
        PreferenceLoss::Hinge,
        PreferenceLoss::Ipo,
        PreferenceLoss::ExoPair,
        PreferenceLoss::NcaPair,
        PreferenceLoss::BcoPair,
        PreferenceLoss::SppoHard,
        PreferenceLoss::ApoZero,
        PreferenceLoss::ApoDown,
        PreferenceLoss::Aot,
        PreferenceLoss::AotUnpaired,
        PreferenceLoss::Kto,
        PreferenceLoss::Orpo,
        PreferenceLoss::Simpo,
        PreferenceLoss::Cpo,
    ];

    pub fn name(self) -> &'static str {
        match self {
            PreferenceLoss::Sigmoid => "sigmoid",
            PreferenceLoss::Robust => "robust",
            PreferenceLoss::Hinge => "hinge",
            PreferenceLoss::Ipo => "ipo",
            PreferenceLoss::ExoPair => "exo_pair",
            PreferenceLoss::NcaPair => "nca_pair",
            PreferenceLoss::BcoPair => "bco_pair",
            PreferenceLoss::SppoHard => "sppo_hard",
            PreferenceLoss::ApoZero => "apo_zero",
            PreferenceLoss::ApoDown => "apo_down",
            PreferenceLoss::Aot => "aot",
            PreferenceLoss::AotUnpaired => "aot_unpaired",
            PreferenceLoss::Kto => "kto",
            PreferenceLoss::Orpo => "orpo",
            PreferenceLoss::Simpo => "simpo",
            PreferenceLoss::Cpo => "cpo",
        }
    }

    /// Whether it reads `label_smoothing`.
    pub fn is_smoothed(self) -> bool {
        matches!(
            self,
            PreferenceLoss::Sigmoid
                | PreferenceLoss::Robust
                | PreferenceLoss::ExoPair
                | PreferenceLoss::Aot
                | PreferenceLoss::AotUnpaired
        )
    }

    /// Whether it goes by single answers that were judged, not by pairs.
    pub fn is_unpaired(self) -> bool {
        self == PreferenceLoss::Kto
    }

    /// Whether what a row comes to depends on the others of its step.
    pub fn couples_rows(self) -> bool {
        matches!(
            self,
            PreferenceLoss::Aot | PreferenceLoss::AotUnpaired | PreferenceLoss::Kto
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_are_written() {
        for loss in PreferenceLoss::ALL {
            assert_eq!(serde_json::to_value(loss).unwrap(), loss.name());
        }
    }
}
