//! Every kind of adapter, on the tiny models, against PEFT.

use std::collections::BTreeMap;
use std::sync::Arc;

use engine::generate::{Batcher, Limits};
use engine::lora::{Adapter, AdapterError, Init, LoraConfig, Module, TargetModules};
use engine::pool::Pool;
use engine::train::TrainConfig;
use engine::weights::BaseModel;
use serde::Deserialize;

use crate::support::*;

/// ‖Δ‖/‖g‖ of each tensor.
const TOLERANCE: f64 = 1e-5;
/// The document whose logits are kept.
const LOGITS_OF: usize = 0;

#[derive(Deserialize)]
struct Expected {
    base: String,
    /// Of all documents.
    loss: f32,
    run: Run,
}

#[derive(Deserialize)]
struct Nothing {}

struct Variant {
    expected: Expected,
    /// The base's.
    golden: Golden<Nothing>,
    base: Arc<BaseModel>,
    pool: Pool,
    config_json: String,
    file: Vec<u8>,
    tensors: BTreeMap<String, Vec<f32>>,
}

impl Variant {
    fn load(name: &str) -> Self {
        let folder = fixture("adapters").join(name);
        let read = |file: &str| std::fs::read(folder.join(file)).unwrap();
        let expected: Expected = serde_json::from_slice(&read("golden.json")).unwrap();
        let pool = Pool::new(2);
        Self {
            golden: Golden::read(&fixture(&expected.base)),
            base: Arc::new(BaseModel::load(&fixture(&expected.base), &pool).unwrap()),
            pool,
            config_json: String::from_utf8(read("adapter_config.json")).unwrap(),
            file: read("adapter_model.safetensors"),
            tensors: read_tensors(&folder.join("golden.safetensors")),
            expected,
        }
    }

    fn read(&self) -> Result<Adapter, AdapterError> {
        Adapter::from_peft(&self.config_json, &self.file, self.base.config())
    }

    fn model(&self, adapter: Adapter) -> Model {
        Model {
            base: self.base.clone(),
            adapter,
            pool: self.pool.clone(),
        }
    }

    fn check_logits(&self, model: &Model, what: &str) {
        let tokens = &self.golden.documents[LOGITS_OF].tokens;
        let got = model.trainer(TrainConfig::default()).logits(tokens);
        let expected = &self.tensors["logits"];
        check_logits(&got.unwrap(), expected, max_abs(expected), what);
    }

    /// `sign` says by what PEFT's gradient of a tensor's i-th value is to be multiplied.
    fn check_training(&self, model: &Model, sign: impl Fn(&str, usize) -> f32) {
        let examples = self.golden.examples();
        let report = model.trainer(TrainConfig::default()).evaluate(&examples);
        let report = report.unwrap();
        let loss = (report.loss_sum / report.n_label_tokens as f64) as f32;
        check_close(loss, self.expected.loss, LOSS_TOLERANCE, "loss");
        let gradients = model.gradients(&examples);
        let n = self.tensors.len() - 1;
        assert_eq!(gradients.len(), n, "number of trained tensors");
        for (name, got) in &gradients {
            let want = &self.tensors[&format!("grad.{name}")];
            assert_eq!(got.len(), want.len(), "{name}");
            let pairs = got.iter().zip(want).enumerate();
            let distance = norm(pairs.map(|(i, (g, w))| f64::from(g - sign(name, i) * w)));
            let relative = distance / norm(want.iter().map(|&w| f64::from(w)));
            assert!(relative <= TOLERANCE, "{name}: off by {relative:e}");
        }
        model.follow(&self.expected.run, &examples);
    }
}

/// Every folder but `pissa`, which begins with a base that PEFT has changed.
const KINDS: [&str; 15] = [
    "rslora",
    "patterns",
    "regex",
    "layers",
    "loraplus",
    "dropout",
    "dora",
    "dora_dropout",
    "dora_bias",
    "bias_all",
    "bias_lora_only",
    "save_head",
    "save_embeddings",
    "save_scaled_embeddings",
    "dora_fused",
];

#[test]
fn every_kind_of_adapter_computes_what_peft_computes() {
    for name in KINDS {
        println!("{name}");
        let variant = Variant::load(name);
        let model = variant.model(variant.read().unwrap());
        variant.check_logits(&model, name);
        variant.check_training(&model, |_, _| 1.0);
    }
}

#[test]
fn every_kind_of_adapter_is_served_as_it_was_trained() {
    for name in KINDS {
        let variant = Variant::load(name);
        let adapter = variant.read().unwrap();
        let limits = Limits {
            max_sequences: 3,
            max_cached_tokens: 1024,
        };
        let mut batcher = Batcher::new(variant.base.clone(), variant.pool.clone(), limits);
        let tokens = &variant.golden.documents[LOGITS_OF].tokens;
        let logits = &variant.tensors["logits"];
        let rows = logits.chunks(logits.len() / tokens.len());
        let expected: Vec<f32> = rows
            .zip(&tokens[1..])
            .map(|(row, &token)| logprob(row, token))
            .collect();
        let got = batcher.score(tokens, Some(&adapter)).unwrap();
        check_logits(&got, &expected, max_abs(&expected), name);
    }
}

