//! Training by preference, compared with TRL's trainers.

use std::sync::Arc;

use engine::Precision;
use engine::batch::Example;
use engine::lora::Adapter;
use engine::pool::Pool;
use engine::schedule::Schedule;
use engine::train::{
    Compared, Judged, Packing, Pair, PairLogprobs, Preference, PreferenceLoss, PreferenceReport,
    TrainConfig, TrainError, Trainer,
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
    desirable_weight: f32,
    undesirable_weight: f32,
    /// Whose gradient is there whole.
    kept: String,
    pairs: Vec<Answers>,
    /// log p of both answers of each pair by the adapter as it is.
    references: Vec<[f64; 2]>,
    /// Of the adapter times 1.25.
    losses: Vec<Loss>,
    run: Run,
    judged: Vec<Answer>,
    /// The mean log-ratio of mismatched answers.
    kto_z: f64,
    kto_run: Run,
}

#[derive(Deserialize)]
struct Answer {
    prompt: Vec<u32>,
    completion: Vec<u32>,
    label: bool,
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
    /// Of pairs.
    #[serde(default)]
    accuracies: Vec<f64>,
    #[serde(default)]
    margins: Vec<f64>,
}

/// What the engine's f32 may differ from float64 by.
const LOSS_TOLERANCE_F64: f32 = 1e-6;
/// The same of a gradient, relative to its norm.
const GRADIENT_TOLERANCE_F64: f64 = 1e-5;

const LOSSES: [(&str, PreferenceLoss); 16] = [
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
    ("aot", PreferenceLoss::Aot),
    ("aot_unpaired", PreferenceLoss::AotUnpaired),
    ("kto", PreferenceLoss::Kto),
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
        let pairs = self.pairs.iter();
        pairs
            .map(|pair| Pair {
                chosen: example(&pair.prompt, &pair.chosen),
                rejected: example(&pair.prompt, &pair.rejected),
            })
            .collect()
    }

    fn judged(&self) -> Vec<Judged> {
        let rows = self.judged.iter();
        rows.map(|row| Judged {
            answer: example(&row.prompt, &row.completion),
            is_desirable: row.label,
        })
        .collect()
    }

    /// What a loss is over.
    fn rows(&self, loss: PreferenceLoss) -> Compared {
        match loss {
            PreferenceLoss::Kto => Compared::Judged(self.judged()),
            _ => Compared::Pairs(self.pairs()),
        }
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
        let smoothed = matches!(name, "exo_pair" | "robust" | "aot" | "aot_unpaired");
        TrainConfig {
            preference: Some(Preference {
                loss,
                beta: self.beta,
                label_smoothing: if smoothed { self.label_smoothing } else { 0.0 },
                gamma: self.gamma,
                desirable_weight: self.desirable_weight,
                undesirable_weight: self.undesirable_weight,
                ..Preference::default()
            }),
            ..TrainConfig::default()
        }
    }

    fn run_config(&self, name: &str) -> TrainConfig {
        let run = match name {
            "kto" => &self.kto_run,
            _ => &self.run,
        };
        TrainConfig {
            learning_rate: run.learning_rate,
            total_steps: run.losses.len() as u64,
            warmup_steps: run.warmup_steps,
            schedule: Schedule::Linear,
            max_grad_norm: Some(run.max_grad_norm),
            ..self.config(name)
        }
    }
}

fn example(prompt: &[u32], answer: &[u32]) -> Example {
    Example {
        tokens: [prompt, answer].concat(),
        mask: [vec![false; prompt.len()], vec![true; answer.len()]].concat(),
    }
}

fn norm(values: impl Iterator<Item = f32>) -> f64 {
    let squares = values.map(|x| f64::from(x) * f64::from(x));
    squares.sum::<f64>().sqrt()
}

/// A trainer that began with the adapter as it is and has it times 1.25 now, and what it says the reference is.
fn moved(golden: &Golden, config: TrainConfig, rows: &Compared) -> (Trainer, Vec<f64>) {
    let state = golden.model(1.25).trainer(config.clone()).save_state();
    let mut trainer = golden.model(1.0).trainer(config.clone());
    trainer.load_state(&state.unwrap()).unwrap();
    let references = match config.keeps_first() {
        true => trainer.reference_logprobs(rows).unwrap(),
        false => Vec::new(),
    };
    (trainer, references)
}

