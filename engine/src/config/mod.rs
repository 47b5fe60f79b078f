//! Owns what a model's `config.json` says of its shape and of the mathematics of its blocks, under Hugging Face's names;
//! knows no weights.
//!
//! A model is a description by switches, each independent of the others. What a family means by its `config.json` stands
//! in `families`; nothing outside that table asks which family a model is of.
//!
//! All blocks are, with the norms and experts that a model has,
//!
//! ```text
//! x = embed_tokens[token] · embedding_scale
//! x = x + after_attention(o_proj(attention(before_attention(x))))
//! x = x + after_mlp(mlp(before_mlp(x)))
//! logits = cap(lm_head(norm(x)), final_logit_softcapping)      cap(s, c) = c·tanh(s/c)
//! ```

mod describe;
mod families;
mod file;
mod rope;
mod sizes;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

pub use rope::{LongRope, RopeScaling};

/// What `architectures` names: a label to show. The switches of [`ModelConfig`] say all that is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Architecture(&'static str);

impl Architecture {
    /// The name in `architectures`.
    pub fn name(self) -> &'static str {
        self.0
    }
}

/// The shape of a model and the mathematics of its blocks.
/// Invariant: `num_attention_heads` is a multiple of `num_key_value_heads`; `head_dim` and `rotary_dim` are even and
/// `rotary_dim` ≤ `head_dim`; `layers` has `num_hidden_layers` entries; no size is 0.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    pub architecture: Architecture,
    pub hidden_size: usize,
    /// F of a dense block; the experts have their own, see [`Experts`].
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
    pub vocab_size: usize,
    pub max_position_embeddings: usize,
    /// Added to the mean square below the root, in every norm of the model.
    pub rms_norm_eps: f32,
    pub norm_weight: NormWeight,
    pub norms: BlockNorms,
    pub qk_norm: QkNorm,
    pub hidden_act: Activation,
    /// Factor of q·k before cap, mask and softmax: 1/√C, or 1/√`query_pre_attn_scalar`.
    pub attention_scale: f32,
    /// Scores become cap(s, c) after the scale and before the mask.
    pub attn_logit_softcapping: Option<f32>,
    /// Logits become cap(z, c), in training and generation alike.
    pub final_logit_softcapping: Option<f32>,
    /// Factor of the embedding's rows, not of a tied head: √D or 1. It stays f32: the
    /// reference rounds it to the dtype it computes in, but a model must be served with the factor it was trained with.
    pub embedding_scale: f32,
    /// Base of the layers with [`LayerRope::Model`].
    pub rope_theta: f32,
    pub rope_scaling: RopeScaling,
    /// In place of `rope_scaling`, which is then `None`.
    pub long_rope: Option<LongRope>,
    /// The first channels of each head that are turned; those behind pass as they are. It also stands in the exponent:
    /// `rope_theta`^(−2j/`rotary_dim`).
    pub rotary_dim: usize,
    pub rope_pairs: RopePairs,
    /// q, k and v have a bias.
    pub qkv_bias: bool,
    pub o_bias: bool,
    /// gate, up and down have a bias.
    pub mlp_bias: bool,
    /// The file has `qkv_proj` with the rows of q, k and v below each other, and an adapter one pair of matrices for it.
    pub fused_qkv: bool,
    /// The file has `gate_up_proj` with the rows of gate, then those of up, and an adapter one pair of matrices for it.
    pub fused_gate_up: bool,
    /// Of the layers that are `sparse`.
    pub experts: Option<Experts>,
    /// What differs from layer to layer.
    pub layers: Vec<LayerConfig>,
    /// The head's weight is the embedding's.
    pub tie_word_embeddings: bool,
    pub bos_token_id: Option<u32>,
    /// Empty where the file names none.
    pub eos_token_ids: Vec<u32>,
}

/// What a norm multiplies the scaled row by. Every norm of a model is of one kind, those of q and k too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormWeight {
    /// x/√(mean(x²) + ε) · w
    Plain,
    /// x/√(mean(x²) + ε) · (1 + w), in f32 throughout and rounded once at the end. Source: Gemma.
    PlusOne,
}

/// Where a block has RMSNorms, and the tensors' names below `model.layers.{i}.`, without `.weight`; `None`: no norm.
///
/// A norm *before* reads the stream; a norm *after* reads what attention or feed-forward gives, before it is added to
/// the stream. One name stands for different places: `post_attention_layernorm` is `before_mlp` in Llama and GLM-4 and
/// `after_attention` in Gemma and OLMo 2. Each weight has (D).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockNorms {
    pub before_attention: Option<&'static str>,
    pub after_attention: Option<&'static str>,
    pub before_mlp: Option<&'static str>,
    pub after_mlp: Option<&'static str>,
}