#[test]
fn what_peft_wrote_is_written_back() {
    for name in KINDS {
        let variant = Variant::load(name);
        let adapter = variant.read().unwrap();
        let (ours, theirs) = (adapter.to_safetensors(), &variant.file);
        assert_eq!(parse_tensors(&ours), parse_tensors(theirs), "{name}");
        let parse = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        let ours = parse(&adapter.config_json(&variant.expected.base));
        let peft = parse(&variant.config_json);
        for (key, value) in ours.as_object().unwrap() {
            assert_eq!(value, &peft[key], "{name}: {key}");
        }
        for (key, value) in peft.as_object().unwrap() {
            let is_there = ours.get(key).is_some();
            assert!(is_there || value.is_null(), "{name}: {key} = {value}");
        }
    }
}

#[test]
fn an_adapter_that_changes_the_base_is_refused() {
    let error = Variant::load("pissa").read().err().unwrap();
    let expected = "adapter_config.json has init_lora_weights = \"pissa\", with which PEFT changes the base's weights; \
        save it with path_initial_model_for_weight_conversion, as plain LoRA";
    assert_eq!(error.to_string(), expected);
}

/// As `tests/parity/adapter_fixtures.py` has it.
fn pissa_config() -> LoraConfig {
    let names = ["k_proj", "o_proj", "up_proj", "down_proj"];
    LoraConfig {
        target_modules: TargetModules::List(names.map(str::to_owned).to_vec()),
        rank_pattern: vec![("k_proj".to_owned(), 2)],
        init_lora_weights: Init::Pissa,
        ..LoraConfig::all_linear(4, 6.0)
    }
}

#[test]
fn pissa_trains_on_the_untouched_base_as_peft_does_on_the_changed_one() {
    let variant = Variant::load("pissa");
    let adapter = Adapter::init_from(&variant.base, &pissa_config(), 7, &variant.pool).unwrap();
    let peft = parse_tensors(&variant.file);
    // Singular vectors are the same but for their signs, which PEFT leaves to LAPACK.
    let mut signs: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    for (name, theirs) in peft.iter().filter(|(name, _)| name.contains("lora_A")) {
        let parts: Vec<&str> = name.split('.').collect();
        let module = Module::ALL.into_iter().find(|m| m.name() == parts[6]);
        let (a, b) = adapter
            .matrices(parts[4].parse().unwrap(), module.unwrap())
            .unwrap();
        let b_name = name.replace("lora_A", "lora_B");
        let r = if parts[6] == "k_proj" { 2 } else { 4 };
        let rows = theirs.chunks(theirs.len() / r).zip(a.chunks(a.len() / r));
        let signs_of: Vec<f32> = rows
            .map(|(theirs, ours)| {
                theirs
                    .iter()
                    .zip(ours)
                    .map(|(x, y)| x * y)
                    .sum::<f32>()
                    .signum()
            })
            .collect();
        let n_in = a.len() / r;
        for (i, (ours, theirs)) in a.iter().zip(theirs).enumerate() {
            // 1e-6: values of up to 1, rounded to f32 in another order.
            check_close(*ours, signs_of[i / n_in] * theirs, 1e-6, name);
        }
        for (i, (ours, theirs)) in b.iter().zip(&peft[&b_name]).enumerate() {
            check_close(*ours, signs_of[i % r] * theirs, 1e-6, &b_name);
        }
        signs.insert(
            name.clone(),
            signs_of.iter().flat_map(|&s| vec![s; n_in]).collect(),
        );
        signs.insert(b_name, signs_of.repeat(b.len() / r));
    }
    let model = variant.model(adapter);
    variant.check_logits(&model, "pissa");
    variant.check_training(&model, |name, i| signs[name][i]);
}

#[test]
fn pissa_is_exported_as_plain_lora_of_twice_the_rank() {
    let variant = Variant::load("pissa");
    for use_rslora in [false, true] {
        let config = LoraConfig {
            use_rslora,
            ..pissa_config()
        };
        let adapter = Adapter::init_from(&variant.base, &config, 7, &variant.pool).unwrap();
        let mut trainer = variant.model(adapter).trainer(TrainConfig {
            learning_rate: 1e-2,
            ..TrainConfig::default()
        });
        let examples = variant.golden.examples();
        trainer.step(&examples).unwrap();
        let tokens = &variant.golden.documents[1].tokens;
        let trained = trainer.logits(tokens).unwrap();
        let adapter = trainer.adapter().unwrap();
        let (json, file) = (adapter.config_json("base"), adapter.to_safetensors());
        let plain = Adapter::from_peft(&json, &file, variant.base.config()).unwrap();
        assert_eq!(plain.config().init_lora_weights, Init::Default);
        assert_eq!(
            (plain.config().r, &plain.config().rank_pattern[0].1),
            (8, &4)
        );
        let mut trainer = variant.model(plain).trainer(TrainConfig::default());
        let logits = trainer.logits(tokens).unwrap();
        check_logits(&logits, &trained, max_abs(&trained), "plain");
    }
}
