//! What older and newer files mean, and what is refused; the fixtures of every family are read in `tests/families.rs`.

use serde_json::{Value, json};

use super::*;

const LLAMA: &str = r#"{"architectures":["LlamaForCausalLM"],"hidden_size":64,"intermediate_size":176,
    "num_hidden_layers":4,"num_attention_heads":4,"num_key_value_heads":2,"vocab_size":512,"rms_norm_eps":1e-5,
    "max_position_embeddings":256,"rope_theta":10000.0,"tie_word_embeddings":true,"eos_token_id":[1,2]}"#;

/// The Llama above with other keys; `null` is written as `null`.
fn text(changes: Value) -> String {
    let mut file: Value = serde_json::from_str(LLAMA).unwrap();
    let keys = changes.as_object().unwrap().clone();
    file.as_object_mut().unwrap().extend(keys);
    file.to_string()
}

fn read(changes: Value) -> ModelConfig {
    ModelConfig::from_json(&text(changes)).unwrap()
}

fn refusal(changes: Value) -> String {
    ModelConfig::from_json(&text(changes))
        .unwrap_err()
        .to_string()
}

fn windows(config: &ModelConfig) -> Vec<Option<usize>> {
    config.layers.iter().map(|l| l.sliding_window).collect()
}

#[test]
fn a_llama_config_is_read_with_its_defaults() {
    let config = read(json!({}));
    let sizes = (
        config.head_dim,
        config.query_size(),
        config.key_value_size(),
    );
    assert_eq!(sizes, (16, 64, 32));
    assert_eq!(config.architecture.name(), "LlamaForCausalLM");
    assert_eq!(config.rope_scaling, RopeScaling::None);
    assert_eq!(config.eos_token_ids, [1, 2]);
}

#[test]
fn the_model_type_names_the_family_where_no_architecture_is_given() {
    let config = read(json!({"architectures": null, "model_type": "gemma3_text"}));
    assert_eq!(config.architecture.name(), "Gemma3ForCausalLM");
}

