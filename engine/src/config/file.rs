//! `config.json` as it is written, by transformers 4 and 5.

use serde::{Deserialize, Deserializer};

use super::rope::RopeFile;
use super::{Activation, ConfigError};

/// Every key that some family reads. A missing key means the family's default; `null` can mean another thing.
#[derive(Deserialize)]
pub(super) struct File {
    pub architectures: Option<Vec<String>>,
    pub model_type: Option<String>,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: Option<usize>,
    pub head_dim: Option<usize>,
    pub vocab_size: usize,
    pub max_position_embeddings: Option<usize>,
    pub rms_norm_eps: Option<f32>,
    pub tie_word_embeddings: Option<bool>,
    pub bos_token_id: Option<u32>,
    eos_token_id: Option<OneOrMany>,

    hidden_act: Option<String>,
    hidden_activation: Option<String>,
    pub attention_bias: Option<bool>,
    pub mlp_bias: Option<bool>,
    pub query_pre_attn_scalar: Option<f64>,
    /// Outer `None`: missing. Inner `None`: `null`.
    #[serde(default, deserialize_with = "present")]
    pub attn_logit_softcapping: Option<Option<f32>>,
    #[serde(default, deserialize_with = "present")]
    pub final_logit_softcapping: Option<Option<f32>>,
    pub use_bidirectional_attention: Option<bool>,

    #[serde(default, deserialize_with = "present")]
    pub sliding_window: Option<Option<usize>>,
    pub use_sliding_window: Option<bool>,
    pub max_window_layers: Option<usize>,
    pub sliding_window_pattern: Option<usize>,
    layer_types: Option<Vec<String>>,
    /// 1 where a layer *has* rotary positions.
    pub no_rope_layers: Option<Vec<u8>>,
    pub no_rope_layer_interval: Option<usize>,

    /// Since transformers 5: theta and scaling in one place.
    rope_parameters: Option<RopeFile>,
    rope_scaling: Option<RopeFile>,
    rope_theta: Option<f32>,
    rope_local_base_freq: Option<f32>,
    partial_rotary_factor: Option<f64>,
    pub original_max_position_embeddings: Option<usize>,

    pub num_local_experts: Option<usize>,
    /// The older name of `num_local_experts` in some families.
    pub num_experts: Option<usize>,
    pub num_experts_per_tok: Option<usize>,
    pub moe_intermediate_size: Option<usize>,
    pub norm_topk_prob: Option<bool>,
    pub decoder_sparse_step: Option<usize>,
    pub mlp_only_layers: Option<Vec<usize>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

/// Tells a key that is `null` from one that is missing.
fn present<'de, T, D>(deserializer: D) -> Result<Option<Option<T>>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    Option::deserialize(deserializer).map(Some)
}

/// The kinds of layers in `layer_types`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LayerType {
    Full,
    Sliding,
}

impl File {
    pub fn eos_token_ids(&self) -> Vec<u32> {
        match &self.eos_token_id {
            None => Vec::new(),
            Some(OneOrMany::One(id)) => vec![*id],
            Some(OneOrMany::Many(ids)) => ids.clone(),
        }
    }

    /// The rope of the layers that see everything; empty where the file has none.
    pub fn rope(&self) -> RopeFile {
        let named = self.rope_scaling.as_ref().or(self.rope_parameters.as_ref());
        let mut rope = named.cloned().unwrap_or_default();
        match rope.full_attention.take() {
            Some(full) => *full,
            None => rope,
        }
    }

    /// The base of [`Self::rope`]: what stands with the scaling goes before the top level.
    pub fn rope_theta(&self) -> Option<f32> {
        let parameters = self.rope_parameters.as_ref();
        let nested = parameters.and_then(|rope| match &rope.full_attention {
            Some(full) => full.rope_theta,
            None => rope.rope_theta,
        });
        self.rope().rope_theta.or(nested).or(self.rope_theta)
    }

    /// The base of the layers with a window, where they have their own.
    /// Errors: `Unsupported` where they have a scaling.
    pub fn local_rope_theta(&self) -> Result<Option<f32>, ConfigError> {
        let parameters = self.rope_parameters.as_ref();
        let local = parameters.and_then(|rope| rope.sliding_attention.as_deref());
        match local {
            Some(rope) if rope.rope_type() != "default" => Err(ConfigError::Unsupported {
                key: "rope_type of sliding_attention",
                value: rope.rope_type().to_owned(),
                supported: "default",
            }),
            Some(rope) => Ok(rope.rope_theta.or(self.rope_local_base_freq)),
            None => Ok(self.rope_local_base_freq),
        }
    }

    pub fn partial_rotary_factor(&self) -> Option<f64> {
        self.rope()
            .partial_rotary_factor
            .or(self.partial_rotary_factor)
    }

    /// Errors: `Unsupported`.
    pub fn activation(&self, default: Activation) -> Result<Activation, ConfigError> {
        // Where a file has both, `hidden_act` is a leftover.
        let (key, name) = match (&self.hidden_activation, &self.hidden_act) {
            (Some(name), _) => ("hidden_activation", name),
            (None, Some(name)) => ("hidden_act", name),
            (None, None) => return Ok(default),
        };
        match name.as_str() {
            "silu" | "swish" => Ok(Activation::Silu),
            "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
            other => Err(ConfigError::Unsupported {
                key,
                value: other.to_owned(),
                supported: "silu, gelu_pytorch_tanh",
            }),
        }
    }

    /// One kind for each layer: as `layer_types` says, else by `default`, which sees the layer's index.
    /// Errors: `Unsupported` for another kind, `Invalid` for another number of them.
    pub fn layer_types(
        &self,
        default: impl Fn(usize) -> LayerType,
    ) -> Result<Vec<LayerType>, ConfigError> {
        let Some(names) = &self.layer_types else {
            return Ok((0..self.num_hidden_layers).map(default).collect());
        };
        if names.len() != self.num_hidden_layers {
            return Err(ConfigError::Invalid {
                key: "layer_types",
                value: format!("{} kinds", names.len()),
                reason: "there is one for each hidden layer",
            });
        }
        names.iter().map(|name| parse_layer_type(name)).collect()
    }
}

fn parse_layer_type(name: &str) -> Result<LayerType, ConfigError> {
    match name {
        "full_attention" => Ok(LayerType::Full),
        "sliding_attention" => Ok(LayerType::Sliding),
        other => Err(ConfigError::Unsupported {
            key: "layer_types",
            value: other.to_owned(),
            supported: "full_attention, sliding_attention",
        }),
    }
}
