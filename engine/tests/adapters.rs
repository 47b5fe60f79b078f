//! Adapters beyond plain LoRA: how they begin, that nothing but the run changes a bit of them, and that they are served
//! side by side.

mod common;

use std::sync::Arc;

use common::{LLAMA, Numbers, QWEN2, Tiny, example, with_values};
use engine::generate::{Batcher, GenerateRequest, Limits, Sampling};
use engine::lora::{Adapter, Bias, Init, LoraConfig};
use engine::pool::Pool;
use engine::train::{Packing, TrainConfig, Trainer};
use engine::weights::BaseModel;
use engine::{MemoryLevel, Precision};

fn plain() -> LoraConfig {
    LoraConfig::all_linear(5, 8.0)
}

fn pissa() -> LoraConfig {
    LoraConfig {
        init_lora_weights: Init::Pissa,
        ..plain()
    }
}

fn dropout() -> LoraConfig {
    LoraConfig {
        lora_dropout: 0.3,
        ..plain()
    }
}

/// Everything that can stand together.
fn whole() -> LoraConfig {
    LoraConfig {
        use_dora: true,
        bias: Bias::All,
        modules_to_save: vec!["lm_head".to_owned(), "embed_tokens".to_owned()],
        ..dropout()
    }
}

fn train_config() -> TrainConfig {
    TrainConfig {
        learning_rate: 1e-2,
        total_steps: 4,
        weight_decay: 0.1,
        loraplus_lr_ratio: Some(4.0),
        ..TrainConfig::default()
    }
}

fn trainer(base: &Arc<BaseModel>, lora: &LoraConfig, config: TrainConfig, pool: &Pool) -> Trainer {
    let adapter = Adapter::init_from(base, lora, 5, pool).unwrap();
    Trainer::new(base.clone(), adapter, config, pool.clone())
}

#[test]
fn every_fresh_adapter_is_the_base() {
    let pool = Pool::new(2);
    for tiny in [LLAMA, QWEN2] {
        let base = tiny.load(&pool);
        let tokens = example(tiny.vocab, 30, 1).tokens;
        let logits =
            |lora: &LoraConfig| trainer(&base, lora, TrainConfig::default(), &pool).logits(&tokens);
        let expected = logits(&plain()).unwrap();
        for lora in [pissa(), whole()] {
            let largest = expected.iter().fold(0f32, |m, x| m.max(x.abs()));
            let got = logits(&lora).unwrap();
            let off = got.iter().zip(&expected).map(|(a, b)| (a - b).abs());
            // 1e-5: PiSSA adds and takes away what W is mostly made of; DoRA multiplies by norm / norm.
            assert!(off.fold(0f32, f32::max) < 1e-5 * largest.max(1.0));
        }
    }
}

/// An adapter that is nowhere as it began.
fn trained(base: &BaseModel, lora: &LoraConfig, seed: u64, pool: &Pool) -> Adapter {
    let fresh = Adapter::init_from(base, lora, seed, pool).unwrap();
    with_values(&fresh, base, |name, i, x| {
        let seed = name
            .bytes()
            .fold(seed, |h, b| h.wrapping_mul(131).wrapping_add(b.into()));
        let mut noise = Numbers(seed.wrapping_add(i as u64 * 7919));
        noise.next();
        x * (1.0 + 0.3 * noise.next()) + 0.1 * noise.next()
    })
}

/// Adapter and state after four steps of three examples each.
fn run(
    tiny: Tiny,
    lora: &LoraConfig,
    n_threads: usize,
    resume: bool,
    config: &TrainConfig,
) -> (Vec<u8>, Vec<u8>) {
    let pool = Pool::new(n_threads);
    let base = tiny.load(&pool);
    let begin = || trainer(&base, lora, config.clone(), &pool);
    let mut trainer = begin();
    for step in 0..4 {
        if resume && step == 2 {
            let state = trainer.save_state().unwrap();
            trainer = begin();
            trainer.load_state(&state).unwrap();
        }
        let batch = [60, 31, 44].map(|len| example(tiny.vocab, len, step * 10 + len as u64));
        trainer.step(&batch).unwrap();
    }
    (
        trainer.adapter().unwrap().to_safetensors(),
        trainer.save_state().unwrap(),
    )
}

