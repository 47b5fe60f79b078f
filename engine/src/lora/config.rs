//! Owns what an adapter's configuration can say, in PEFT's names; knows no model.

use crate::lora::AdapterError;
use crate::lora::slots::Saved;

/// What an adapter changes and how it begins.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraConfig {
    /// The rank.
    pub r: usize,
    /// The change is scaled by `lora_alpha / r`, or by `lora_alpha / √r` where `use_rslora`.
    pub lora_alpha: f32,
    /// The linears that are changed.
    pub target_modules: TargetModules,
    /// Linears that are left alone although they are targets.
    pub exclude_modules: Option<TargetModules>,
    /// The blocks whose targets are changed; `None` is all of them.
    pub layers_to_transform: Option<Vec<usize>>,
    /// Other ranks than `r`, by a regex on the end of the module's path; the first that matches counts.
    pub rank_pattern: Vec<(String, usize)>,
    /// Other alphas than `lora_alpha`, chosen as `rank_pattern` is.
    pub alpha_pattern: Vec<(String, f32)>,
    /// Rank-stabilised scale. Source: Kalajdzievski 2023 (arXiv:2312.03732).
    pub use_rslora: bool,
    /// Weight-decomposed adapter. Source: Liu et al. 2024 (arXiv:2402.09353).
    pub use_dora: bool,
    /// The probability that an input value of the change is dropped in training, in 0..1.
    pub lora_dropout: f32,
    pub bias: Bias,
    /// Modules that are trained whole beside the adapter.
    pub modules_to_save: Vec<String>,
    pub init_lora_weights: Init,
}

/// A choice of modules by their paths, such as `model.layers.0.self_attn.q_proj`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetModules {
    /// Every linear of every block; never the head.
    AllLinear,
    /// Names that a path equals or ends with after a dot.
    List(Vec<String>),
    /// A regular expression that matches the whole path.
    Regex(String),
}

/// Biases of the base that are trained beside the adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bias {
    None,
    /// Every bias of the model.
    All,
    /// Those of the linears that are changed.
    LoraOnly,
}

/// How an adapter begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Init {
    /// A ~ U(−1/√in, 1/√in), B = 0.
    Default,
    /// A ~ N(0, 1/r²), B = 0.
    Gaussian,
    /// A and B are the base weight's largest singular values and vectors. Source: Meng et al. 2024 (arXiv:2404.02948).
    Pissa,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self::all_linear(16, 32.0)
    }
}

impl LoraConfig {
    /// Plain LoRA on all linears of every block.
    pub fn all_linear(r: usize, lora_alpha: f32) -> Self {
        Self {
            r,
            lora_alpha,
            target_modules: TargetModules::AllLinear,
            exclude_modules: None,
            layers_to_transform: None,
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            use_rslora: false,
            use_dora: false,
            lora_dropout: 0.0,
            bias: Bias::None,
            modules_to_save: Vec::new(),
            init_lora_weights: Init::Default,
        }
    }

    /// The configuration of the plain adapter of twice the rank, and the same scale, that a PiSSA adapter becomes.
    pub(crate) fn of_twice_the_rank(&self) -> Self {
        // The scale is alpha / r, or alpha / √r.
        let factor = if self.use_rslora { 2f32.sqrt() } else { 2.0 };
        let ranks = self.rank_pattern.iter();
        let alphas = self.alpha_pattern.iter();
        Self {
            r: 2 * self.r,
            lora_alpha: factor * self.lora_alpha,
            rank_pattern: ranks.map(|(key, r)| (key.clone(), 2 * r)).collect(),
            alpha_pattern: alphas.map(|(key, a)| (key.clone(), factor * a)).collect(),
            init_lora_weights: Init::Default,
            ..self.clone()
        }
    }

    /// Errors: `BadDropout`, `PissaWithDropout`.
    pub(crate) fn check(&self) -> Result<(), AdapterError> {
        if !(0.0..1.0).contains(&self.lora_dropout) {
            return Err(AdapterError::BadDropout(self.lora_dropout));
        }
        // PEFT takes the initial values out of the base, whose input is never dropped; here they are part of the change.
        match self.init_lora_weights {
            Init::Pissa if self.lora_dropout > 0.0 => Err(AdapterError::PissaWithDropout),
            _ => Ok(()),
        }
    }

    /// Errors: `UnknownSaved` for what cannot be trained whole.
    pub(crate) fn saved(&self) -> Result<Vec<Saved>, AdapterError> {
        let names = self.modules_to_save.iter();
        names
            .map(|name| match name.as_str() {
                "lm_head" => Ok(Saved::LmHead),
                "embed_tokens" | "model.embed_tokens" => Ok(Saved::EmbedTokens),
                _ => Err(AdapterError::UnknownSaved { name: name.clone() }),
            })
            .collect()
    }

    /// What of a fresh adapter is a function of the base's weights.
    pub(crate) fn copies_of_base(&self) -> Option<&'static str> {
        let copies = [
            (
                self.init_lora_weights == Init::Pissa,
                "init_lora_weights = \"pissa\"",
            ),
            (self.use_dora, "use_dora = true"),
            (self.bias != Bias::None, "bias"),
            (!self.modules_to_save.is_empty(), "modules_to_save"),
        ];
        let found = copies.into_iter().find(|(is_wanted, _)| *is_wanted);
        found.map(|(_, what)| what)
    }
}

impl Bias {
    /// PEFT's name.
    pub fn name(self) -> &'static str {
        match self {
            Bias::None => "none",
            Bias::All => "all",
            Bias::LoraOnly => "lora_only",
        }
    }
}
