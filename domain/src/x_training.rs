//! How a job trains beyond OpenAI's parameters: what `x_training` asks for, what it becomes when every leaf is known,
//! and what does not go together. Names are PEFT's, shortened where the object's name says the rest.

mod inherit;
mod pairs;
mod refusal;
mod words;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use inherit::{Inherited, UnreadableAdapterConfig};
pub use pairs::Pairs;
pub use refusal::Refusal;
pub use words::{
    AdapterType, BaseWeights, Bias, Compute, DataFormat, FrozenWeights, GradientCheckpointing,
    Init, Packing, Truncation,
};

use crate::hyperparameters::Auto;
use crate::model::AdapterRef;

/// Rank of an adapter where none is asked for.
const DEFAULT_R: u32 = 16;
/// Ranks that a request may ask for. The base's width is a bound too, which the worker knows.
pub const R: std::ops::RangeInclusive<u32> = 1..=1024;

/// A job's own options and what follows from them; never changes after creation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct XTraining {
    /// As the client wrote it.
    pub asked: Option<Value>,
    pub resolved: Training,
    /// The adapter that training begins with, pinned at creation; `None`: a fresh one.
    pub start: Option<AdapterRef>,
    /// The tuned model that the client named in place of a base model.
    pub named_model: Option<String>,
}

/// What a job trains with: every leaf known.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Training {
    pub adapter: Adapter,
    pub optimizer: Optimizer,
    pub precision: Precision,
    pub memory: Memory,
    pub data: Data,
}

/// What is trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Adapter {
    pub r#type: AdapterType,
    pub r: u32,
    /// The change is scaled by `alpha / r`, with `use_rslora` by `alpha / √r`.
    pub alpha: f64,
    /// Part of the adapter's inputs that a training step sets to zero, 0 to below 1.
    pub dropout: f64,
    pub target_modules: TargetModules,
    /// Other ranks for the modules whose names match.
    pub rank_pattern: Pairs<u32>,
    /// Other alphas for the modules whose names match.
    pub alpha_pattern: Pairs<f64>,
    pub use_rslora: bool,
    pub use_dora: bool,
    pub bias: Bias,
    /// Modules that are trained whole and saved with the adapter.
    pub modules_to_save: Vec<String>,
    pub init: Init,
    /// The tuned model whose adapter training begins with.
    pub continue_from: Option<String>,
}

/// Which modules an adapter changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TargetModules {
    /// By the ends of their names.
    Named(Vec<String>),
    /// `all-linear`, or a regular expression that matches whole names.
    Pattern(String),
}

impl TargetModules {
    pub const ALL_LINEAR: &'static str = "all-linear";

    fn all_linear() -> Self {
        Self::Pattern(Self::ALL_LINEAR.to_owned())
    }
}

/// How the values are updated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Optimizer {
    /// LoRA+: the learning rate of B over that of A; at least 1. `None`: both have the same.
    pub loraplus_lr_ratio: Option<f64>,
}

/// What numbers are computed in and held as.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Precision {
    pub compute: Compute,
    /// What a GPU computes in where that is not `compute`: nothing else was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compute_on_gpu: Option<Compute>,
    pub base_weights: BaseWeights,
    /// The scales of nf4's blocks are quantised too.
    pub double_quant: bool,
}

impl Precision {
    /// `compute` "auto": on a CPU f32, which computes the same on every one; on a GPU bf16, which is what it is made for.
    const AUTO: (Compute, Option<Compute>) = (Compute::Fp32, Some(Compute::Bf16));

    /// How the base's frozen weights are held.
    pub fn frozen_weights(&self) -> FrozenWeights {
        match self.base_weights {
            BaseWeights::Stored => FrozenWeights::Stored,
            BaseWeights::Bf16 => FrozenWeights::Bf16,
            BaseWeights::Int8 => FrozenWeights::Int8,
            BaseWeights::Fp8 => FrozenWeights::Fp8,
            BaseWeights::Nf4 if self.double_quant => FrozenWeights::Nf4DoubleQuant,
            BaseWeights::Nf4 => FrozenWeights::Nf4,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    pub gradient_checkpointing: GradientCheckpointing,
}

/// How examples become what a step reads. Validation and training both go by it, so both count the same tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Data {
    /// Of the training file and of the validation file.
    #[serde(default)]
    pub format: DataFormat,
    /// Tokens of an example; at most the context of the base model.
    pub max_length: u32,
    pub truncation: Truncation,
    pub packing: Packing,
}

impl Training {
    /// What a job trains with that asks for nothing. `context_length` of its base model. Tokens.
    pub fn default_for(context_length: u32) -> Self {
        let (compute, compute_on_gpu) = Precision::AUTO;
        Self {
            adapter: Adapter::default(),
            optimizer: Optimizer {
                loraplus_lr_ratio: None,
            },
            precision: Precision {
                compute,
                compute_on_gpu,
                base_weights: BaseWeights::Stored,
                double_quant: false,
            },
            memory: Memory {
                gradient_checkpointing: GradientCheckpointing::Auto,
            },
            data: Data {
                format: DataFormat::Chat,
                max_length: context_length,
                truncation: Truncation::Right,
                packing: Packing::BinPack,
            },
        }
    }
}

/// LoRA on all linears with alpha at twice the rank.
/// Source: Hu et al. 2021 (arXiv:2106.09685); Schulman et al. 2025, "LoRA Without Regret", on all linears.
impl Default for Adapter {
    fn default() -> Self {
        Self {
            r#type: AdapterType::Lora,
            r: DEFAULT_R,
            alpha: 2.0 * f64::from(DEFAULT_R),
            dropout: 0.0,
            target_modules: TargetModules::all_linear(),
            rank_pattern: Pairs::default(),
            alpha_pattern: Pairs::default(),
            use_rslora: false,
            use_dora: false,
            bias: Bias::None,
            modules_to_save: Vec::new(),
            init: Init::Default,
            continue_from: None,
        }
    }
}

/// `x_training` as a request spells it: a leaf that is not given is `None`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct AskedTraining {
    pub adapter: AskedAdapter,
    pub loraplus_lr_ratio: Option<f64>,
    pub compute: Auto<Compute>,
    pub base_weights: Auto<BaseWeights>,
    pub double_quant: Option<bool>,
    pub gradient_checkpointing: Option<GradientCheckpointing>,
    pub format: Auto<DataFormat>,
    pub max_length: Option<u32>,
    pub truncation: Option<Truncation>,
    pub packing: Option<Packing>,
}

