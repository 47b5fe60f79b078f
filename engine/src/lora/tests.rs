use super::*;

fn model() -> ModelConfig {
    ModelConfig::from_json(
        r#"{"architectures":["LlamaForCausalLM"],"hidden_size":64,"intermediate_size":176,"num_hidden_layers":2,
        "num_attention_heads":4,"num_key_value_heads":2,"vocab_size":512,"rms_norm_eps":1e-5}"#,
    )
    .unwrap()
}

fn config(targets: &[&str]) -> LoraConfig {
    LoraConfig {
        r: 4,
        lora_alpha: 6.0,
        target_modules: targets.iter().map(|&name| name.to_owned()).collect(),
    }
}

#[test]
fn a_fresh_adapter_has_uniform_a_and_no_b() {
    let adapter = Adapter::init(&model(), &LoraConfig::default(), 3).unwrap();
    assert_eq!(
        adapter.n_parameters(),
        2 * 16 * ((64 + 64) + 2 * (64 + 32) + (64 + 64) + 3 * (64 + 176))
    );
    let (a, b) = adapter.matrices(1, Module::Down).unwrap();
    assert_eq!((a.len(), b.len()), (16 * 176, 64 * 16));
    let bound = 1.0 / 176f32.sqrt();
    assert!(a.iter().all(|x| x.abs() <= bound) && a.iter().any(|x| x.abs() > 0.9 * bound));
    assert!(b.iter().all(|&x| x == 0.0));
    let other = Adapter::init(&model(), &LoraConfig::default(), 4).unwrap();
    assert_ne!(adapter.values(), other.values());
}

#[test]
fn an_adapter_survives_pefts_format() {
    for targets in [
        &["q_proj", "v_proj"][..],
        &["down_proj", "o_proj"],
        &["up_proj"],
    ] {
        let mut adapter = Adapter::init(&model(), &config(targets), 1).unwrap();
        for (i, value) in adapter.values.iter_mut().enumerate() {
            *value = i as f32 * 0.001;
        }
        let json = adapter.config_json("base");
        let again = Adapter::from_peft(&json, &adapter.to_safetensors(), &model()).unwrap();
        assert_eq!(again.values(), adapter.values());
        assert_eq!((again.config().r, again.config().lora_alpha), (4, 6.0));
    }
}

#[test]
fn the_config_lists_sorted_targets_and_the_base() {
    let adapter = Adapter::init(&model(), &LoraConfig::default(), 1).unwrap();
    let file: serde_json::Value = serde_json::from_str(&adapter.config_json("smol")).unwrap();
    assert_eq!(file["base_model_name_or_path"], "smol");
    assert_eq!(file["lora_alpha"].to_string(), "32");
    let sorted = [
        "down_proj",
        "gate_proj",
        "k_proj",
        "o_proj",
        "q_proj",
        "up_proj",
        "v_proj",
    ];
    assert_eq!(file["target_modules"], serde_json::json!(sorted));
}

#[test]
fn what_would_be_another_function_is_refused_by_name() {
    let adapter = Adapter::init(&model(), &config(&["q_proj"]), 1).unwrap();
    let (json, tensors) = (adapter.config_json("base"), adapter.to_safetensors());
    let cases = [
        (
            json.replace(r#""use_dora": false"#, r#""use_dora": true"#),
            "adapter_config.json has use_dora = true, which is not supported",
        ),
        (
            json.replace(r#""bias": "none""#, r#""bias": "all""#),
            "adapter_config.json has bias = \"all\", which is not supported",
        ),
        (
            json.replace(r#""r": 4"#, r#""r": 0"#),
            "r = 0 with lora_alpha = 6 cannot be: r is in 1..=the model's width, lora_alpha is finite",
        ),
        (
            json.replace("q_proj", "k_proj"),
            "tensor base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight is missing",
        ),
        (
            json.replace("q_proj", "lm_head"),
            "target module \"lm_head\" is not known; known are q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj",
        ),
        (
            json.replace(r#""r": 4"#, r#""r": 5"#),
            "tensor base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight is F32 [4, 64], not F32, BF16 or F16 [5, 64]",
        ),
    ];
    for (json, expected) in cases {
        assert_eq!(
            Adapter::from_peft(&json, &tensors, &model())
                .err()
                .unwrap()
                .to_string(),
            expected
        );
    }
}

#[test]
fn a_tensor_too_many_is_refused() {
    let wide = Adapter::init(&model(), &config(&["q_proj", "k_proj"]), 1).unwrap();
    let narrow = Adapter::init(&model(), &config(&["q_proj"]), 1).unwrap();
    let error = Adapter::from_peft(
        &narrow.config_json("base"),
        &wide.to_safetensors(),
        &model(),
    )
    .err()
    .unwrap();
    assert!(matches!(error, AdapterError::UnexpectedTensor { name } if name.contains("k_proj")));
}
