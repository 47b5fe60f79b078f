//! Training by preference, compared with TRL's trainers.

use std::sync::Arc;

use engine::Precision;
use engine::batch::Example;
use engine::lora::Adapter;
use engine::pool::Pool;
use engine::schedule::Schedule;
use engine::train::{
    Pair, PairLogprobs, Preference, PreferenceLoss, TrainConfig, TrainError, Trainer,
};
use engine::weights::BaseModel;
use serde::Deserialize;

use crate::support::*;

#[derive(Deserialize)]
struct Golden {
    model: String,
    beta: f32,
    label_smoothing: f32,
    gamma: f32,
    /// Whose gradient is there whole.
    kept: String,
    pairs: Vec<Answers>,
    /// log p of both answers of each pair by the adapter as it is.
    references: Vec<[f64; 2]>,
    /// Of the adapter times 1.25.
    losses: Vec<Loss>,
    run: Run,
}

#[derive(Deserialize)]
struct Answers {
    prompt: Vec<u32>,
    chosen: Vec<u32>,
    rejected: Vec<u32>,
}

#[derive(Deserialize)]
struct Loss {
    name: String,
    loss: f32,
    grad_norm: f32,
}

#[derive(Deserialize)]
struct Run {
    learning_rate: f32,
    warmup_steps: u64,
    max_grad_norm: f32,
    batch_size: usize,
    losses: Vec<f32>,
    grad_norms: Vec<f32>,
    accuracies: Vec<f64>,
    margins: Vec<f64>,
}

const LOSSES: [(&str, PreferenceLoss); 13] = [
    ("sigmoid", PreferenceLoss::Sigmoid),
    ("hinge", PreferenceLoss::Hinge),
    ("ipo", PreferenceLoss::Ipo),
    ("exo_pair", PreferenceLoss::ExoPair),
    ("nca_pair", PreferenceLoss::NcaPair),
    ("robust", PreferenceLoss::Robust),
    ("bco_pair", PreferenceLoss::BcoPair),
    ("sppo_hard", PreferenceLoss::SppoHard),
    ("apo_zero", PreferenceLoss::ApoZero),
    ("apo_down", PreferenceLoss::ApoDown),
    ("orpo", PreferenceLoss::Orpo),
    ("simpo", PreferenceLoss::Simpo),
    ("cpo", PreferenceLoss::Cpo),
];

impl Golden {
    fn read() -> Self {
        let folder = fixture("preference");
        serde_json::from_slice(&std::fs::read(folder.join("golden.json")).unwrap()).unwrap()
    }

    fn pairs(&self) -> Vec<Pair> {
        let example = |prompt: &[u32], answer: &[u32]| Example {
            tokens: [prompt, answer].concat(),
            mask: [vec![false; prompt.len()], vec![true; answer.len()]].concat(),
        };
        let pairs = self.pairs.iter();
        pairs
            .map(|pair| Pair {
                chosen: example(&pair.prompt, &pair.chosen),
                rejected: example(&pair.prompt, &pair.rejected),
            })
            .collect()
    }

    fn references(&self) -> Vec<PairLogprobs> {
        let references = self.references.iter();
        references
            .map(|&[chosen, rejected]| PairLogprobs { chosen, rejected })
            .collect()
    }

    /// The model with its adapter, whose values are `factor` times as large.
    fn model(&self, factor: f32) -> Model {
        let folder = fixture(&self.model);
        let pool = Pool::new(2);
        let base = Arc::new(BaseModel::load(&folder, &pool).unwrap());
        let config = std::fs::read_to_string(folder.join("adapter/adapter_config.json")).unwrap();
        let mut tensors = std::fs::read(folder.join("adapter/adapter_model.safetensors")).unwrap();
        let header = u64::from_le_bytes(tensors[..8].try_into().unwrap()) as usize;
        for bytes in tensors[8 + header..].as_chunks_mut::<4>().0 {
            *bytes = (f32::from_le_bytes(*bytes) * factor).to_le_bytes();
        }
        let adapter = Adapter::from_peft(&config, &tensors, base.config()).unwrap();
        Model {
            base,
            adapter,
            pool,
        }
    }