/// `x_training.adapter` as a request spells it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct AskedAdapter {
    pub r: Option<u32>,
    pub alpha: Option<f64>,
    pub dropout: Option<f64>,
    pub target_modules: Option<TargetModules>,
    pub rank_pattern: Option<Pairs<u32>>,
    pub alpha_pattern: Option<Pairs<f64>>,
    pub use_rslora: Option<bool>,
    pub use_dora: Option<bool>,
    pub bias: Option<Bias>,
    pub modules_to_save: Option<Vec<String>>,
    pub init: Option<Init>,
    pub continue_from: Option<String>,
}

impl AskedTraining {
    /// Every leaf. `context_length`: of the base model, in tokens. `inherited`: from the adapter that is continued.
    /// Errors: what does not go together, and what the base does not allow; by its path.
    pub fn resolve(
        self,
        context_length: u32,
        inherited: Option<Inherited>,
    ) -> Result<Training, Refusal> {
        self.check_pairs()?;
        let default = Training::default_for(context_length);
        let (base_weights, double_quant) = self.base_weights(&inherited);
        let (compute, compute_on_gpu) = match self.compute {
            Auto::Auto => Precision::AUTO,
            Auto::Given(asked) => (asked, None),
        };
        let training = Training {
            adapter: match inherited {
                Some(inherited) => self.adapter.continued(inherited.adapter)?,
                None => self.adapter.fresh(),
            },
            optimizer: Optimizer {
                loraplus_lr_ratio: self.loraplus_lr_ratio,
            },
            precision: Precision {
                compute,
                compute_on_gpu,
                base_weights,
                double_quant,
            },
            memory: Memory {
                gradient_checkpointing: self
                    .gradient_checkpointing
                    .unwrap_or(default.memory.gradient_checkpointing),
            },
            data: Data {
                format: match self.format {
                    Auto::Auto => default.data.format,
                    Auto::Given(asked) => asked,
                },
                max_length: self.max_length.unwrap_or(context_length),
                truncation: self.truncation.unwrap_or(default.data.truncation),
                packing: self.packing.unwrap_or(default.data.packing),
            },
        };
        refusal::check(&training, context_length)?;
        Ok(training)
    }

    /// `base_weights` and `double_quant`: what is asked for, or what the continued adapter was trained on.
    fn base_weights(&self, inherited: &Option<Inherited>) -> (BaseWeights, bool) {
        match (self.base_weights, inherited) {
            (Auto::Given(BaseWeights::Nf4), _) => {
                (BaseWeights::Nf4, self.double_quant.unwrap_or(true))
            }
            (Auto::Given(asked), _) => (asked, false),
            (Auto::Auto, Some(inherited)) => inherited.base_weights(),
            (Auto::Auto, None) => (BaseWeights::Stored, false),
        }
    }

    /// What contradicts itself whatever the base is.
    fn check_pairs(&self) -> Result<(), Refusal> {
        let is_nf4 = self.base_weights == Auto::Given(BaseWeights::Nf4);
        if self.double_quant.is_some() && !is_nf4 {
            return Err(Refusal::conflict(
                "precision.double_quant",
                "it goes with base_weights 'nf4' only",
            ));
        }
        Ok(())
    }
}

impl AskedAdapter {
    fn fresh(self) -> Adapter {
        let default = Adapter::default();
        let r = self.r.unwrap_or(default.r);
        Adapter {
            r#type: default.r#type,
            r,
            alpha: self.alpha.unwrap_or(2.0 * f64::from(r)),
            dropout: self.dropout.unwrap_or(default.dropout),
            target_modules: self.target_modules.unwrap_or(default.target_modules),
            rank_pattern: self.rank_pattern.unwrap_or_default(),
            alpha_pattern: self.alpha_pattern.unwrap_or_default(),
            use_rslora: self.use_rslora.unwrap_or(default.use_rslora),
            use_dora: self.use_dora.unwrap_or(default.use_dora),
            bias: self.bias.unwrap_or(default.bias),
            modules_to_save: self.modules_to_save.unwrap_or_default(),
            init: self.init.unwrap_or(default.init),
            continue_from: None,
        }
    }
}

#[cfg(test)]
mod tests;