#[test]
fn every_loss_and_its_gradient_match() {
    let golden = Golden::read();
    let kept = read_tensors(&fixture("preference").join("golden.safetensors"));
    assert_eq!(golden.losses.len(), LOSSES.len());
    for Loss {
        name,
        loss,
        grad_norm,
    } in &golden.losses
    {
        let config = golden.config(name);
        let rows = golden.rows(config.preference.unwrap().loss);
        let (mut trainer, references) = moved(&golden, config, &rows);
        let gradients = trainer.gradients_of_compared(&rows, &references).unwrap();
        let (_, gradient) = gradients.iter().find(|(n, _)| *n == golden.kept).unwrap();
        let expected = &kept[&format!("{name}.grad")];
        let off = norm(gradient.iter().zip(expected).map(|(a, b)| a - b));
        let all = norm(expected.iter().copied());
        assert!(off < GRADIENT_TOLERANCE_F64 * all, "{name}: {off} of {all}");

        let report = trainer.evaluate_compared(&rows, &references).unwrap();
        let found = (report.loss_sum / report.n_rows as f64) as f32;
        let scale = loss.abs().max(1.0);
        check_close(found, *loss, LOSS_TOLERANCE_F64 * scale, name);
        let report = trainer.step_compared(&rows, &references).unwrap();
        check_close(report.grad_norm, *grad_norm, 1e-5 * grad_norm, name);
    }
}

/// What sorts over a step, or compares with all of it, does so however many passes it takes.
#[test]
fn a_step_is_one_batch_whatever_its_passes() {
    let golden = Golden::read();
    for name in ["aot", "aot_unpaired", "kto"] {
        let expected = golden.losses.iter().find(|loss| loss.name == name).unwrap();
        let config = TrainConfig {
            packing: Packing::None,
            ..golden.config(name)
        };
        let rows = golden.rows(config.preference.unwrap().loss);
        let (mut trainer, references) = moved(&golden, config, &rows);
        let report = trainer.step_compared(&rows, &references).unwrap();
        let found = (report.rows.loss_sum / report.rows.n_rows as f64) as f32;
        check_close(found, expected.loss, LOSS_TOLERANCE_F64, name);
        let norm = expected.grad_norm;
        check_close(report.grad_norm, norm, 1e-5 * norm, name);
    }
}

#[test]
fn kto_compares_with_nothing_where_a_row_is_alone() {
    let golden = Golden::read();
    // The fixture's loss would be another one without it.
    assert!(golden.kto_z > 1.0);
    let alone = Compared::Judged(golden.judged()[..1].to_vec());
    let mut trainer = golden.model(1.0).trainer(golden.config("kto"));
    let references = trainer.reference_logprobs(&alone).unwrap();
    let report = trainer.evaluate_compared(&alone, &references).unwrap();
    let half = f64::from(golden.desirable_weight) / 2.0;
    assert!((report.loss_sum - half).abs() < 1e-12, "{report:?}");
    assert_eq!(report.n_right, 0);
}

#[test]
fn a_run_of_dpo_follows_trl() {
    let golden = Golden::read();
    let rows = golden.rows(PreferenceLoss::Sigmoid);
    let mut trainer = golden.model(1.0).trainer(golden.run_config("sigmoid"));
    let references = trainer.reference_logprobs(&rows).unwrap();
    for (found, expected) in references.iter().zip(golden.references.concat()) {
        assert!((found - expected).abs() < 1e-4, "{found} and {expected}");
    }
    let run = &golden.run;
    follow(&mut trainer, &rows, &references, run, |step, report| {
        let n = report.n_rows as f64;
        let PairLogprobs { chosen, rejected } = report.reward_sums;
        let margin = ((chosen - rejected) / n) as f32;
        let at = format!("step {step}");
        check_close(margin, run.margins[step] as f32, 1e-3, &at);
        assert_eq!(report.n_right as f64 / n, run.accuracies[step], "{at}");
    });
    // What the run began with is still what it compares with.
    assert_eq!(trainer.reference_logprobs(&rows).unwrap(), references);
}

#[test]
fn a_run_of_kto_follows_trl() {
    let golden = Golden::read();
    let judged = golden.judged();
    let rows = Compared::Judged(judged.clone());
    let mut trainer = golden.model(1.0).trainer(golden.run_config("kto"));
    let references = trainer.reference_logprobs(&rows).unwrap();
    let run = &golden.kto_run;
    follow(&mut trainer, &rows, &references, run, |step, report| {
        let first = step * run.batch_size % judged.len();
        let batch = &judged[first..first + run.batch_size];
        let n_good = batch.iter().filter(|row| row.is_desirable).count() as f64;
        let PairLogprobs { chosen, rejected } = report.reward_sums;
        let margin = chosen / n_good - rejected / (batch.len() as f64 - n_good);
        let at = format!("step {step}");
        check_close(margin as f32, run.margins[step] as f32, 1e-3, &at);
    });
}

