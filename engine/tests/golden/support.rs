//! Reads the fixtures and compares with them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine::batch::Example;
use engine::generate::{Batcher, GenerateRequest, Limits, Sampling};
use engine::lora::Adapter;
use engine::pool::Pool;
use engine::schedule::Schedule;
use engine::train::{TrainConfig, Trainer};
use engine::weights::BaseModel;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

/// Absolute, times the largest logit where that is above 1: f32 sums in another order.
pub const LOGITS_TOLERANCE: f32 = 1e-4;
/// Absolute: a mean over at least ten labels.
pub const LOSS_TOLERANCE: f32 = 1e-5;
/// ‖Δ‖/‖g‖ of each tensor.
pub const GRADIENT_TOLERANCE: f64 = 1e-4;
/// Absolute, after up to ten steps that carry earlier differences along.
pub const TRAINING_LOSS_TOLERANCE: f32 = 1e-4;

#[derive(Deserialize)]
pub struct Golden<G> {
    pub documents: Vec<Document>,
    pub loss: f32,
    pub n_label_tokens: u64,
    pub n_correct: u64,
    pub greedy: Greedy,
    pub runs: Vec<Run>,
    #[serde(flatten)]
    pub more: G,
}

#[derive(Deserialize)]
pub struct Document {
    pub tokens: Vec<u32>,
    pub mask: Vec<bool>,
}

#[derive(Deserialize)]
pub struct Greedy {
    pub prompt: Vec<u32>,
    pub base: Vec<u32>,
    pub adapter: Vec<u32>,
}

#[derive(Deserialize)]
pub struct Run {
    pub name: String,
    pub learning_rate: f32,
    pub schedule: String,
    pub warmup_steps: u64,
    pub total_steps: u64,
    pub max_grad_norm: Option<f32>,
    pub weight_decay: f32,
    pub loraplus_lr_ratio: Option<f32>,
    pub batches: Vec<Vec<usize>>,
    pub losses: Vec<f32>,
    pub grad_norms: Vec<f32>,
    pub learning_rates: Vec<f32>,
    pub n_correct: Vec<u64>,
}

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

impl<G: for<'a> Deserialize<'a>> Golden<G> {
    pub fn read(folder: &Path) -> Self {
        serde_json::from_slice(&std::fs::read(folder.join("golden.json")).unwrap()).unwrap()
    }

    pub fn examples(&self) -> Vec<Example> {
        let example = |d: &Document| Example {
            tokens: d.tokens.clone(),
            mask: d.mask.clone(),
        };
        self.documents.iter().map(example).collect()
    }
}

impl Run {
    fn config(&self) -> TrainConfig {
        TrainConfig {
            learning_rate: self.learning_rate,
            total_steps: self.total_steps,
            warmup_steps: self.warmup_steps,
            schedule: match self.schedule.as_str() {
                "constant" => Schedule::Constant,
                "linear" => Schedule::Linear,
                "cosine" => Schedule::Cosine,
                other => panic!("unknown schedule {other}"),
            },
            weight_decay: self.weight_decay,
            max_grad_norm: self.max_grad_norm,
            loraplus_lr_ratio: self.loraplus_lr_ratio,
            ..TrainConfig::default()
        }
    }
}

/// All f32 (or i32, as f32) tensors of a safetensors file.
pub fn read_tensors(path: &Path) -> BTreeMap<String, Vec<f32>> {
    let bytes = std::fs::read(path).unwrap();
    parse_tensors(&bytes)
}

pub fn parse_tensors(bytes: &[u8]) -> BTreeMap<String, Vec<f32>> {
    let file = SafeTensors::deserialize(bytes).unwrap();
    let values = |dtype, data: &[u8]| {
        let words = data
            .chunks_exact(4)
            .map(|c| <[u8; 4]>::try_from(c).unwrap());
        match dtype {
            Dtype::F32 => words.map(f32::from_le_bytes).collect::<Vec<_>>(),
            Dtype::I32 => words.map(|w| i32::from_le_bytes(w) as f32).collect(),
            other => panic!("a fixture holds {other:?}"),
        }
    };
    file.tensors()
        .into_iter()
        .map(|(name, t)| (name, values(t.dtype(), t.data())))
        .collect()
}

