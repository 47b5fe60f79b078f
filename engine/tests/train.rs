//! Training: gradients against finite differences, resumption, and independence of threads and of the cut of a batch.

mod common;

use common::{LLAMA, QWEN2, Tiny, adapter, example, tensors_of, with_values};
use engine::lora::{Adapter, LoraConfig, TargetModules};
use engine::pool::Pool;
use engine::schedule::Schedule;
use engine::train::{TrainConfig, TrainError, Trainer};

fn lora(targets: &[&str]) -> LoraConfig {
    LoraConfig {
        target_modules: TargetModules::List(targets.iter().map(|&t| t.to_owned()).collect()),
        ..all()
    }
}

fn all() -> LoraConfig {
    LoraConfig::all_linear(5, 8.0)
}

/// Plain gradient descent in disguise: with β = 0 and a huge ε, AdamW moves by −lr·g/ε.
fn gradient_of(
    tiny: Tiny,
    adapter: &Adapter,
    batch: &[engine::batch::Example],
    pool: &Pool,
) -> Vec<(String, Vec<f32>)> {
    let scale = 1e6f32;
    let config = TrainConfig {
        learning_rate: scale,
        schedule: Schedule::Constant,
        betas: (0.0, 0.0),
        eps: scale,
        max_grad_norm: None,
        ..TrainConfig::default()
    };
    let mut trainer = Trainer::new(tiny.load(pool), adapter.clone(), config, pool.clone());
    trainer.step(batch).unwrap();
    let (before, after) = (tensors_of(adapter), tensors_of(&trainer.adapter().unwrap()));
    let difference = |b: &[f32], a: &[f32]| b.iter().zip(a).map(|(b, a)| b - a).collect();
    before
        .into_iter()
        .zip(after)
        .map(|((name, b), (_, a))| (name, difference(&b, &a)))
        .collect()
}

fn loss_of(tiny: Tiny, adapter: &Adapter, batch: &[engine::batch::Example], pool: &Pool) -> f64 {
    let mut trainer = Trainer::new(
        tiny.load(pool),
        adapter.clone(),
        TrainConfig::default(),
        pool.clone(),
    );
    let report = trainer.evaluate(batch).unwrap();
    report.loss_sum / report.n_label_tokens as f64
}

/// Along the gradient of each tensor the loss must change as the gradient says.
fn check_gradients(tiny: Tiny, lora: &LoraConfig) {
    let pool = Pool::new(2);
    let base = tiny.load(&pool);
    let adapter = adapter(&base, lora, 11);
    let batch = [
        example(tiny.vocab, 90, 1),
        example(tiny.vocab, 33, 2),
        example(tiny.vocab, 2, 3),
    ];
    for (name, gradient) in gradient_of(tiny, &adapter, &batch, &pool) {
        let norm = gradient
            .iter()
            .map(|g| f64::from(*g).powi(2))
            .sum::<f64>()
            .sqrt();
        assert!(norm > 1e-5, "{name} has no gradient");
        let step = 2e-2;
        let moved = |sign: f64| {
            let along = with_values(&adapter, &base, |n, i, x| {
                if n == name {
                    (f64::from(x) + sign * step * f64::from(gradient[i]) / norm) as f32
                } else {
                    x
                }
            });
            loss_of(tiny, &along, &batch, &pool)
        };
        let numeric = (moved(1.0) - moved(-1.0)) / (2.0 * step);
        // 5e-3: the third-order term at this step, and f32 noise of 1e-7 in the loss over 4e-2.
        assert!(
            (numeric / norm - 1.0).abs() < 5e-3,
            "{name}: numeric {numeric}, analytic {norm}"
        );
    }
}

#[test]
fn gradients_of_a_tied_llama_are_the_slopes_of_its_loss() {
    check_gradients(LLAMA, &all());
}

#[test]
fn gradients_of_an_untied_qwen2_are_the_slopes_of_its_loss() {
    check_gradients(QWEN2, &all());
}

#[test]
fn gradients_stop_at_the_lowest_adapter_without_losing_any() {
    let everything = [
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    ];
    for target in everything {
        check_gradients(LLAMA, &lora(&[target]));
    }
    check_gradients(QWEN2, &lora(&["v_proj", "up_proj"]));
}

#[test]
fn a_batch_weighs_tokens_not_examples_and_not_passes() {
    let pool = Pool::new(2);
    let base = LLAMA.load(&pool);
    let adapter = adapter(&base, &all(), 1);
    // Three of 450 rows do not fit one pass of 1024.
    let batch: Vec<_> = (0..3)
        .map(|i| example(LLAMA.vocab, 450 - i * 100, i as u64))
        .collect();
    let whole = gradient_of(LLAMA, &adapter, &batch, &pool);
    let n_labels: Vec<f64> = batch.iter().map(|e| e.n_labels() as f64).collect();
    let single: Vec<_> = batch
        .iter()
        .map(|e| gradient_of(LLAMA, &adapter, std::slice::from_ref(e), &pool))
        .collect();
    for (t, (name, gradient)) in whole.iter().enumerate() {
        let (mut off, mut norm) = (0.0, 0.0);
        for (i, g) in gradient.iter().enumerate() {
            let total: f64 = single
                .iter()
                .zip(&n_labels)
                .map(|(s, n)| f64::from(s[t].1[i]) * n)
                .sum();
            let expected = total / n_labels.iter().sum::<f64>();
            off += (f64::from(*g) - expected).powi(2);
            norm += expected.powi(2);
        }
        // 2e-4: the gradients are read from differences of f32 values of about 0.2.
        assert!(
            off.sqrt() < 2e-4 * norm.sqrt() + 2e-7,
            "{name}: {} of {}",
            off.sqrt(),
            norm.sqrt()
        );
    }
}