#[test]
fn threads_resumption_and_memory_change_no_bit() {
    for lora in [pissa(), dropout(), whole()] {
        let undisturbed = run(QWEN2, &lora, 2, false, &train_config());
        assert!(run(QWEN2, &lora, 1, false, &train_config()) == undisturbed);
        assert!(run(QWEN2, &lora, 3, true, &train_config()) == undisturbed);
        for memory in [MemoryLevel::DropGateUp, MemoryLevel::LayerInputs] {
            let config = TrainConfig {
                memory,
                ..train_config()
            };
            assert!(
                run(QWEN2, &lora, 2, false, &config) == undisturbed,
                "{memory:?}"
            );
        }
    }
}

/// The largest difference of two gradients of the same run, by the norm of the first.
fn distance(a: &[(String, Vec<f32>)], b: &[(String, Vec<f32>)]) -> f64 {
    let distance = |a: &[f32], b: &[f32]| {
        let off = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2));
        let norm = a.iter().map(|a| f64::from(*a).powi(2)).sum::<f64>();
        (off.sum::<f64>() / norm.max(1e-12)).sqrt()
    };
    let pairs = a.iter().zip(b);
    pairs.map(|(a, b)| distance(&a.1, &b.1)).fold(0.0, f64::max)
}

#[test]
fn an_example_is_dropped_from_alike_in_whatever_pass_it_is() {
    let pool = Pool::new(2);
    let base = LLAMA.load(&pool);
    let batch = [60, 31, 44].map(|len| example(LLAMA.vocab, len, len as u64));
    let gradients = |packing| {
        let config = TrainConfig {
            packing,
            ..train_config()
        };
        let mut trainer = trainer(&base, &dropout(), config, &pool);
        trainer.step(&batch).unwrap();
        trainer.gradients(&batch).unwrap()
    };
    let alone = gradients(Packing::None);
    // 1e-4: after a step, with sums in another order.
    assert!(distance(&alone, &gradients(Packing::BinPack)) < 1e-4);
    assert!(distance(&alone, &gradients(Packing::Greedy)) < 1e-4);
}

#[test]
fn dropout_draws_anew_in_every_step_and_by_the_seed() {
    let pool = Pool::new(2);
    let base = LLAMA.load(&pool);
    let batch = [example(LLAMA.vocab, 60, 1)];
    let gradients = |seed, n_steps| {
        let config = TrainConfig {
            seed,
            learning_rate: 0.0,
            ..train_config()
        };
        let mut trainer = trainer(&base, &dropout(), config, &pool);
        (0..n_steps).for_each(|_| {
            trainer.step(&batch).unwrap();
        });
        trainer.gradients(&batch).unwrap()
    };
    let first = gradients(1, 0);
    assert_eq!(first, gradients(1, 0));
    assert!(distance(&first, &gradients(1, 1)) > 0.1);
    assert!(distance(&first, &gradients(2, 0)) > 0.1);
}

#[test]
fn bf16_gradients_are_those_of_f32_but_for_rounding() {
    let pool = Pool::new(2);
    let base = QWEN2.load(&pool);
    let batch = [example(QWEN2.vocab, 60, 1), example(QWEN2.vocab, 40, 2)];
    for lora in [plain(), dropout(), whole()] {
        let gradients = |precision| {
            let config = TrainConfig {
                precision,
                ..train_config()
            };
            let adapter = trained(&base, &lora, 1, &pool);
            let mut trainer = Trainer::new(base.clone(), adapter, config, pool.clone());
            trainer.gradients(&batch).unwrap()
        };
        let off = distance(&gradients(Precision::Fp32), &gradients(Precision::Bf16));
        // Eight bits of precision through two blocks; an operation left out is off by 1.
        assert!(off > 1e-4 && off < 0.1, "{off}");
    }
}

