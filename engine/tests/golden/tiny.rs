//! Tiny random models, compared in full.

use std::path::PathBuf;
use std::sync::Arc;

use engine::generate::{Batcher, GenerateRequest, Limits, Sampling};
use engine::lora::{Adapter, LoraConfig};
use engine::pool::Pool;
use engine::train::TrainConfig;
use engine::weights::BaseModel;
use serde::Deserialize;

use crate::support::*;

const MODELS: [&str; 15] = [
    "tiny_llama_tied",
    "tiny_llama_untied",
    "tiny_llama3",
    "tiny_qwen2",
    "tiny_llama_bias",
    "tiny_mistral",
    "tiny_qwen3",
    "tiny_gemma2",
    "tiny_gemma3",
    "tiny_phi3",
    "tiny_olmo2",
    "tiny_smollm3",
    "tiny_glm4",
    "tiny_qwen3_moe",
    "tiny_mixtral",
];

#[derive(Deserialize)]
pub struct Nothing {}

pub struct Tiny {
    folder: PathBuf,
    pub golden: Golden<Nothing>,
    pub model: Model,
}

impl Tiny {
    fn load(name: &str) -> Self {
        let folder = fixture(name);
        let pool = Pool::new(2);
        let base = Arc::new(BaseModel::load(&folder, &pool).unwrap());
        let adapter = read_adapter(&folder, &base);
        Self {
            golden: Golden::read(&folder),
            model: Model {
                base,
                adapter,
                pool,
            },
            folder,
        }
    }

    fn tensors(&self) -> std::collections::BTreeMap<String, Vec<f32>> {
        read_tensors(&self.folder.join("golden.safetensors"))
    }
}

fn read_adapter(folder: &std::path::Path, base: &BaseModel) -> Adapter {
    let config = std::fs::read_to_string(folder.join("adapter/adapter_config.json")).unwrap();
    let tensors = std::fs::read(folder.join("adapter/adapter_model.safetensors")).unwrap();
    Adapter::from_peft(&config, &tensors, base.config()).unwrap()
}

pub fn each_model(check: impl Fn(&str, Tiny)) {
    for name in MODELS {
        check(name, Tiny::load(name));
    }
}

#[test]
fn logits_match_with_the_adapter_and_without() {
    each_model(|name, tiny| {
        let tensors = tiny.tensors();
        let mut trainer = tiny.model.trainer(TrainConfig::default());
        for (i, example) in tiny.golden.examples().iter().enumerate() {
            let expected = &tensors[&format!("logits.{i}")];
            let got = trainer.logits(&example.tokens).unwrap();
            check_logits(
                &got,
                expected,
                max_abs(expected),
                &format!("{name} logits.{i}"),
            );
        }
        let untouched = Adapter::init(tiny.model.base.config(), &LoraConfig::default(), 3).unwrap();
        let base = Model {
            adapter: untouched,
            ..tiny.model
        };
        let got = base
            .trainer(TrainConfig::default())
            .logits(&tiny.golden.documents[1].tokens)
            .unwrap();
        let expected = &tensors["base_logits.1"];
        check_logits(
            &got,
            expected,
            max_abs(expected),
            &format!("{name} base_logits.1"),
        );
    });
}

#[test]
fn label_logprobs_match() {
    each_model(|name, tiny| {
        let tensors = tiny.tensors();
        let mut trainer = tiny.model.trainer(TrainConfig::default());
        for (i, example) in tiny.golden.examples().iter().enumerate() {
            let expected = &tensors[&format!("label_logprobs.{i}")];
            let got = trainer.label_logprobs(example).unwrap();
            check_logits(
                &got,
                expected,
                max_abs(expected),
                &format!("{name} label_logprobs.{i}"),
            );
        }
    });
}

#[test]
fn evaluation_counts_loss_and_correct_labels_over_all_documents() {
    each_model(|name, tiny| {
        let mut trainer = tiny.model.trainer(TrainConfig::default());
        let report = trainer.evaluate(&tiny.golden.examples()).unwrap();
        assert_eq!(report.n_label_tokens, tiny.golden.n_label_tokens, "{name}");
        assert_eq!(report.n_correct, tiny.golden.n_correct, "{name}");
        let loss = (report.loss_sum / report.n_label_tokens as f64) as f32;
        check_close(loss, tiny.golden.loss, LOSS_TOLERANCE, name);
    });
}

#[test]
fn every_lora_gradient_matches() {
    each_model(|name, tiny| {
        let mut expected = tiny.tensors();
        expected.retain(|key, _| key.starts_with("grad."));
        let gradients = tiny.model.gradients(&tiny.golden.examples());
        assert_eq!(gradients.len(), expected.len(), "{name}: number of tensors");
        for (key, got) in &gradients {
            let want = &expected[&format!("grad.{key}")];
            assert_eq!(got.len(), want.len(), "{name} {key}");
            let distance = norm(got.iter().zip(want).map(|(g, w)| f64::from(g - w)));
            let relative = distance / norm(want.iter().map(|&w| f64::from(w)));
            assert!(
                relative <= GRADIENT_TOLERANCE,
                "{name} {key}: off by {relative:e}"
            );
        }
    });
}

