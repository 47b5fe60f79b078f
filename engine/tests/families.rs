//! Every family's folder is read into its switches; `tests/golden` compares what is computed with them.

use std::path::{Path, PathBuf};

use engine::config::{
    Activation, BlockNorms, ExpertNames, Experts, LayerRope, ModelConfig, NormWeight, QkNorm,
    RopePairs, RopeScaling,
};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

fn read(name: &str) -> ModelConfig {
    ModelConfig::from_dir(&fixture(name)).unwrap()
}

/// Compares two descriptions whole; the second starts as the first Llama with the family's sizes.
fn check(name: &str, switches: impl Fn(&mut ModelConfig)) {
    let found = read(name);
    let mut expected = ModelConfig {
        architecture: found.architecture,
        rope_theta: 10_000.0,
        rms_norm_eps: 1e-6,
        tie_word_embeddings: false,
        hidden_size: 48,
        intermediate_size: 64,
        num_hidden_layers: found.layers.len(),
        num_attention_heads: 4,
        num_key_value_heads: 2,
        vocab_size: 160,
        max_position_embeddings: 128,
        bos_token_id: Some(1),
        eos_token_ids: vec![2],
        ..read("tiny_llama_untied")
    };
    expected.layers = vec![expected.layers[0]; found.layers.len()];
    switches(&mut expected);
    assert_eq!(found, expected, "{name}");
}

fn windows<const N: usize>(config: &mut ModelConfig, windows: [Option<usize>; N]) {
    assert_eq!(config.layers.len(), N);
    for (layer, window) in config.layers.iter_mut().zip(windows) {
        layer.sliding_window = window;
    }
}

fn three_heads(config: &mut ModelConfig) {
    (config.num_attention_heads, config.num_key_value_heads) = (3, 1);
}

fn sandwich(names: [&'static str; 4]) -> BlockNorms {
    let [before_attention, after_attention, before_mlp, after_mlp] = names.map(Some);
    BlockNorms {
        before_attention,
        after_attention,
        before_mlp,
        after_mlp,
    }
}

fn gemma(config: &mut ModelConfig) {
    config.norm_weight = NormWeight::PlusOne;
    config.norms = sandwich([
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    ]);
    config.hidden_act = Activation::GeluTanh;
    config.attention_scale = 24f64.powf(-0.5) as f32;
    config.embedding_scale = 48f32.sqrt();
    config.tie_word_embeddings = true;
}

#[test]
fn llama3_and_mistral() {
    check("tiny_llama3", |c| {
        c.rope_scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 32.0,
        };
    });
    check("tiny_mistral", |c| windows(c, [Some(12); 2]));
    check("tiny_llama_bias", |c| {
        (c.qkv_bias, c.o_bias, c.mlp_bias) = (true, true, true);
    });
}

#[test]
fn qwen3() {
    check("tiny_qwen3", |c| {
        c.qk_norm = QkNorm::PerHead;
        c.rope_theta = 1e6;
        c.tie_word_embeddings = true;
        windows(c, [None, Some(10)]);
    });
    let qwen2 = read("tiny_qwen2");
    assert!(qwen2.qkv_bias && !qwen2.o_bias && qwen2.qk_norm == QkNorm::None);
}

#[test]
fn gemma2_and_gemma3() {
    check("tiny_gemma2", |c| {
        gemma(c);
        c.attn_logit_softcapping = Some(4.0);
        c.final_logit_softcapping = Some(6.0);
        windows(c, [Some(8), None]);
    });
    check("tiny_gemma3", |c| {
        gemma(c);
        c.qk_norm = QkNorm::PerHead;
        c.rope_theta = 100_000.0;
        c.rope_scaling = RopeScaling::Linear { factor: 4.0 };
        windows(c, [Some(8), None, Some(8)]);
        c.layers[0].rope = LayerRope::Theta(1000.0);
        c.layers[2].rope = LayerRope::Theta(1000.0);
    });
}

#[test]
fn phi3() {
    check("tiny_phi3", |c| {
        three_heads(c);
        (c.fused_qkv, c.fused_gate_up) = (true, true);
        c.rms_norm_eps = 1e-5;
        c.rotary_dim = 8;
        windows(c, [Some(24); 2]);
        c.long_rope = Some(engine::config::LongRope {
            short_factor: vec![1.0, 1.1, 1.3, 1.6],
            long_factor: vec![1.2, 2.0, 3.5, 6.0],
            original_max_position_embeddings: 48,
            attention_factor: (1.0 + (128f64 / 48.0).ln() / 48f64.ln()).sqrt() as f32,
        });
    });
}

#[test]
fn olmo2_smollm3_and_glm4() {
    check("tiny_olmo2", |c| {
        c.hidden_size = 64;
        c.rms_norm_eps = 1e-5;
        c.rope_theta = 500_000.0;
        c.qk_norm = QkNorm::Projection;
        c.norms = BlockNorms {
            before_attention: None,
            after_attention: Some("post_attention_layernorm"),
            before_mlp: None,
            after_mlp: Some("post_feedforward_layernorm"),
        };
    });
    check("tiny_smollm3", |c| {
        three_heads(c);
        c.rope_theta = 2e6;
        c.tie_word_embeddings = true;
        c.layers[3].rope = LayerRope::None;
    });
    check("tiny_glm4", |c| {
        c.qkv_bias = true;
        c.fused_gate_up = true;
        c.rms_norm_eps = 1.5625e-7;
        c.rotary_dim = 8;
        c.rope_pairs = RopePairs::Interleaved;
        c.norms = sandwich([
            "input_layernorm",
            "post_self_attn_layernorm",
            "post_attention_layernorm",
            "post_mlp_layernorm",
        ]);
    });
}

#[test]
fn the_families_with_experts() {
    check("tiny_qwen3_moe", |c| {
        c.qk_norm = QkNorm::PerHead;
        (c.layers[0].sparse, c.layers[2].sparse) = (true, true);
        c.experts = Some(Experts {
            num_experts: 4,
            num_experts_per_tok: 2,
            norm_topk_prob: false,
            intermediate_size: 32,
            names: ExpertNames {
                block: "mlp",
                gate: "gate_proj",
                up: "up_proj",
                down: "down_proj",
            },
        });
    });
    check("tiny_mixtral", |c| {
        c.rms_norm_eps = 1e-5;
        c.rope_theta = 1e6;
        c.layers.iter_mut().for_each(|layer| layer.sparse = true);
        c.experts = Some(Experts {
            num_experts: 4,
            num_experts_per_tok: 2,
            norm_topk_prob: true,
            intermediate_size: 64,
            names: ExpertNames {
                block: "block_sparse_moe",
                gate: "w1",
                up: "w3",
                down: "w2",
            },
        });
    });
}