fn run(n_threads: usize, n_steps: u64, interrupt_at: &[u64]) -> (Vec<f32>, Vec<u8>, Vec<u8>) {
    let pool = Pool::new(n_threads);
    let base = QWEN2.load(&pool);
    let config = TrainConfig {
        learning_rate: 1e-2,
        total_steps: 10,
        warmup_steps: 2,
        ..TrainConfig::default()
    };
    let adapter = Adapter::init(base.config(), &all(), 5).unwrap();
    let mut trainer = Trainer::new(base.clone(), adapter, config.clone(), pool.clone());
    let mut losses = Vec::new();
    for step in 0..n_steps {
        if interrupt_at.contains(&step) {
            let state = trainer.save_state().unwrap();
            let other = Adapter::init(base.config(), &all(), 999).unwrap();
            trainer = Trainer::new(base.clone(), other, config.clone(), pool.clone());
            trainer.load_state(&state).unwrap();
            assert_eq!(trainer.step_count(), step);
        }
        let batch = [example(101, 60, step), example(101, 30, 100 + step)];
        losses.push(trainer.step(&batch).unwrap().loss);
    }
    (
        losses,
        trainer.adapter().unwrap().to_safetensors(),
        trainer.save_state().unwrap(),
    )
}

#[test]
fn a_resumed_run_equals_one_that_never_stopped_bit_for_bit() {
    let undisturbed = run(2, 8, &[]);
    for interrupt_at in [&[0u64][..], &[1], &[4], &[2, 3, 7]] {
        assert!(
            run(2, 8, interrupt_at) == undisturbed,
            "stopped at {interrupt_at:?}"
        );
    }
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let one = run(1, 4, &[]);
    assert!(run(2, 4, &[]) == one);
    assert!(run(3, 4, &[]) == one);
}

#[test]
fn training_learns_and_reports_what_it_did() {
    let pool = Pool::new(2);
    let base = LLAMA.load(&pool);
    let config = TrainConfig {
        learning_rate: 2e-2,
        total_steps: 40,
        ..TrainConfig::default()
    };
    let adapter = Adapter::init(base.config(), &LoraConfig::all_linear(16, 32.0), 5).unwrap();
    let mut trainer = Trainer::new(base, adapter, config, pool);
    let batch = [example(101, 30, 1), example(101, 20, 2)];
    let before = trainer.evaluate(&batch).unwrap();
    let first = trainer.step(&batch).unwrap();
    assert!((before.loss_sum / before.n_label_tokens as f64 - f64::from(first.loss)).abs() < 1e-6);
    assert_eq!(
        (first.step, first.n_tokens, first.learning_rate),
        (1, 50, 2e-2)
    );
    assert_eq!(
        (first.n_label_tokens, first.n_correct),
        (before.n_label_tokens, before.n_correct)
    );
    for _ in 1..40 {
        trainer.step(&batch).unwrap();
    }
    let after = trainer.evaluate(&batch).unwrap();
    assert!(
        after.loss_sum < 0.1 * before.loss_sum,
        "{before:?} to {after:?}"
    );
    assert!(after.n_correct as f64 > 0.9 * after.n_label_tokens as f64);
    let logprobs = trainer.label_logprobs(&batch[0]).unwrap();
    assert_eq!(logprobs.len(), batch[0].n_labels());
}

#[test]
fn bad_input_is_refused_and_changes_nothing() {
    let pool = Pool::new(1);
    let base = LLAMA.load(&pool);
    let adapter = Adapter::init(base.config(), &all(), 5).unwrap();
    let mut trainer = Trainer::new(base, adapter, TrainConfig::default(), pool);
    let before = trainer.save_state().unwrap();
    let good = example(101, 20, 1);
    let mut unknown_token = good.clone();
    unknown_token.tokens[3] = 101;
    let mut short_mask = good.clone();
    short_mask.mask.pop();
    let mut unlabelled = good.clone();
    unlabelled.mask.fill(false);
    let cases = [
        (
            vec![good.clone(), unknown_token],
            "example 1: token 101 is not in the vocabulary of 101",
        ),
        (vec![short_mask], "example 0: 20 tokens but a mask of 19"),
        (vec![unlabelled], "the batch has no label"),
        (vec![], "the batch has no label"),
        (
            vec![example(101, 513, 1)],
            "example 0: 513 tokens exceed the context of 512",
        ),
    ];
    for (batch, expected) in cases {
        let error = trainer.step(&batch).unwrap_err();
        assert!(
            matches!(&error, TrainError::BadInput(what) if what == expected),
            "{error}"
        );
    }
    assert!(trainer.save_state().unwrap() == before);
}

#[test]
fn a_state_of_another_run_is_refused() {
    let pool = Pool::new(1);
    let base = LLAMA.load(&pool);
    let adapter = Adapter::init(base.config(), &all(), 5).unwrap();
    let other = TrainConfig {
        learning_rate: 0.5,
        ..TrainConfig::default()
    };
    let state = Trainer::new(base.clone(), adapter.clone(), other, pool.clone())
        .save_state()
        .unwrap();
    let mut trainer = Trainer::new(base, adapter, TrainConfig::default(), pool);
    assert!(
        trainer
            .load_state(&state)
            .unwrap_err()
            .to_string()
            .contains("config_hash")
    );
    assert!(
        trainer
            .load_state(&state[..100])
            .unwrap_err()
            .to_string()
            .contains("cannot be read")
    );
    let own = trainer.save_state().unwrap();
    trainer.load_state(&own).unwrap();
}
