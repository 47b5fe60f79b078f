//! What each family means by its `config.json`: one row, and one function that turns the switches in which it differs
//! from Llama. Source: transformers' `configuration_*.py` for defaults, `modeling_*.py` for the mathematics.

use super::describe::{Defaults, Family, GEMMA, LLAMA, family};
use super::file::{File, LayerType};
use super::{
    BlockNorms, ConfigError, ExpertNames, Experts, LayerRope, ModelConfig, NormWeight, QkNorm,
    RopePairs,
};

#[rustfmt::skip]
pub(super) const FAMILIES: [Family; 12] = [
    family("LlamaForCausalLM", "llama", LLAMA, llama),
    family("Qwen2ForCausalLM", "qwen2", LLAMA, qwen2),
    family("Qwen3ForCausalLM", "qwen3", Defaults { head_dim: Some(128), ..LLAMA }, qwen3),
    family("Qwen3MoeForCausalLM", "qwen3_moe", LLAMA, qwen3_moe),
    family("MistralForCausalLM", "mistral", LLAMA, mistral),
    family("MixtralForCausalLM", "mixtral", Defaults { rms_norm_eps: 1e-5, rope_theta: 1e6, ..LLAMA }, mixtral),
    family("Gemma2ForCausalLM", "gemma2", GEMMA, gemma2),
    family("Gemma3ForCausalLM", "gemma3_text", Defaults { rope_theta: 1e6, ..GEMMA }, gemma3),
    family("Phi3ForCausalLM", "phi3", Defaults { rms_norm_eps: 1e-5, partial_rotary_factor: Some(1.0), ..LLAMA }, phi3),
    family("Olmo2ForCausalLM", "olmo2", Defaults { rms_norm_eps: 1e-5, ..LLAMA }, olmo2),
    family("SmolLM3ForCausalLM", "smollm3", Defaults { rope_theta: 2e6, tie_word_embeddings: true, ..LLAMA }, smollm3),
    family("Glm4ForCausalLM", "glm4", Defaults { head_dim: Some(128), rms_norm_eps: 1.5625e-7, partial_rotary_factor: Some(0.5), ..LLAMA }, glm4),
];

pub(super) fn known_names() -> String {
    FAMILIES.map(|family| family.architecture).join(", ")
}

fn llama(_: &File, _: &mut ModelConfig) -> Result<(), ConfigError> {
    Ok(())
}

fn qwen2(file: &File, config: &mut ModelConfig) -> Result<(), ConfigError> {
    (config.qkv_bias, config.o_bias) = (true, false);
    late_windows(file, config)
}

fn qwen3(file: &File, config: &mut ModelConfig) -> Result<(), ConfigError> {
    config.qk_norm = QkNorm::PerHead;
    late_windows(file, config)
}

fn qwen3_moe(file: &File, config: &mut ModelConfig) -> Result<(), ConfigError> {
    config.qk_norm = QkNorm::PerHead;
    windows_everywhere(config, switched_window(file));
    let step = file.decoder_sparse_step.unwrap_or(1);
    let dense = file.mlp_only_layers.as_deref().unwrap_or_default();
    for (i, layer) in config.layers.iter_mut().enumerate() {
        layer.sparse = !dense.contains(&i) && (i + 1).is_multiple_of(step);
    }
    config.experts = Some(Experts {
        num_experts: given("num_experts", file.num_local_experts.or(file.num_experts))?,
        num_experts_per_tok: given("num_experts_per_tok", file.num_experts_per_tok)?,
        norm_topk_prob: file.norm_topk_prob.unwrap_or(false),
        intermediate_size: given("moe_intermediate_size", file.moe_intermediate_size)?,
        names: ExpertNames {
            block: "mlp",
            gate: "gate_proj",
            up: "up_proj",
            down: "down_proj",
        },
    });
    Ok(())
}

fn mistral(file: &File, config: &mut ModelConfig) -> Result<(), ConfigError> {
    windows_everywhere(config, file.sliding_window.unwrap_or(Some(4096)));
    Ok(())
}

fn mixtral(file: &File, config: &mut ModelConfig) -> Result<(), ConfigError> {
    windows_everywhere(config, file.sliding_window.flatten());
    config
        .layers
        .iter_mut()
        .for_each(|layer| layer.sparse = true);
    config.experts = Some(Experts {
        num_experts: given("num_local_experts", file.num_local_experts)?,
        num_experts_per_tok: given("num_experts_per_tok", file.num_experts_per_tok)?,
        norm_topk_prob: true,
        intermediate_size: file.intermediate_size,
        names: ExpertNames {
            block: "block_sparse_moe",
            gate: "w1",
            up: "w3",
            down: "w2",
        },
    });
    Ok(())
}

/// What Gemma 2 and 3 have in common.
fn gemma(file: &File, config: &mut ModelConfig) {
    config.norm_weight = NormWeight::PlusOne;
    config.norms = BlockNorms {
        before_attention: Some("input_layernorm"),
        after_attention: Some("post_attention_layernorm"),
        before_mlp: Some("pre_feedforward_layernorm"),
        after_mlp: Some("post_feedforward_layernorm"),
    };
    config.attention_scale = (file.query_pre_attn_scalar.unwrap_or(256.0).powf(-0.5)) as f32;
    config.embedding_scale = (config.hidden_size as f32).sqrt();
}

