use super::*;
use crate::hyperparameters::Hyperparameters;
use crate::method::Method;
use crate::preference::Preference;

const CONTEXT: u32 = 128;

fn refused(asked: AskedTraining, inherited: Option<Inherited>) -> String {
    asked.resolve(CONTEXT, inherited).unwrap_err().param
}

#[test]
fn a_leaf_that_is_not_asked_for_has_its_ordinary_value() {
    let resolved = AskedTraining::default().resolve(CONTEXT, None).unwrap();
    assert_eq!(resolved, Training::default_for(CONTEXT));
    let asked = AskedTraining {
        adapter: AskedAdapter {
            r: Some(8),
            target_modules: Some(TargetModules::Named(vec!["q_proj".into()])),
            ..AskedAdapter::default()
        },
        max_length: Some(64),
        truncation: Some(Truncation::Drop),
        ..AskedTraining::default()
    };
    let resolved = asked.resolve(CONTEXT, None).unwrap();
    assert_eq!(
        serde_json::to_value(&resolved).unwrap(),
        serde_json::json!({
            "adapter": {
                "type": "lora", "r": 8, "alpha": 16.0, "dropout": 0.0, "target_modules": ["q_proj"],
                "rank_pattern": {}, "alpha_pattern": {}, "use_rslora": false, "use_dora": false, "bias": "none",
                "modules_to_save": [], "init": "default", "continue_from": null,
            },
            "optimizer": {"loraplus_lr_ratio": null},
            "precision": {
                "compute": "fp32", "compute_on_gpu": "bf16", "base_weights": "stored", "double_quant": false,
            },
            "memory": {"gradient_checkpointing": "auto"},
            "data": {"format": "chat", "max_length": 64, "truncation": "drop", "packing": "binpack"},
        })
    );
}

#[test]
fn a_training_reads_back_as_it_was_written() {
    let mut training = Training::default_for(CONTEXT);
    training.adapter.rank_pattern = Pairs(vec![("v_proj".into(), 4), ("q_proj".into(), 2)]);
    training.adapter.alpha_pattern = Pairs(vec![("^.*down".into(), 0.1)]);
    let text = serde_json::to_string(&training).unwrap();
    assert_eq!(serde_json::from_str::<Training>(&text).unwrap(), training);
}

#[test]
fn a_training_from_before_there_were_formats_reads_chat() {
    let training = Training::default_for(CONTEXT);
    let mut older = serde_json::to_value(&training).unwrap();
    assert_eq!(older["data"]["format"], "chat");
    older["data"].as_object_mut().unwrap().remove("format");
    assert_eq!(serde_json::from_value::<Training>(older).unwrap(), training);
}

#[test]
fn texts_without_a_template_are_no_pairs() {
    let dpo = Method::Dpo {
        hyperparameters: Hyperparameters::default(),
        preference: Preference::default(),
    };
    for (word, is_refused) in [
        ("alpaca", false),
        ("sharegpt", false),
        ("query_response", false),
        ("prompt_completion", true),
    ] {
        let format = DataFormat::parse(word).unwrap();
        let asked = AskedTraining {
            format: Auto::Given(format),
            ..AskedTraining::default()
        };
        let training = asked.resolve(CONTEXT, None).unwrap();
        assert_eq!(training.data.format, format);
        let judged = training.check_method(&dpo).map_err(|refusal| refusal.param);
        let refused = Err("x_training.data.format".to_owned());
        assert_eq!(judged, if is_refused { refused } else { Ok(()) }, "{word}");
    }
}

#[test]
fn every_word_is_what_its_enum_says() {
    fn check<T: Serialize>(words: &[&str], parse: impl Fn(&str) -> Option<T>) {
        for word in words {
            let value = parse(word).unwrap_or_else(|| panic!("{word} is no word of its enum"));
            assert_eq!(serde_json::to_value(value).unwrap(), **word);
        }
    }
    check(AdapterType::WORDS, AdapterType::parse);
    check(Bias::WORDS, Bias::parse);
    check(Init::WORDS, Init::parse);
    check(Compute::WORDS, Compute::parse);
    check(BaseWeights::WORDS, BaseWeights::parse);
    check(GradientCheckpointing::WORDS, GradientCheckpointing::parse);
    check(DataFormat::WORDS, DataFormat::parse);
    check(Truncation::WORDS, Truncation::parse);
    check(Packing::WORDS, Packing::parse);
    assert_eq!(Packing::parse("binpac"), None);
}

#[test]
fn what_does_not_go_together_is_refused_by_its_path() {
    let longer = AskedTraining {
        max_length: Some(CONTEXT + 1),
        ..AskedTraining::default()
    };
    let double = AskedTraining {
        double_quant: Some(true),
        base_weights: Auto::Given(BaseWeights::Int8),
        ..AskedTraining::default()
    };
    let pissa = |adapter: AskedAdapter, base_weights| AskedTraining {
        adapter: AskedAdapter {
            init: Some(Init::Pissa),
            ..adapter
        },
        base_weights,
        ..AskedTraining::default()
    };
    let dora = AskedAdapter {
        use_dora: Some(true),
        ..AskedAdapter::default()
    };
    let dropped = AskedAdapter {
        dropout: Some(0.1),
        ..AskedAdapter::default()
    };
    for (asked, param) in [
        (pissa(dropped, Auto::Auto), "x_training.adapter.init"),
        (longer, "x_training.data.max_length"),
        (double, "x_training.precision.double_quant"),
        (pissa(dora, Auto::Auto), "x_training.adapter.init"),
        (
            pissa(AskedAdapter::default(), Auto::Given(BaseWeights::Nf4)),
            "x_training.adapter.init",
        ),
    ] {
        assert_eq!(refused(asked, None), param);
    }
}