#[test]
fn both_spellings_of_rope_are_read() {
    let scaling = json!({"type": "llama3", "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192});
    let mut parameters = scaling.clone();
    parameters["rope_theta"] = json!(500_000.0);
    let old = read(json!({"rope_theta": 500_000.0, "rope_scaling": scaling}));
    // What stands with the scaling goes before what stands at the top level.
    let new = read(json!({"rope_theta": 7.0, "rope_parameters": parameters}));
    assert_eq!(new, old);
    assert_eq!(new.rope_theta, 500_000.0);
    let expected = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192.0,
    };
    assert_eq!(new.rope_scaling, expected);
}

#[test]
fn gemma3_spells_its_two_ropes_and_its_windows_in_two_ways() {
    let base = |more: Value| {
        let mut file = json!({"architectures": ["Gemma3ForCausalLM"], "sliding_window": 8});
        let keys = more.as_object().unwrap().clone();
        file.as_object_mut().unwrap().extend(keys);
        read(file)
    };
    let old = base(
        json!({"sliding_window_pattern": 2, "rope_theta": 1e6, "rope_local_base_freq": 1e4,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
    );
    let new = base(json!({"rope_theta": null, "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}},
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]}));
    assert_eq!(new, old);
    assert_eq!(windows(&new), [Some(8), None, Some(8), None]);
    assert_eq!(new.rope_theta, 1e6);
    let ropes: Vec<LayerRope> = new.layers.iter().map(|l| l.rope).collect();
    let (local, model) = (LayerRope::Theta(1e4), LayerRope::Model);
    assert_eq!(ropes, [local, model, local, model]);
    assert_eq!(new.rope_scaling, RopeScaling::Linear { factor: 8.0 });
}

#[test]
fn windows_are_where_each_family_puts_them() {
    let of = |architecture: &str, mut more: Value| {
        more["architectures"] = json!([architecture]);
        windows(&read(more))
    };
    let full = vec![None; 4];
    let mistral = |window| of("MistralForCausalLM", window);
    assert_eq!(mistral(json!({"sliding_window": null})), full);
    assert_eq!(mistral(json!({})), vec![Some(4096); 4]);
    assert_eq!(of("Phi3ForCausalLM", json!({})), full);
    assert_eq!(
        of("Gemma2ForCausalLM", json!({"sliding_window": 9})),
        [Some(9), None, Some(9), None]
    );
    let moe = json!({"use_sliding_window": true, "sliding_window": 9, "num_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 8});
    assert_eq!(of("Qwen3MoeForCausalLM", moe), vec![Some(9); 4]);
    let qwen = |is_used: bool| {
        let file =
            json!({"use_sliding_window": is_used, "sliding_window": 9, "max_window_layers": 3});
        of("Qwen2ForCausalLM", file)
    };
    assert_eq!(
        (qwen(false), qwen(true)),
        (full, vec![None, None, None, Some(9)])
    );
}

#[test]
fn smollm3_turns_no_positions_in_every_fourth_layer_unless_told_which() {
    let ropes = |mut more: Value| {
        more["architectures"] = json!(["SmolLM3ForCausalLM"]);
        let layers = read(more).layers;
        layers
            .iter()
            .map(|l| l.rope != LayerRope::None)
            .collect::<Vec<_>>()
    };
    assert_eq!(ropes(json!({})), [true, true, true, false]);
    assert_eq!(
        ropes(json!({"no_rope_layers": [1, 0, 1, 1]})),
        [true, false, true, true]
    );
}

#[test]
fn phi3_reads_longrope_by_its_old_name_and_scales_by_how_much_the_context_grew() {
    let config = read(
        json!({"architectures": ["Phi3ForCausalLM"], "original_max_position_embeddings": 64,
        "partial_rotary_factor": 0.5, "rope_scaling": {"type": "su", "short_factor": [1, 1.1, 1.2, 1.3],
        "long_factor": [1, 2, 3, 4]}}),
    );
    let long = config.long_rope.unwrap();
    assert_eq!(
        (config.rotary_dim, long.original_max_position_embeddings),
        (8, 64)
    );
    // √(1 + ln 4 / ln 64)
    let expected = (4.0f32 / 3.0).sqrt();
    assert!((long.attention_factor - expected).abs() < 1e-6);
}

#[test]
fn a_cap_that_is_null_is_not_the_default() {
    let gemma2 = |more: Value| {
        let mut more = more;
        more["architectures"] = json!(["Gemma2ForCausalLM"]);
        let config = read(more);
        (
            config.attn_logit_softcapping,
            config.final_logit_softcapping,
        )
    };
    assert_eq!(gemma2(json!({})), (Some(50.0), Some(30.0)));
    let null = json!({"attn_logit_softcapping": null, "final_logit_softcapping": null});
    assert_eq!(gemma2(null), (None, None));
}

#[test]
fn what_no_decoder_here_could_compute_is_refused_by_name() {
    let phi3 = |long: Value| {
        let rope = json!({"rope_type": "longrope", "short_factor": long, "long_factor": [1, 1]});
        json!({"architectures": ["Phi3ForCausalLM"], "rope_scaling": rope})
    };
    let cases = [
        (
            json!({"architectures": ["BloomForCausalLM"]}),
            "architecture \"BloomForCausalLM\" is not known; known are LlamaForCausalLM, Qwen2ForCausalLM, \
             Qwen3ForCausalLM, Qwen3MoeForCausalLM, MistralForCausalLM, MixtralForCausalLM, Gemma2ForCausalLM, \
             Gemma3ForCausalLM, Phi3ForCausalLM, Olmo2ForCausalLM, SmolLM3ForCausalLM, Glm4ForCausalLM",
        ),
        (
            json!({"hidden_act": "gelu"}),
            "hidden_act = gelu is not supported; supported: silu, gelu_pytorch_tanh",
        ),
        (
            json!({"rope_scaling": {"type": "yarn"}}),
            "rope_type = yarn is not supported; supported: default, linear, llama3, longrope",
        ),
        (
            json!({"rope_scaling": {"type": "linear"}}),
            "factor = null cannot be: it must be a positive number",
        ),
        (
            phi3(json!([1, 1])),
            "original_max_position_embeddings = null cannot be: it must be a positive number",
        ),
        (
            json!({"num_key_value_heads": 3}),
            "num_key_value_heads = 3 cannot be: it must divide num_attention_heads",
        ),
        (
            json!({"hidden_size": 0}),
            "hidden_size = 0 cannot be: a size is in 1..=2^28",
        ),
        (
            json!({"num_hidden_layers": 1_000_000_000}),
            "num_hidden_layers = 1000000000 cannot be: a model has at most 2^14 layers",
        ),
        (
            json!({"architectures": ["Gemma2ForCausalLM"], "layer_types": ["full_attention"]}),
            "layer_types = 1 kinds cannot be: there is one for each hidden layer",
        ),
        (
            json!({"architectures": ["Qwen3ForCausalLM"], "layer_types": vec!["sliding_attention"; 4]}),
            "sliding_window = null cannot be: the family needs it",
        ),
        (
            json!({"architectures": ["Qwen3ForCausalLM"], "layer_types": vec!["chunked_attention"; 4]}),
            "layer_types = chunked_attention is not supported; supported: full_attention, sliding_attention",
        ),
        (
            json!({"architectures": ["Gemma3ForCausalLM"], "use_bidirectional_attention": true}),
            "use_bidirectional_attention = true is not supported; supported: false",
        ),
        (
            json!({"architectures": ["MixtralForCausalLM"], "num_local_experts": 2, "num_experts_per_tok": 3}),
            "num_experts_per_tok = 3 cannot be: it is at most the number of experts",
        ),
        (
            json!({"architectures": ["Glm4ForCausalLM"], "head_dim": 16, "partial_rotary_factor": 1.5}),
            "partial_rotary_factor times head_dim = 24 cannot be: it is at most head_dim",
        ),
    ];
    for (changes, expected) in cases {
        assert_eq!(refusal(changes), expected);
    }
}