#[test]
fn an_initial_matrix_is_never_trained() {
    let pool = Pool::new(2);
    let base = QWEN2.load(&pool);
    let mut trainer = trainer(&base, &pissa(), train_config(), &pool);
    let fresh = initial_of(&trainer.save_state().unwrap());
    assert_eq!(fresh.len(), 2 * 7 * 2);
    (0..3).for_each(|step| {
        trainer.step(&[example(101, 60, step)]).unwrap();
    });
    assert_eq!(initial_of(&trainer.save_state().unwrap()), fresh);
}

/// The bytes of the matrices that a PiSSA adapter began with.
fn initial_of(state: &[u8]) -> Vec<(String, Vec<u8>)> {
    let tensors = safetensors::SafeTensors::deserialize(state).unwrap();
    let initial = tensors.iter().filter(|(name, _)| name.contains("initial_"));
    let mut initial: Vec<_> = initial
        .map(|(name, tensor)| (name.to_owned(), tensor.data().to_vec()))
        .collect();
    initial.sort();
    initial
}

#[test]
fn adapters_with_their_own_heads_norms_and_biases_are_served_side_by_side() {
    let pool = Pool::new(2);
    let base = QWEN2.load(&pool);
    let adapter = |lora: &LoraConfig, seed| Some(Arc::new(trained(&base, lora, seed, &pool)));
    let adapters = [
        None,
        adapter(&whole(), 1),
        adapter(&plain(), 2),
        adapter(&whole(), 3),
    ];
    let generate = |adapters: &[Option<Arc<Adapter>>]| {
        let limits = Limits {
            max_sequences: 4,
            max_cached_tokens: 400,
        };
        let mut batcher = Batcher::new(base.clone(), pool.clone(), limits);
        let mut ids = Vec::new();
        for (i, adapter) in adapters.iter().enumerate() {
            let request = GenerateRequest {
                prompt: example(101, 7 + i, 3).tokens[..7].to_vec(),
                adapter: adapter.clone(),
                scope: "".into(),
                sampling: Sampling {
                    temperature: 0.0,
                    ..Sampling::default()
                },
                max_new_tokens: 12,
                stop_token_ids: vec![],
                top_logprobs: None,
                grammar: None,
            };
            ids.push(batcher.admit(request).unwrap());
        }
        let mut outputs = Vec::new();
        while !batcher.is_idle() {
            outputs.extend(batcher.step().unwrap().into_iter().map(Result::unwrap));
        }
        let tokens_of = |id| outputs.iter().filter(move |o| o.id == id).map(|o| o.token);
        ids.into_iter()
            .map(|id| tokens_of(id).collect())
            .collect::<Vec<Vec<u32>>>()
    };
    let together = generate(&adapters);
    for (i, adapter) in adapters.iter().enumerate() {
        assert_eq!(
            together[i],
            generate(std::slice::from_ref(adapter))[0],
            "adapter {i}"
        );
        assert!(
            together
                .iter()
                .filter(|tokens| *tokens == &together[i])
                .count()
                == 1
        );
    }
}

#[test]
fn an_adapter_that_was_made_ready_ahead_scores_to_the_bit_as_one_that_was_not() {
    let pool = Pool::new(2);
    let base = LLAMA.load(&pool);
    let tokens = example(LLAMA.vocab, 30, 1).tokens;
    for lora in [plain(), pissa(), whole()] {
        let score = |prepare: bool| {
            let adapter = trained(&base, &lora, 3, &pool);
            if prepare {
                adapter.prepare(Precision::Fp32).unwrap();
            }
            let limits = Limits {
                max_sequences: 1,
                max_cached_tokens: 64,
            };
            let mut batcher = Batcher::new(base.clone(), pool.clone(), limits);
            batcher.score(&tokens, Some(&adapter)).unwrap()
        };
        assert_eq!(score(true), score(false), "{lora:?}");
    }
}