    fn config(&self, name: &str) -> TrainConfig {
        let (_, loss) = LOSSES[LOSSES.iter().position(|(known, _)| *known == name).unwrap()];
        let smoothed = matches!(name, "exo_pair" | "robust");
        TrainConfig {
            preference: Some(Preference {
                loss,
                beta: self.beta,
                label_smoothing: if smoothed { self.label_smoothing } else { 0.0 },
                gamma: self.gamma,
                ftx: 0.0,
            }),
            ..TrainConfig::default()
        }
    }

    fn run_config(&self) -> TrainConfig {
        TrainConfig {
            learning_rate: self.run.learning_rate,
            total_steps: self.run.losses.len() as u64,
            warmup_steps: self.run.warmup_steps,
            schedule: Schedule::Linear,
            max_grad_norm: Some(self.run.max_grad_norm),
            ..self.config("sigmoid")
        }
    }
}

#[test]
fn every_loss_and_its_gradient_match() {
    let golden = Golden::read();
    let kept = read_tensors(&fixture("preference").join("golden.safetensors"));
    let model = golden.model(1.25);
    let (pairs, references) = (golden.pairs(), golden.references());
    assert_eq!(golden.losses.len(), LOSSES.len());
    for Loss {
        name,
        loss,
        grad_norm,
    } in &golden.losses
    {
        let config = golden.config(name);
        let references: &[PairLogprobs] = match config.preference.unwrap().loss.has_reference() {
            true => &references,
            false => &[],
        };
        let mut trainer = model.trainer(config);
        let gradients = trainer.gradients_of_pairs(&pairs, references).unwrap();
        let (_, gradient) = gradients.iter().find(|(n, _)| *n == golden.kept).unwrap();
        let expected = &kept[&format!("{name}.grad")];
        let norm = |values: &mut dyn Iterator<Item = f32>| {
            values
                .map(|x| f64::from(x) * f64::from(x))
                .sum::<f64>()
                .sqrt()
        };
        let off = norm(&mut gradient.iter().zip(expected).map(|(a, b)| a - b));
        let all = norm(&mut expected.iter().copied());
        assert!(off < GRADIENT_TOLERANCE * all, "{name}: {off} of {all}");

        let report = trainer.evaluate_pairs(&pairs, references).unwrap();
        let found = (report.loss_sum / report.n_pairs as f64) as f32;
        let scale = loss.abs().max(1.0);
        check_close(found, *loss, LOSS_TOLERANCE * scale, name);
        let report = trainer.step_pairs(&pairs, references).unwrap();
        check_close(report.grad_norm, *grad_norm, 1e-4 * grad_norm, name);
    }
}

#[test]
fn a_run_of_dpo_follows_trl() {
    let golden = Golden::read();
    let pairs = golden.pairs();
    let mut trainer = golden.model(1.0).trainer(golden.run_config());
    let references = trainer.reference_logprobs(&pairs).unwrap();
    for (found, expected) in references.iter().zip(golden.references()) {
        for (found, expected) in [
            (found.chosen, expected.chosen),
            (found.rejected, expected.rejected),
        ] {
            assert!((found - expected).abs() < 1e-4, "{found} and {expected}");
        }
    }
    let run = &golden.run;
    for (step, loss) in run.losses.iter().enumerate() {
        let first = step * run.batch_size % pairs.len();
        let places = first..first + run.batch_size;
        let report = trainer
            .step_pairs(&pairs[places.clone()], &references[places])
            .unwrap();
        let n = report.pairs.n_pairs as f64;
        let at = format!("step {step}");
        let found = (report.pairs.loss_sum / n) as f32;
        check_close(found, *loss, TRAINING_LOSS_TOLERANCE, &at);
        let norm = run.grad_norms[step];
        check_close(report.grad_norm, norm, 1e-3 * norm + 1e-5, &at);
        let PairLogprobs { chosen, rejected } = report.pairs.reward_sums;
        let margin = ((chosen - rejected) / n) as f32;
        check_close(margin, run.margins[step] as f32, 1e-3, &at);
        assert_eq!(
            report.pairs.n_right as f64 / n,
            run.accuracies[step],
            "{at}"
        );
    }
    // What the run began with is still what it compares with.
    assert_eq!(trainer.reference_logprobs(&pairs).unwrap(), references);
}