/// Trains as TRL's trainer did, in the data's order.
fn follow(
    trainer: &mut Trainer,
    rows: &Compared,
    references: &[f64],
    run: &Run,
    check: impl Fn(usize, PreferenceReport),
) {
    let n_together = rows.n_together();
    for (step, loss) in run.losses.iter().enumerate() {
        let first = step * run.batch_size % rows.len();
        let places: Vec<usize> = (first..first + run.batch_size).collect();
        let references = &references[first * n_together..][..run.batch_size * n_together];
        let report = trainer
            .step_compared(&rows.at(&places), references)
            .unwrap();
        let at = format!("step {step}");
        let found = (report.rows.loss_sum / report.rows.n_rows as f64) as f32;
        check_close(found, *loss, TRAINING_LOSS_TOLERANCE, &at);
        let norm = run.grad_norms[step];
        check_close(report.grad_norm, norm, 1e-3 * norm + 1e-5, &at);
        check(step, report.rows);
    }
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
    let rows = golden.rows(config.preference.unwrap().loss);
    let mut losses = Vec::new();
    for step in 0..10 {
        if stops && step == 4 {
            let state = trainer.save_state().unwrap();
            trainer = begin();
            trainer.load_state(&state).unwrap();
        }
        // Whenever it is asked, the reference says the same.
        let places: Vec<usize> = (0..5).map(|i| (step * 5 + i) % 12).collect();
        let batch = rows.at(&places);
        let references = trainer.reference_logprobs(&batch).unwrap();
        let report = trainer.step_compared(&batch, &references).unwrap();
        losses.push(report.rows.loss_sum);
    }
    (losses, trainer.save_state().unwrap())
}

#[test]
fn threads_memory_and_a_stop_change_no_bit() {
    let golden = Golden::read();
    let ln_2 = std::f64::consts::LN_2;
    for (name, precision, first) in [
        ("sigmoid", Precision::Fp32, 5.0 * ln_2),
        ("sigmoid", Precision::Bf16, 5.0 * ln_2),
        ("aot", Precision::Bf16, 5.0 * ln_2),
        // Three good answers and two bad ones, each by half of its weight.
        ("kto", Precision::Bf16, 0.5 * (3.0 * 0.75 + 2.0 * 1.5)),
    ] {
        let config = |memory| TrainConfig {
            precision,
            memory,
            // Several passes a step.
            pass_tokens: Some(64),
            ..golden.run_config(name)
        };
        let all = engine::MemoryLevel::KeepAll;
        let expected = ten_steps(&golden, config(all), Pool::new(1), false);
        let found = expected.0[0];
        assert!((found - first).abs() < 1e-12, "{name}: {found}");
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
    let (mut pairs, judged) = (golden.pairs(), Compared::Judged(golden.judged()));
    let rows = Compared::Pairs(pairs.clone());
    let references = golden.references.concat();
    let reason = |error: TrainError| match error {
        TrainError::BadInput(reason) => reason,
        error => panic!("{error}"),
    };
    let mut plain = model.trainer(TrainConfig::default());
    let refused = plain.step_compared(&rows, &references).unwrap_err();
    assert_eq!(reason(refused), "the training has no preference");
    let mut without = model.trainer(golden.config("simpo"));
    let refused = without.reference_logprobs(&rows).unwrap_err();
    assert_eq!(reason(refused), "the training compares with no reference");
    let mut kto = model.trainer(golden.config("kto"));
    let refused = kto.step_compared(&rows, &references).unwrap_err();
    assert_eq!(reason(refused), "KTO takes judged answers");
    let mut dpo = model.trainer(golden.config("sigmoid"));
    let refused = dpo.step_compared(&judged, &references[12..]).unwrap_err();
    assert_eq!(reason(refused), "the loss takes pairs of answers");
    let refused = dpo.step_compared(&rows, &references[1..]).unwrap_err();
    let expected = "each answer needs what the reference says of it";
    assert_eq!(reason(refused), expected);
    let nothing = Compared::Pairs(Vec::new());
    let refused = dpo.step_compared(&nothing, &[]).unwrap_err();
    assert_eq!(reason(refused), "the batch has no row");
    pairs[2].rejected.mask.fill(false);
    let rows = Compared::Pairs(pairs);
    let refused = dpo.step_compared(&rows, &references).unwrap_err();
    assert_eq!(reason(refused), "pair 2: the worse answer has no label");
    assert_eq!(dpo.step_count(), 0);
}