#[test]
fn ten_losses_follow_torch_under_every_schedule() {
    each_model(|_, tiny| {
        let examples = tiny.golden.examples();
        for run in &tiny.golden.runs {
            tiny.model.follow(run, &examples);
        }
    });
}

#[test]
fn greedy_tokens_are_identical_with_base_and_adapter_in_one_batch() {
    each_model(|_, tiny| tiny.model.check_greedy(&tiny.golden.greedy));
}

#[test]
fn the_serving_path_scores_tokens_as_the_training_path_does() {
    each_model(|name, tiny| {
        let tensors = tiny.tensors();
        let limits = Limits {
            max_sequences: 4,
            max_cached_tokens: 1024,
        };
        let mut batcher = Batcher::new(tiny.model.base.clone(), tiny.model.pool.clone(), limits);
        for (i, example) in tiny.golden.examples().iter().enumerate() {
            let logits = &tensors[&format!("logits.{i}")];
            let rows = logits.chunks(logits.len() / example.tokens.len());
            let next = &example.tokens[1..];
            let expected: Vec<f32> = rows.zip(next).map(|(row, &t)| logprob(row, t)).collect();
            let got = batcher
                .score(&example.tokens, Some(&tiny.model.adapter))
                .unwrap();
            check_logits(
                &got,
                &expected,
                max_abs(&expected),
                &format!("{name} document {i}"),
            );
        }
    });
}

#[test]
fn a_prompt_is_scored_with_its_likeliest_tokens_by_base_and_adapter_in_one_batch() {
    each_model(|name, tiny| {
        let tensors = tiny.tensors();
        let limits = Limits {
            max_sequences: 8,
            max_cached_tokens: 1024,
        };
        let mut batcher = Batcher::new(tiny.model.base.clone(), tiny.model.pool.clone(), limits);
        let adapter = Arc::new(tiny.model.adapter.clone());
        let documents = &tiny.golden.documents;
        let of_adapter = (0..documents.len()).map(|i| (i, format!("logits.{i}"), Some(&adapter)));
        let of_base = (1, "base_logits.1".to_owned(), None);
        let scored = of_adapter.chain([of_base]).map(|(i, key, adapter)| {
            let request = GenerateRequest {
                prompt: documents[i].tokens.clone(),
                adapter: adapter.cloned(),
                scope: "".into(),
                sampling: Sampling::default(),
                max_new_tokens: 0,
                stop_token_ids: vec![],
                top_logprobs: Some(5),
                grammar: None,
            };
            (batcher.admit(request).unwrap(), i, key)
        });
        let scored: Vec<_> = scored.collect();
        let mut outputs = vec![];
        while !batcher.is_idle() {
            outputs.extend(batcher.step().unwrap().into_iter().map(Result::unwrap));
        }
        for (id, i, key) in scored {
            let (logits, next) = (&tensors[&key], &documents[i].tokens[1..]);
            let rows = logits.chunks(logits.len() / documents[i].tokens.len());
            let got: Vec<_> = outputs.iter().filter(|o| o.id == id).collect();
            assert_eq!(got.len(), next.len(), "{name} {key}");
            for ((row, &token), got) in rows.zip(next).zip(got) {
                let mut likeliest: Vec<f32> =
                    (0..row.len()).map(|t| logprob(row, t as u32)).collect();
                likeliest.sort_by(|a, b| b.total_cmp(a));
                let expected = [&[logprob(row, token)], &likeliest[..5]].concat();
                let top = got.top.iter().map(|top| top.1);
                let told: Vec<f32> = [got.logprob].into_iter().chain(top).collect();
                let largest = max_abs(&expected);
                check_logits(&told, &expected, largest, &format!("{name} {key}"));
                assert_eq!(got.token, token, "{name} {key}");
                for &(token, told) in &got.top {
                    let expected = logprob(row, token);
                    check_logits(&[told], &[expected], largest, &format!("{name} {key}"));
                }
            }
        }
    });
}

#[test]
fn an_adapter_read_from_peft_is_written_back_unchanged() {
    each_model(|name, tiny| {
        let original = read_tensors(&tiny.folder.join("adapter/adapter_model.safetensors"));
        assert_eq!(
            parse_tensors(&tiny.model.adapter.to_safetensors()),
            original,
            "{name}"
        );
        let config: serde_json::Value =
            serde_json::from_str(&tiny.model.adapter.config_json(name)).unwrap();
        let path = tiny.folder.join("adapter/adapter_config.json");
        let peft: serde_json::Value =
            serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        for key in [
            "peft_type",
            "task_type",
            "r",
            "lora_alpha",
            "lora_dropout",
            "bias",
            "use_rslora",
            "use_dora",
        ] {
            assert_eq!(config[key], peft[key], "{name}: {key}");
        }
        assert_eq!(
            sorted(&config["target_modules"]),
            sorted(&peft["target_modules"]),
            "{name}"
        );
    });
}

fn sorted(list: &serde_json::Value) -> Vec<String> {
    let mut names: Vec<String> = serde_json::from_value(list.clone()).unwrap();
    names.sort();
    names
}