/// Losses and the adapter after ten steps; with a state, those that follow it.
fn ten_steps(golden: &Golden, config: TrainConfig, pool: Pool, stops: bool) -> (Vec<f64>, Vec<u8>) {
    let model = golden.model(1.0);
    let begin = || {
        Trainer::new(
            model.base.clone(),
            model.adapter.clone(),
            config.clone(),
            pool.clone(),
        )
    };
    let mut trainer = begin();
    let pairs = golden.pairs();
    let mut losses = Vec::new();
    for step in 0..10 {
        if stops && step == 4 {
            let state = trainer.save_state().unwrap();
            trainer = begin();
            trainer.load_state(&state).unwrap();
        }
        // Whenever it is asked, the reference says the same.
        let batch: Vec<Pair> = (0..5).map(|i| pairs[(step * 5 + i) % 12].clone()).collect();
        let references = trainer.reference_logprobs(&batch).unwrap();
        losses.push(
            trainer
                .step_pairs(&batch, &references)
                .unwrap()
                .pairs
                .loss_sum,
        );
    }
    (losses, trainer.save_state().unwrap())
}

#[test]
fn threads_memory_and_a_stop_change_no_bit() {
    let golden = Golden::read();
    for precision in [Precision::Fp32, Precision::Bf16] {
        let config = |memory| TrainConfig {
            precision,
            memory,
            ..golden.run_config()
        };
        let all = engine::MemoryLevel::KeepAll;
        let expected = ten_steps(&golden, config(all), Pool::new(1), false);
        assert!((expected.0[0] / 5.0 - std::f64::consts::LN_2).abs() < 1e-12);
        assert_eq!(
            ten_steps(&golden, config(all), Pool::new(3), true),
            expected
        );
        for memory in [
            engine::MemoryLevel::DropGateUp,
            engine::MemoryLevel::LayerInputs,
        ] {
            assert_eq!(
                ten_steps(&golden, config(memory), Pool::new(2), false),
                expected
            );
        }
    }
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let golden = Golden::read();
    let model = golden.model(1.0);
    let (mut pairs, references) = (golden.pairs(), golden.references());
    let reason = |error: TrainError| match error {
        TrainError::BadInput(reason) => reason,
        error => panic!("{error}"),
    };
    let mut plain = model.trainer(TrainConfig::default());
    let refused = plain.step_pairs(&pairs, &references).unwrap_err();
    assert_eq!(reason(refused), "the training has no preference");
    let mut without = model.trainer(golden.config("simpo"));
    let refused = without.reference_logprobs(&pairs).unwrap_err();
    assert_eq!(reason(refused), "the training compares with no reference");
    let mut dpo = model.trainer(golden.config("sigmoid"));
    let refused = dpo.step_pairs(&pairs, &references[1..]).unwrap_err();
    assert_eq!(
        reason(refused),
        "each pair needs what the reference says of it"
    );
    let refused = dpo.step_pairs(&[], &[]).unwrap_err();
    assert_eq!(reason(refused), "the batch has no pair");
    pairs[2].rejected.mask.fill(false);
    let refused = dpo.step_pairs(&pairs, &references).unwrap_err();
    assert_eq!(reason(refused), "pair 2: the worse answer has no label");
    assert_eq!(dpo.step_count(), 0);
}