fn gemma2(file: &File, config: &mut ModelConfig) -> Result<(), ConfigError> {
    gemma(file, config);
    config.attn_logit_softcapping = file.attn_logit_softcapping.unwrap_or(Some(50.0));
    config.final_logit_softcapping = file.final_logit_softcapping.unwrap_or(Some(30.0));
    let types = file.layer_types(|i| sliding_if(i.is_multiple_of(2)))?;
    windows_by_type(config, &types, file.sliding_window.unwrap_or(Some(4096)))
}

fn gemma3(file: &File, config: &mut ModelConfig) -> Result<(), ConfigError> {
    gemma(file, config);
    config.qk_norm = QkNorm::PerHead;
    // `attn_logit_softcapping` may stand in the file, but the family's attention has no cap.
    config.final_logit_softcapping = file.final_logit_softcapping.flatten();
    if file.use_bidirectional_attention == Some(true) {
        return Err(ConfigError::Unsupported {
            key: "use_bidirectional_attention",
            value: "true".to_owned(),
            supported: "false",
        });
    }
    let pattern = file.sliding_window_pattern.unwrap_or(6);
    let types = file.layer_types(|i| sliding_if(!(i + 1).is_multiple_of(pattern)))?;
    let local = LayerRope::Theta(file.local_rope_theta()?.unwrap_or(10_000.0));
    for (layer, kind) in config.layers.iter_mut().zip(&types) {
        if *kind == LayerType::Sliding {
            layer.rope = local;
        }
    }
    windows_by_type(config, &types, file.sliding_window.unwrap_or(Some(4096)))
}

fn phi3(file: &File, config: &mut ModelConfig) -> Result<(), ConfigError> {
    (config.fused_qkv, config.fused_gate_up) = (true, true);
    windows_everywhere(config, file.sliding_window.flatten());
    Ok(())
}

fn olmo2(_: &File, config: &mut ModelConfig) -> Result<(), ConfigError> {
    config.qk_norm = QkNorm::Projection;
    config.norms = BlockNorms {
        before_attention: None,
        after_attention: Some("post_attention_layernorm"),
        before_mlp: None,
        after_mlp: Some("post_feedforward_layernorm"),
    };
    Ok(())
}

fn smollm3(file: &File, config: &mut ModelConfig) -> Result<(), ConfigError> {
    let interval = file.no_rope_layer_interval.unwrap_or(4);
    let n = config.num_hidden_layers;
    let has_rope: Vec<bool> = match &file.no_rope_layers {
        Some(list) => list.iter().map(|&flag| flag != 0).collect(),
        None => (1..=n).map(|i| !i.is_multiple_of(interval)).collect(),
    };
    if has_rope.len() != n {
        return Err(ConfigError::Invalid {
            key: "no_rope_layers",
            value: format!("{} numbers", has_rope.len()),
            reason: "there is one for each hidden layer",
        });
    }
    for (layer, _) in config
        .layers
        .iter_mut()
        .zip(&has_rope)
        .filter(|(_, has)| !**has)
    {
        layer.rope = LayerRope::None;
    }
    let window = file.use_sliding_window.unwrap_or(false);
    let window = file.sliding_window.flatten().filter(|_| window);
    let types = file.layer_types(|i| sliding_if(window.is_some() && !has_rope[i]))?;
    windows_by_type(config, &types, window)
}

fn glm4(file: &File, config: &mut ModelConfig) -> Result<(), ConfigError> {
    (config.qkv_bias, config.o_bias) = (file.attention_bias.unwrap_or(true), false);
    config.fused_gate_up = true;
    config.rope_pairs = RopePairs::Interleaved;
    config.norms = BlockNorms {
        before_attention: Some("input_layernorm"),
        after_attention: Some("post_self_attn_layernorm"),
        before_mlp: Some("post_attention_layernorm"),
        after_mlp: Some("post_mlp_layernorm"),
    };
    Ok(())
}

fn given(key: &'static str, value: Option<usize>) -> Result<usize, ConfigError> {
    value.ok_or(ConfigError::Invalid {
        key,
        value: "null".to_owned(),
        reason: "the family needs it",
    })
}

fn sliding_if(is_sliding: bool) -> LayerType {
    if is_sliding {
        LayerType::Sliding
    } else {
        LayerType::Full
    }
}

/// The window of files that also say whether it is used.
fn switched_window(file: &File) -> Option<usize> {
    let is_used = file.use_sliding_window.unwrap_or(false);
    file.sliding_window
        .unwrap_or(Some(4096))
        .filter(|_| is_used)
}

/// Windows from layer `max_window_layers` on, unless `layer_types` says which.
fn late_windows(file: &File, config: &mut ModelConfig) -> Result<(), ConfigError> {
    let (window, first) = (switched_window(file), file.max_window_layers.unwrap_or(28));
    let types = file.layer_types(|i| sliding_if(window.is_some() && i >= first))?;
    windows_by_type(config, &types, window)
}

fn windows_everywhere(config: &mut ModelConfig, window: Option<usize>) {
    for layer in &mut config.layers {
        layer.sliding_window = window;
    }
}

fn windows_by_type(
    config: &mut ModelConfig,
    types: &[LayerType],
    window: Option<usize>,
) -> Result<(), ConfigError> {
    for (layer, kind) in config.layers.iter_mut().zip(types) {
        layer.sliding_window = match kind {
            LayerType::Full => None,
            LayerType::Sliding => Some(given("sliding_window", window)?),
        };
    }
    Ok(())
}