/// A base and an adapter ready to be asked.
pub struct Model {
    pub base: Arc<BaseModel>,
    pub adapter: Adapter,
    pub pool: Pool,
}

impl Model {
    pub fn trainer(&self, config: TrainConfig) -> Trainer {
        Trainer::new(
            self.base.clone(),
            self.adapter.clone(),
            config,
            self.pool.clone(),
        )
    }

    /// The gradient of the mean loss over all labels, by PEFT's tensor names.
    pub fn gradients(&self, examples: &[Example]) -> BTreeMap<String, Vec<f32>> {
        let mut trainer = self.trainer(TrainConfig::default());
        trainer.gradients(examples).unwrap().into_iter().collect()
    }

    /// Runs ten steps and compares each with torch's.
    pub fn follow(&self, run: &Run, examples: &[Example]) {
        let mut trainer = self.trainer(run.config());
        for (step, batch) in run.batches.iter().enumerate() {
            let batch: Vec<_> = batch.iter().map(|&i| examples[i].clone()).collect();
            let report = trainer.step(&batch).unwrap();
            let at = format!("{}, step {step}", run.name);
            check_close(
                report.loss,
                run.losses[step],
                TRAINING_LOSS_TOLERANCE,
                &format!("{at}: loss"),
            );
            let norm = run.grad_norms[step];
            check_close(
                report.grad_norm,
                norm,
                1e-4 * norm,
                &format!("{at}: gradient norm"),
            );
            let learning_rate = run.learning_rates[step];
            check_close(
                report.learning_rate,
                learning_rate,
                1e-6 * learning_rate,
                &format!("{at}: learning rate"),
            );
            assert_eq!(
                report.n_correct, run.n_correct[step],
                "{at}: correct labels"
            );
        }
        assert_eq!(trainer.step_count(), run.batches.len() as u64);
    }

    /// Continues the prompt greedily with the base and with the adapter, both in one batch.
    pub fn check_greedy(&self, greedy: &Greedy) {
        let limits = Limits {
            max_sequences: 4,
            max_cached_tokens: 1024,
        };
        let mut batcher = Batcher::new(self.base.clone(), self.pool.clone(), limits);
        let adapter = Arc::new(self.adapter.clone());
        let requests = [(None, &greedy.base), (Some(adapter), &greedy.adapter)];
        let expected = requests.map(|(adapter, tokens)| {
            let request = GenerateRequest {
                prompt: greedy.prompt.clone(),
                adapter,
                scope: "".into(),
                sampling: greedy_sampling(),
                max_new_tokens: tokens.len(),
                stop_token_ids: vec![],
                top_logprobs: None,
                grammar: None,
            };
            (batcher.admit(request).unwrap(), tokens)
        });
        let mut outputs = vec![];
        while !batcher.is_idle() {
            outputs.extend(batcher.step().unwrap().into_iter().map(Result::unwrap));
        }
        for (id, tokens) in expected {
            let got: Vec<u32> = outputs
                .iter()
                .filter(|o| o.id == id)
                .map(|o| o.token)
                .collect();
            assert_eq!(&got, tokens);
        }
    }
}

fn greedy_sampling() -> Sampling {
    Sampling {
        temperature: 0.0,
        ..Sampling::default()
    }
}

pub fn check_close(got: f32, expected: f32, tolerance: f32, what: &str) {
    let distance = (got - expected).abs();
    assert!(
        distance <= tolerance,
        "{what}: {got} is not within {tolerance} of {expected}"
    );
}

/// Every |Δ| within `LOGITS_TOLERANCE` · max(1, `max_abs`).
pub fn check_logits(got: &[f32], expected: &[f32], max_abs: f32, what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let tolerance = LOGITS_TOLERANCE * max_abs.max(1.0);
    for (i, (g, e)) in got.iter().zip(expected).enumerate() {
        assert!(
            (g - e).abs() <= tolerance,
            "{what}[{i}]: {g} is not within {tolerance} of {e}"
        );
    }
}

pub fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|v| v * v).sum::<f64>().sqrt()
}

pub fn max_abs(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |m, v| m.max(v.abs()))
}

/// log p of a token by a row of logits.
pub fn logprob(logits: &[f32], token: u32) -> f32 {
    let sum: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
    (f64::from(logits[token as usize]) - sum.ln()) as f32
}
