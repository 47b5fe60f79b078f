//! A job that goes on from an adapter: the adapter's own configuration stands, and only what is not part of it may
//! be asked for anew.

use serde::Deserialize;

use super::{
    Adapter, AskedAdapter, BaseWeights, Bias, FrozenWeights, Init, Pairs, Refusal, TargetModules,
};

/// An adapter's `adapter_config.json` that cannot be taken over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("adapter_config.json: {0}")]
pub struct UnreadableAdapterConfig(String);

/// What a job takes over from the adapter that it goes on from.
#[derive(Debug, Clone, PartialEq)]
pub struct Inherited {
    pub adapter: Adapter,
    /// What it was trained on.
    pub frozen_weights: FrozenWeights,
}

impl Inherited {
    /// `base_weights` and `double_quant`, as a request spells them.
    pub(super) fn base_weights(&self) -> (BaseWeights, bool) {
        match self.frozen_weights {
            FrozenWeights::Stored => (BaseWeights::Stored, false),
            FrozenWeights::Bf16 => (BaseWeights::Bf16, false),
            FrozenWeights::Int8 => (BaseWeights::Int8, false),
            FrozenWeights::Fp8 => (BaseWeights::Fp8, false),
            FrozenWeights::Nf4 => (BaseWeights::Nf4, false),
            FrozenWeights::Nf4DoubleQuant => (BaseWeights::Nf4, true),
        }
    }
}

/// The keys of PEFT's `adapter_config.json` that decide what the adapter is; whoever loads it judges the rest.
#[derive(Deserialize)]
struct PeftConfig {
    r: u32,
    lora_alpha: f64,
    #[serde(default)]
    lora_dropout: f64,
    target_modules: TargetModules,
    #[serde(default)]
    rank_pattern: Option<Pairs<u32>>,
    #[serde(default)]
    alpha_pattern: Option<Pairs<f64>>,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
    #[serde(default)]
    bias: Option<Bias>,
    #[serde(default)]
    modules_to_save: Option<Vec<String>>,
}

impl Adapter {
    /// The configuration of an adapter in a bucket. Errors: JSON that is not PEFT's, or of other types.
    pub fn from_peft(adapter_config: &str) -> Result<Self, UnreadableAdapterConfig> {
        let config: PeftConfig = serde_json::from_str(adapter_config)
            .map_err(|error| UnreadableAdapterConfig(error.to_string()))?;
        Ok(Self {
            r: config.r,
            alpha: config.lora_alpha,
            dropout: config.lora_dropout,
            target_modules: config.target_modules,
            rank_pattern: config.rank_pattern.unwrap_or_default(),
            alpha_pattern: config.alpha_pattern.unwrap_or_default(),
            use_rslora: config.use_rslora,
            use_dora: config.use_dora,
            bias: config.bias.unwrap_or(Bias::None),
            modules_to_save: config.modules_to_save.unwrap_or_default(),
            ..Self::default()
        })
    }
}

impl AskedAdapter {
    /// `inherited` with the dropout that is asked for: it alone is no part of what was trained.
    /// Errors: `Conflict` for a key that would make it another adapter.
    pub(super) fn continued(self, inherited: Adapter) -> Result<Adapter, Refusal> {
        let same_targets = |asked: &TargetModules| is_same(asked, &inherited.target_modules);
        let is_kept = [
            ("r", agrees(&self.r, &inherited.r)),
            ("alpha", agrees(&self.alpha, &inherited.alpha)),
            (
                "target_modules",
                self.target_modules.as_ref().is_none_or(same_targets),
            ),
            (
                "rank_pattern",
                agrees(&self.rank_pattern, &inherited.rank_pattern),
            ),
            (
                "alpha_pattern",
                agrees(&self.alpha_pattern, &inherited.alpha_pattern),
            ),
            (
                "use_rslora",
                agrees(&self.use_rslora, &inherited.use_rslora),
            ),
            ("use_dora", agrees(&self.use_dora, &inherited.use_dora)),
            ("bias", agrees(&self.bias, &inherited.bias)),
            (
                "modules_to_save",
                agrees(&self.modules_to_save, &inherited.modules_to_save),
            ),
            ("init", agrees(&self.init, &Init::Default)),
        ];
        if let Some((key, _)) = is_kept.iter().find(|(_, is_kept)| !is_kept) {
            let reason =
                "it differs from that of the adapter that training goes on from; leave it out";
            return Err(Refusal::conflict(&format!("adapter.{key}"), reason));
        }
        Ok(Adapter {
            dropout: self.dropout.unwrap_or(inherited.dropout),
            continue_from: self.continue_from,
            ..inherited
        })
    }
}

fn agrees<T: PartialEq>(asked: &Option<T>, inherited: &T) -> bool {
    asked.as_ref().is_none_or(|asked| asked == inherited)
}

/// A list names the same modules in whatever order.
fn is_same(asked: &TargetModules, inherited: &TargetModules) -> bool {
    match (asked, inherited) {
        (TargetModules::Named(a), TargetModules::Named(b)) => {
            a.iter().all(|name| b.contains(name)) && b.iter().all(|name| a.contains(name))
        }
        (a, b) => a == b,
    }
}