impl BlockNorms {
    /// The placement of Llama.
    pub const BEFORE: Self = Self {
        before_attention: Some("input_layernorm"),
        after_attention: None,
        before_mlp: Some("post_attention_layernorm"),
        after_mlp: None,
    };
}

/// RMSNorms of q and k after projection and bias, before the rotation: `self_attn.q_norm` and `self_attn.k_norm`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNorm {
    None,
    /// Over the C channels of each head, all heads with the same weight (C). Source: Qwen3, Gemma 3.
    PerHead,
    /// Over all heads of a row together, weights (H·C) and (K·C). Source: OLMo 2.
    Projection,
}

/// act in down(act(gate(x)) · up(x)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x·σ(x)
    Silu,
    /// ½·x·(1 + tanh(√(2/π)·(x + 0.044715·x³))): `gelu_pytorch_tanh`.
    GeluTanh,
}

/// Which two channels of a head's first `rotary_dim` make pair j, turned by position · frequency j.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopePairs {
    /// (j, j + `rotary_dim`/2)
    Halves,
    /// (2j, 2j + 1). Source: GLM-4.
    Interleaved,
}

/// What differs from layer to layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerConfig {
    /// Query i sees key j where i − window < j ≤ i, thus `window` keys with its own; `None`: all j ≤ i.
    pub sliding_window: Option<usize>,
    pub rope: LayerRope,
    /// The feed-forward is [`Experts`], not dense.
    pub sparse: bool,
}

/// The rotation of q and k in a layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum LayerRope {
    /// Positions turn nothing. Source: SmolLM 3.
    None,
    /// By the model's `rope_theta`, `rope_scaling` and `long_rope`.
    Model,
    /// By a base of its own, without scaling. Source: the sliding layers of Gemma 3.
    Theta(f32),
}

/// A feed-forward of experts, of which a router chooses some for each token.
///
/// With z = router·x (E), no bias: p = softmax(z) in f32 over all E; the `num_experts_per_tok` largest p are chosen
/// (after the softmax), divided by their sum if `norm_topk_prob`, and only then rounded to x's dtype. The block gives
/// Σ p_e · down_e(act(gate_e(x)) · up_e(x)) over the chosen. Which experts are chosen has no gradient; p has.
/// Auxiliary losses and the router's jitter are not part of fine-tuning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Experts {
    pub num_experts: usize,
    pub num_experts_per_tok: usize,
    pub norm_topk_prob: bool,
    /// F of each expert.
    pub intermediate_size: usize,
    pub names: ExpertNames,
}

/// Where the file has the experts: the router (E, D) is `{block}.gate`, expert e's linears `{block}.experts.{e}.{gate}`,
/// `….{up}` (F, D) and `….{down}` (D, F), each with `.weight`, below `model.layers.{i}.`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertNames {
    pub block: &'static str,
    pub gate: &'static str,
    pub up: &'static str,
    pub down: &'static str,
}

/// Why a `config.json` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{path:?} cannot be read: {source}")]
    Unreadable {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("config.json is not valid: {0}")]
    Malformed(#[from] serde_json::Error),
    #[error(
        "architecture {found:?} is not known; known are {}",
        families::known_names()
    )]
    UnknownArchitecture { found: String },
    #[error("{key} = {value} is not supported; supported: {supported}")]
    Unsupported {
        key: &'static str,
        value: String,
        supported: &'static str,
    },
    #[error("{key} = {value} cannot be: {reason}")]
    Invalid {
        key: &'static str,
        value: String,
        reason: &'static str,
    },
}

impl ModelConfig {
    /// Reads `config.json` from a model's folder.
    /// Errors: as [`Self::from_json`], and `Unreadable`.
    pub fn from_dir(dir: &Path) -> Result<Self, ConfigError> {
        let path = dir.join("config.json");
        let text = std::fs::read_to_string(&path)
            .map_err(|source| ConfigError::Unreadable { path, source })?;
        Self::from_json(&text)
    }

    /// Parses the text of a `config.json`, as transformers 4 or 5 writes it.
    /// Errors: `Malformed`, `UnknownArchitecture`, `Unsupported`, `Invalid`.
    pub fn from_json(text: &str) -> Result<Self, ConfigError> {
        let file: file::File = serde_json::from_str(text)?;
        let config = describe::describe(&file)?;
        config.check_sizes()?;
        Ok(config)
    }

    /// Width of the queries, H·C.
    pub fn query_size(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Width of the keys, and of the values, K·C.
    pub fn key_value_size(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }
}
