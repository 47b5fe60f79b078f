//! From the file and its family's row to the description: Llama with the family's defaults, then its switches.

use super::families::FAMILIES;
use super::file::File;
use super::rope::{Context, Stretch};
use super::{
    Activation, Architecture, BlockNorms, ConfigError, LayerConfig, LayerRope, ModelConfig,
    NormWeight, QkNorm, RopePairs, RopeScaling,
};

/// A file with a wild number is refused before memory is asked for its layers.
const MAX_LAYERS: usize = 1 << 14;

pub(super) type Switch = fn(&File, &mut ModelConfig) -> Result<(), ConfigError>;

/// A row of the table.
pub(super) struct Family {
    pub architecture: &'static str,
    pub model_type: &'static str,
    pub defaults: Defaults,
    /// Turns the switches that differ from Llama's.
    pub switch: Switch,
}

/// What a missing key means.
pub(super) struct Defaults {
    /// `None`: D/H.
    pub head_dim: Option<usize>,
    pub rms_norm_eps: f32,
    pub rope_theta: f32,
    /// `None`: the family turns whole heads, whatever the file says.
    pub partial_rotary_factor: Option<f64>,
    pub tie_word_embeddings: bool,
    pub hidden_act: Activation,
}

pub(super) const LLAMA: Defaults = Defaults {
    head_dim: None,
    rms_norm_eps: 1e-6,
    rope_theta: 10_000.0,
    partial_rotary_factor: None,
    tie_word_embeddings: false,
    hidden_act: Activation::Silu,
};

pub(super) const GEMMA: Defaults = Defaults {
    head_dim: Some(256),
    tie_word_embeddings: true,
    hidden_act: Activation::GeluTanh,
    ..LLAMA
};

pub(super) const fn family(
    architecture: &'static str,
    model_type: &'static str,
    defaults: Defaults,
    switch: Switch,
) -> Family {
    Family {
        architecture,
        model_type,
        defaults,
        switch,
    }
}

/// Errors: `UnknownArchitecture`, and what the family's function says.
pub(super) fn describe(file: &File) -> Result<ModelConfig, ConfigError> {
    let family = find(file)?;
    if file.num_hidden_layers > MAX_LAYERS {
        return Err(ConfigError::Invalid {
            key: "num_hidden_layers",
            value: file.num_hidden_layers.to_string(),
            reason: "a model has at most 2^14 layers",
        });
    }
    let mut config = as_llama(file, family)?;
    (family.switch)(file, &mut config)?;
    Ok(config)
}

/// By `architectures`; by `model_type` where the file has none.
fn find(file: &File) -> Result<&'static Family, ConfigError> {
    let named = file.architectures.as_ref().and_then(|names| names.first());
    let model_type = file.model_type.as_deref().unwrap_or_default();
    let family = FAMILIES.iter().find(|family| match named {
        Some(name) => family.architecture == name,
        None => family.model_type == model_type,
    });
    family.ok_or_else(|| ConfigError::UnknownArchitecture {
        found: named.map_or(model_type, String::as_str).to_owned(),
    })
}

/// The description before the family's switches are turned.
fn as_llama(file: &File, family: &Family) -> Result<ModelConfig, ConfigError> {
    let (heads, defaults) = (file.num_attention_heads, &family.defaults);
    let head_dim = file.head_dim.or(defaults.head_dim);
    let head_dim = head_dim.unwrap_or(file.hidden_size / heads.max(1));
    let rotary_dim = match defaults.partial_rotary_factor {
        Some(share) => (head_dim as f64 * file.partial_rotary_factor().unwrap_or(share)) as usize,
        None => head_dim,
    };
    let max_position_embeddings = file.max_position_embeddings.unwrap_or(2048);
    let stretch = file.rope().stretch(&Context {
        max_position_embeddings,
        original_max_position_embeddings: file.original_max_position_embeddings,
        rotary_dim,
    })?;
    let (rope_scaling, long_rope) = match stretch {
        Stretch::Scaling(scaling) => (scaling, None),
        Stretch::Long(long) => (RopeScaling::None, Some(long)),
    };
    let layer = LayerConfig {
        sliding_window: None,
        rope: LayerRope::Model,
        sparse: false,
    };
    Ok(ModelConfig {
        architecture: Architecture(family.architecture),
        hidden_size: file.hidden_size,
        intermediate_size: file.intermediate_size,
        num_hidden_layers: file.num_hidden_layers,
        num_attention_heads: heads,
        num_key_value_heads: file.num_key_value_heads.unwrap_or(heads),
        head_dim,
        vocab_size: file.vocab_size,
        max_position_embeddings,
        rms_norm_eps: file.rms_norm_eps.unwrap_or(defaults.rms_norm_eps),
        norm_weight: NormWeight::Plain,
        norms: BlockNorms::BEFORE,
        qk_norm: QkNorm::None,
        hidden_act: file.activation(defaults.hidden_act)?,
        attention_scale: (head_dim as f64).powf(-0.5) as f32,
        attn_logit_softcapping: None,
        final_logit_softcapping: None,
        embedding_scale: 1.0,
        rope_theta: file.rope_theta().unwrap_or(defaults.rope_theta),
        rope_scaling,
        long_rope,
        rotary_dim,
        rope_pairs: RopePairs::Halves,
        qkv_bias: file.attention_bias.unwrap_or(false),
        o_bias: file.attention_bias.unwrap_or(false),
        mlp_bias: file.mlp_bias.unwrap_or(false),
        fused_qkv: false,
        fused_gate_up: false,
        experts: None,
        layers: vec![layer; file.num_hidden_layers],
        tie_word_embeddings: file
            .tie_word_embeddings
            .unwrap_or(defaults.tie_word_embeddings),
        bos_token_id: file.bos_token_id,
        eos_token_ids: file.eos_token_ids(),
    })
}
