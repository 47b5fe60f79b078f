use std::io::Write;

use super::*;
use crate::config::ModelConfig;

fn model() -> ModelConfig {
    ModelConfig::from_json(
        r#"{"architectures":["LlamaForCausalLM"],"hidden_size":64,"intermediate_size":176,"num_hidden_layers":2,
        "num_attention_heads":4,"num_key_value_heads":2,"vocab_size":512,"rms_norm_eps":1e-5}"#,
    )
    .unwrap()
}

fn list(names: &[&str]) -> TargetModules {
    TargetModules::List(names.iter().map(|&name| name.to_owned()).collect())
}

fn config(targets: &[&str]) -> LoraConfig {
    LoraConfig {
        target_modules: list(targets),
        ..LoraConfig::all_linear(4, 6.0)
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
            "tensor base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector is missing",
        ),
        (
            json.replace(
                r#""modules_to_save": null"#,
                r#""modules_to_save": ["norm"]"#,
            ),
            "modules_to_save has \"norm\"; only lm_head and embed_tokens can be trained whole",
        ),
        (
            json.replace(r#""r": 4"#, r#""r": 0"#),
            "r = 0 with a scale of inf cannot be at model.layers.0.self_attn.q_proj: r is in 1..=64, the scale is finite, for pissa also positive",
        ),
        (
            json.replace("q_proj", "k_proj"),
            "tensor base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight is missing",
        ),
        (
            json.replace("q_proj", "lm_head"),
            "target module \"lm_head\" is no linear of a block; known are q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj",
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

#[test]
fn a_file_is_read_as_its_bytes_are_and_refused_wherever_it_is_cut_or_longer() {
    let adapter = Adapter::init(&model(), &config(&["q_proj", "o_proj"]), 1).unwrap();
    let (json, bytes) = (adapter.config_json("base"), adapter.to_safetensors());
    let read = |bytes: &[u8]| {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        let of_file = Adapter::from_peft_file(&json, &file, &model());
        let of_bytes = Adapter::from_peft(&json, bytes, &model());
        let told = |read: Result<Adapter, AdapterError>| {
            let read = read.map(|adapter| adapter.values().to_vec());
            read.map_err(|error| error.to_string())
        };
        let (of_file, of_bytes) = (told(of_file), told(of_bytes));
        assert_eq!(of_file, of_bytes);
        of_file
    };
    assert_eq!(read(&bytes).unwrap(), adapter.values());
    let n_head = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    for n in [0, 7, 8, 100, 8 + n_head, bytes.len() - 1] {
        let error = read(&bytes[..n]).unwrap_err();
        assert!(
            error.starts_with("the adapter's safetensors are not valid"),
            "{error}"
        );
    }
    let error = read(&[&bytes[..], &[0]].concat()).unwrap_err();
    assert!(error.contains("incomplete metadata"), "{error}");
    let mut huge = bytes.clone();
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(read(&huge).unwrap_err().contains("header too large"));
}

/// The paths, ranks and scales of what a configuration changes.
fn choice(config: &LoraConfig) -> Vec<(String, usize, f32)> {
    let layout = Layout::new(&model(), config).unwrap();
    let slots = layout.slots().iter();
    slots
        .map(|slot| (slot.path(), slot.r, slot.scale))
        .collect()
}

fn paths(config: &LoraConfig) -> Vec<String> {
    let paths = choice(config).into_iter().map(|(path, ..)| path);
    paths
        .map(|path| path.replace("model.layers.", "").replace("_proj", ""))
        .collect()
}

#[test]
fn targets_are_chosen_by_suffix_by_regex_or_altogether() {
    let of = |target_modules| LoraConfig {
        target_modules,
        ..config(&[])
    };
    let regex = |pattern: &str| of(TargetModules::Regex(pattern.to_owned()));
    assert_eq!(paths(&of(TargetModules::AllLinear)).len(), 14);
    let suffixes = ["1.self_attn.q_proj", "mlp.down_proj"];
    assert_eq!(
        paths(&config(&suffixes)),
        ["0.mlp.down", "1.self_attn.q", "1.mlp.down"]
    );
    assert_eq!(
        paths(&regex(r".*\.0\.(mlp\.up|self_attn\.[ko])_proj")),
        ["0.self_attn.k", "0.self_attn.o", "0.mlp.up"]
    );
    let some_layers = LoraConfig {
        layers_to_transform: Some(vec![1]),
        exclude_modules: Some(list(&["q_proj"])),
        ..config(&["q_proj", "o_proj"])
    };
    assert_eq!(paths(&some_layers), ["1.self_attn.o"]);
}

#[test]
fn the_first_pattern_that_matches_the_end_of_a_path_gives_rank_and_alpha() {
    let entry = |key: &str, r| (key.to_owned(), r);
    let patterned = LoraConfig {
        rank_pattern: vec![
            entry(r"1\.self_attn\..*", 2),
            entry("q_proj", 3),
            entry("proj", 9),
        ],
        alpha_pattern: vec![("mlp.down_proj".to_owned(), 1.0)],
        ..config(&["q_proj", "down_proj"])
    };
    let expected = |scales: [f32; 4]| {
        let slots = [
            ("0.self_attn.q", 3),
            ("0.mlp.down", 4),
            ("1.self_attn.q", 2),
            ("1.mlp.down", 4),
        ];
        let path = |short: &str| format!("model.layers.{short}_proj");
        let slots = slots.into_iter().zip(scales);
        slots
            .map(|((short, r), scale)| (path(short), r, scale))
            .collect::<Vec<_>>()
    };
    assert_eq!(choice(&patterned), expected([2.0, 0.25, 3.0, 0.25]));
    let rs = LoraConfig {
        use_rslora: true,
        ..patterned
    };
    let (three, two) = (6.0 / 3f64.sqrt(), 6.0 / 2f64.sqrt());
    assert_eq!(choice(&rs), expected([three as f32, 0.5, two as f32, 0.5]));
}

#[test]
fn a_choice_that_cannot_be_is_refused() {
    let good = || config(&["q_proj"]);
    let regex = |pattern: &str| TargetModules::Regex(pattern.to_owned());
    let cases = [
        (
            LoraConfig {
                target_modules: list(&["q_proj", "c_attn"]),
                ..good()
            },
            "target module \"c_attn\" is no linear of a block",
        ),
        (
            LoraConfig {
                target_modules: regex("lm_head|.*q_proj"),
                ..good()
            },
            "target module \"lm_head\" is no linear of a block",
        ),
        (
            LoraConfig {
                target_modules: regex(".*layers.1.*"),
                ..good()
            },
            "target module \"model.layers.1\" is no linear of a block",
        ),
        (
            LoraConfig {
                target_modules: regex("nothing"),
                ..good()
            },
            "target_modules leaves no module to change",
        ),
        (
            LoraConfig {
                target_modules: regex("q_proj)|(.*v_proj"),
                ..good()
            },
            "target_modules has \"q_proj)|(.*v_proj\", which cannot be read as a regex",
        ),
        (
            LoraConfig {
                exclude_modules: Some(TargetModules::AllLinear),
                ..good()
            },
            "target_modules leaves no module to change",
        ),
        (
            LoraConfig {
                layers_to_transform: Some(vec![0, 2]),
                ..good()
            },
            "layers_to_transform names block 2, but the model has 2",
        ),
        (
            LoraConfig {
                layers_to_transform: Some(vec![0]),
                target_modules: regex(".*q_proj"),
                ..good()
            },
            "layers_to_transform cannot stand beside a target_modules that is a regex",
        ),
        (
            LoraConfig {
                rank_pattern: vec![("q_proj".to_owned(), 65)],
                ..good()
            },
            "r = 65 with a scale of 0.092307694 cannot be at model.layers.0.self_attn.q_proj",
        ),
        (
            LoraConfig {
                rank_pattern: vec![("k_proj".to_owned(), 3)],
                ..good()
            },
            "rank_pattern has \"k_proj\", which matches no module that is changed",
        ),
        (
            LoraConfig {
                alpha_pattern: vec![("proj".to_owned(), 3.0)],
                ..good()
            },
            "alpha_pattern has \"proj\", which matches no module that is changed",
        ),
        (
            LoraConfig {
                lora_dropout: 1.0,
                ..good()
            },
            "lora_dropout = 1 cannot be: it is a probability below 1",
        ),
        (
            LoraConfig {
                lora_dropout: 0.1,
                init_lora_weights: Init::Pissa,
                ..good()
            },
            "init_lora_weights = \"pissa\" needs the base's weights",
        ),
        (
            LoraConfig {
                use_dora: true,
                ..good()
            },
            "use_dora = true needs the base's weights; make the adapter from the base",
        ),
        (
            LoraConfig {
                init_lora_weights: Init::Pissa,
                ..good()
            },
            "init_lora_weights = \"pissa\" needs the base's weights",
        ),
    ];
    for (config, expected) in cases {
        let error = Adapter::init(&model(), &config, 1)
            .err()
            .unwrap()
            .to_string();
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn a_pissa_rank_is_limited_by_the_smaller_side() {
    let pissa = |r, lora_alpha| {
        let config = LoraConfig {
            init_lora_weights: Init::Pissa,
            target_modules: list(&["k_proj"]),
            ..LoraConfig::all_linear(r, lora_alpha)
        };
        Layout::new(&model(), &config)
            .map(|_| ())
            .map_err(|error| error.to_string())
    };
    assert!(pissa(32, 1.0).is_ok());
    let dropped = LoraConfig {
        lora_dropout: 0.1,
        init_lora_weights: Init::Pissa,
        ..LoraConfig::all_linear(4, 1.0)
    };
    let error = Layout::new(&model(), &dropped).err().unwrap().to_string();
    assert_eq!(
        error,
        "init_lora_weights = \"pissa\" cannot stand beside lora_dropout"
    );
    assert!(pissa(33, 1.0).unwrap_err().contains("r is in 1..=32"));
    assert!(
        pissa(4, -1.0)
            .unwrap_err()
            .contains("for pissa also positive")
    );
}

#[test]
fn a_gaussian_adapter_has_normal_a_of_the_inverse_rank_and_no_b() {
    let gaussian = LoraConfig {
        init_lora_weights: Init::Gaussian,
        ..LoraConfig::all_linear(8, 16.0)
    };
    let adapter = Adapter::init(&model(), &gaussian, 3).unwrap();
    let (a, b) = adapter.matrices(0, Module::Down).unwrap();
    assert!(b.iter().all(|&x| x == 0.0));
    let variance = a.iter().map(|x| x * x).sum::<f32>() / a.len() as f32;
    // Four standard deviations of the variance of 1408 draws are 15 %.
    assert!((variance * 64.0 - 1.0).abs() < 0.15, "{variance}");
    let again = Adapter::from_peft(
        &adapter.config_json("base"),
        &adapter.to_safetensors(),
        &model(),
    );
    assert_eq!(
        again.unwrap().config(),
        &LoraConfig {
            target_modules: all_names(),
            ..gaussian
        }
    );
}

fn all_names() -> TargetModules {
    list(&[
        "down_proj",
        "gate_proj",
        "k_proj",
        "o_proj",
        "q_proj",
        "up_proj",
        "v_proj",
    ])
}

#[test]
fn every_field_survives_the_config_file() {
    let full = LoraConfig {
        r: 3,
        lora_alpha: 4.5,
        target_modules: TargetModules::Regex(r"model\..*_proj".to_owned()),
        exclude_modules: Some(TargetModules::Regex(".*k_proj".to_owned())),
        layers_to_transform: None,
        rank_pattern: vec![("z".to_owned(), 2), ("a".to_owned(), 5)],
        alpha_pattern: vec![("b".to_owned(), 0.1)],
        use_rslora: true,
        use_dora: true,
        lora_dropout: 0.1,
        bias: Bias::LoraOnly,
        modules_to_save: vec!["lm_head".to_owned()],
        init_lora_weights: Init::Gaussian,
    };
    let some_layers = LoraConfig {
        target_modules: list(&["q_proj"]),
        exclude_modules: Some(list(&["k_proj"])),
        layers_to_transform: Some(vec![1, 4]),
        bias: Bias::All,
        ..full.clone()
    };
    for config in [full, some_layers, config(&["q_proj"])] {
        let text = adapter_config::write(&config, &[], "base");
        assert_eq!(adapter_config::read(&text).unwrap(), config, "{text}");
    }
}

#[test]
fn what_the_config_file_says_beside_is_known_or_refused() {
    let json = adapter_config::write(&config(&["q_proj"]), &[], "base");
    let with = |key: &str, value: &str| {
        let mut file: serde_json::Value = serde_json::from_str(&json).unwrap();
        file[key] = serde_json::from_str(value).unwrap();
        adapter_config::read(&file.to_string()).map_err(|error| error.to_string())
    };
    for (key, value) in [
        ("task_type", "null"),
        ("layers_pattern", "\"layers\""),
        ("layers_pattern", "[]"),
        ("loftq_config", "null"),
        ("peft_version", "\"0.4.0\""),
        ("from_the_future", "false"),
        ("init_lora_weights", "false"),
        ("rank_pattern", "null"),
    ] {
        assert_eq!(with(key, value).as_ref(), Ok(&config(&["q_proj"])), "{key}");
    }
    for (key, value, expected) in [
        (
            "use_qalora",
            "true",
            "adapter_config.json has use_qalora = true, which is not supported",
        ),
        (
            "use_bdlora",
            "{\"n\":2}",
            "adapter_config.json has use_bdlora = {\"n\":2}, which is not supported",
        ),
        (
            "layers_pattern",
            "\"h\"",
            "adapter_config.json has layers_pattern = \"h\", which is not supported",
        ),
        (
            "fan_in_fan_out",
            "true",
            "adapter_config.json has fan_in_fan_out = true, which is not supported",
        ),
        (
            "r",
            "-1",
            "adapter_config.json is not valid: r = -1 is of the wrong type",
        ),
        (
            "r",
            "null",
            "adapter_config.json is not valid: r is missing",
        ),
        (
            "bias",
            "\"some\"",
            "adapter_config.json is not valid: bias = \"some\" is of the wrong type",
        ),
        (
            "rank_pattern",
            "{\"q\":\"2\"}",
            "adapter_config.json is not valid: rank_pattern = {\"q\":\"2\"} is of the wrong type",
        ),
    ] {
        assert_eq!(with(key, value), Err(expected.to_owned()));
    }
    for init in ["pissa_niter_4", "olora", "loftq", "corda"] {
        let error = with("init_lora_weights", &format!("{init:?}")).unwrap_err();
        assert!(error.contains("PEFT changes the base's weights"), "{error}");
    }
}

#[test]
fn an_adapter_says_what_it_takes_before_and_after_it_was_made_ready() {
    let adapter = Adapter::init(&model(), &config(&["q_proj"]), 1).unwrap();
    // Two layers: A (4, 64) and B (64, 4), in words of four bytes; packed A fills panels of 16 rows, B all of q, k and v.
    let expected = 4 * 2 * (4 * 64 + 64 * 4 + 16 * 64 + 128 * 4);
    assert_eq!(adapter.size_bytes(Precision::Fp32), expected);
    adapter.prepare(Precision::Fp32).unwrap();
    let packed = f32::of(&adapter.copies).get().expect("it needs no base");
    let lora = packed.fused(0, Fused::Qkv);
    assert_eq!((lora.a.columns(), lora.a.depth()), (4, 64));
    assert_eq!((lora.b.columns(), lora.b.depth()), (128, 4));
    assert_eq!(adapter.size_bytes(Precision::Fp32), expected);
}