#[test]
fn nf4_quantises_its_scales_too_unless_told_not_to() {
    for (base_weights, double_quant, expected) in [
        (Auto::Auto, None, FrozenWeights::Stored),
        (Auto::Given(BaseWeights::Int8), None, FrozenWeights::Int8),
        (Auto::Given(BaseWeights::Bf16), None, FrozenWeights::Bf16),
        (
            Auto::Given(BaseWeights::Nf4),
            None,
            FrozenWeights::Nf4DoubleQuant,
        ),
        (
            Auto::Given(BaseWeights::Nf4),
            Some(false),
            FrozenWeights::Nf4,
        ),
    ] {
        let asked = AskedTraining {
            base_weights,
            double_quant,
            ..AskedTraining::default()
        };
        let resolved = asked.resolve(CONTEXT, None).unwrap();
        assert_eq!(resolved.precision.frozen_weights(), expected);
    }
}

#[test]
fn what_is_asked_for_is_computed_in_on_every_device() {
    for compute in [Compute::Fp32, Compute::Bf16] {
        let asked = AskedTraining {
            compute: Auto::Given(compute),
            ..AskedTraining::default()
        };
        let precision = asked.resolve(CONTEXT, None).unwrap().precision;
        assert_eq!(
            (precision.compute, precision.compute_on_gpu),
            (compute, None)
        );
        // As it was written before there were GPUs.
        let json = serde_json::to_value(&precision).unwrap();
        assert_eq!(json.get("compute_on_gpu"), None);
        assert_eq!(
            serde_json::from_value::<Precision>(json).unwrap(),
            precision
        );
    }
}

const PEFT: &str = r#"{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "bias": "none",
    "target_modules": ["v_proj", "q_proj"], "modules_to_save": null, "rank_pattern": {}, "use_dora": false}"#;

fn inherited() -> Inherited {
    Inherited {
        adapter: Adapter::from_peft(PEFT).unwrap(),
        frozen_weights: FrozenWeights::Nf4,
    }
}

#[test]
fn a_continued_adapter_keeps_its_configuration_and_its_base() {
    let same = AskedTraining {
        adapter: AskedAdapter {
            r: Some(4),
            target_modules: Some(TargetModules::Named(vec!["q_proj".into(), "v_proj".into()])),
            continue_from: Some("ft:tiny:luthier::a".into()),
            ..AskedAdapter::default()
        },
        ..AskedTraining::default()
    };
    let resolved = same.clone().resolve(CONTEXT, Some(inherited())).unwrap();
    let expected = Adapter {
        continue_from: Some("ft:tiny:luthier::a".into()),
        ..inherited().adapter
    };
    let on_int8 = AskedTraining {
        base_weights: Auto::Given(BaseWeights::Int8),
        ..same
    };
    let on_int8 = on_int8.resolve(CONTEXT, Some(inherited())).unwrap();
    let frozen_weights = [&resolved, &on_int8].map(|it| it.precision.frozen_weights());
    assert_eq!(frozen_weights, [FrozenWeights::Nf4, FrozenWeights::Int8]);
    assert_eq!(resolved.adapter, expected);
    assert_eq!((expected.r, expected.alpha), (4, 8.0));
}

#[test]
fn a_key_that_would_make_it_another_adapter_is_refused() {
    let asked = |adapter| AskedTraining {
        adapter,
        ..AskedTraining::default()
    };
    let default = AskedAdapter::default;
    for (adapter, key) in [
        (
            AskedAdapter {
                r: Some(8),
                ..default()
            },
            "r",
        ),
        (
            AskedAdapter {
                alpha: Some(8.5),
                ..default()
            },
            "alpha",
        ),
        (
            AskedAdapter {
                target_modules: Some(TargetModules::all_linear()),
                ..default()
            },
            "target_modules",
        ),
        (
            AskedAdapter {
                bias: Some(Bias::All),
                ..default()
            },
            "bias",
        ),
        (
            AskedAdapter {
                init: Some(Init::Pissa),
                ..default()
            },
            "init",
        ),
    ] {
        let expected = format!("x_training.adapter.{key}");
        assert_eq!(refused(asked(adapter), Some(inherited())), expected);
    }
}

#[test]
fn a_configuration_that_is_not_peft_s_is_refused() {
    for text in ["", "[]", r#"{"r": -1}"#, r#"{"r": 4, "lora_alpha": 8}"#] {
        assert!(Adapter::from_peft(text).is_err(), "{text}");
    }
}
