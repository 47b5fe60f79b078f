//! What precision, memory level, threads and instruction set may change of a training run, and what they may not.

mod common;

use std::process::Command;
use std::sync::Arc;

use common::{LLAMA, QWEN2, Tiny, adapter, example};
use engine::lora::LoraConfig;
use engine::pool::Pool;
use engine::train::{Packing, TrainConfig, Trainer};
use engine::weights::BaseModel;
use engine::{Isa, MemoryLevel, Precision};

const PRECISIONS: [Precision; 2] = [Precision::Fp32, Precision::Bf16];
const LEVELS: [MemoryLevel; 3] = [
    MemoryLevel::KeepAll,
    MemoryLevel::DropGateUp,
    MemoryLevel::LayerInputs,
];

fn config(precision: Precision) -> TrainConfig {
    TrainConfig {
        learning_rate: 5e-3,
        total_steps: 4,
        precision,
        ..TrainConfig::default()
    }
}

fn trainer(tiny: Tiny, config: TrainConfig, n_threads: usize) -> Trainer {
    let pool = Pool::new(n_threads);
    let base = tiny.load(&pool);
    let adapter = adapter(&base, &LoraConfig::all_linear(5, 8.0), 3);
    Trainer::new(base, adapter, config, pool)
}

/// Losses of four steps, and the state after them.
fn run(tiny: Tiny, config: TrainConfig, n_threads: usize) -> (Vec<f32>, Vec<u8>) {
    let mut trainer = trainer(tiny, config, n_threads);
    let losses = (0..4).map(|step| train(&mut trainer, tiny, step)).collect();
    (losses, trainer.save_state().unwrap())
}

/// One step over documents of odd and even lengths, some longer than a block of queries.
fn train(trainer: &mut Trainer, tiny: Tiny, step: u64) -> f32 {
    let batch = [90, 33, 2, 147].map(|n| example(tiny.vocab, n, step * 10 + n as u64));
    trainer.step(&batch).unwrap().loss
}

#[test]
fn what_is_kept_for_the_backward_changes_no_bit() {
    for tiny in [LLAMA, QWEN2] {
        for precision in PRECISIONS {
            let [all, dropped, inputs] = LEVELS.map(|memory| {
                run(
                    tiny,
                    TrainConfig {
                        memory,
                        ..config(precision)
                    },
                    2,
                )
            });
            assert!(
                all == dropped && all == inputs,
                "{precision:?} of {}",
                tiny.architecture
            );
        }
    }
}

#[test]
fn threads_change_no_bit() {
    for precision in PRECISIONS {
        let [one, two, four] = [1, 2, 4].map(|n| run(LLAMA, config(precision), n));
        assert!(one == two && one == four, "{precision:?}");
    }
}

#[test]
fn a_resumed_run_equals_one_that_never_stopped() {
    for precision in PRECISIONS {
        let (_, whole) = run(LLAMA, config(precision), 2);
        let mut first = trainer(LLAMA, config(precision), 2);
        (0..2).for_each(|step| {
            train(&mut first, LLAMA, step);
        });
        let mut second = trainer(
            LLAMA,
            TrainConfig {
                memory: MemoryLevel::LayerInputs,
                ..config(precision)
            },
            1,
        );
        second.load_state(&first.save_state().unwrap()).unwrap();
        (2..4).for_each(|step| {
            train(&mut second, LLAMA, step);
        });
        assert!(second.save_state().unwrap() == whole, "{precision:?}");
    }
}

#[test]
fn a_state_of_another_precision_is_refused_by_name() {
    let state = trainer(LLAMA, config(Precision::Bf16), 1)
        .save_state()
        .unwrap();
    let error = trainer(LLAMA, config(Precision::Fp32), 1)
        .load_state(&state)
        .unwrap_err();
    assert!(error.to_string().contains("arithmetic"), "{error}");
}

#[test]
fn bf16_follows_f32_as_closely_as_its_eight_bits_allow() {
    for tiny in [LLAMA, QWEN2] {
        let batch = [example(tiny.vocab, 90, 1), example(tiny.vocab, 33, 2)];
        let [exact, rounded] = PRECISIONS.map(|precision| {
            trainer(tiny, config(precision), 2)
                .gradients(&batch)
                .unwrap()
        });
        for ((name, exact), (_, rounded)) in exact.iter().zip(&rounded) {
            let norm = |values: &mut dyn Iterator<Item = f32>| {
                values.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt()
            };
            let off = norm(&mut exact.iter().zip(rounded).map(|(a, b)| a - b))
                / norm(&mut exact.iter().copied());
            // 2^-9 for each rounding, some dozen of which lie on the way to a gradient.
            assert!(
                off < 0.03,
                "{tiny:?}, {name}: off by {off}",
                tiny = tiny.architecture
            );
        }
        let [exact, rounded] = PRECISIONS.map(|precision| run(tiny, config(precision), 2).0);
        for (exact, rounded) in exact.iter().zip(&rounded) {
            assert!((exact - rounded).abs() < 2e-2 * exact, "{exact} {rounded}");
        }
        assert_ne!(exact, rounded, "bf16 must be computed as such");
    }
}

#[test]
fn packing_changes_the_passes_and_not_the_step() {
    let losses = [Packing::None, Packing::Greedy, Packing::BinPack].map(|packing| {
        let config = TrainConfig {
            packing,
            ..config(Precision::Fp32)
        };
        run(LLAMA, config, 2).0
    });
    for (none, (greedy, bins)) in losses[0].iter().zip(losses[1].iter().zip(&losses[2])) {
        // 1e-5: sums over 130 labels in another order.
        assert!((none - greedy).abs() < 1e-5 && (none - bins).abs() < 1e-5);
    }
}

/// Names the level that the child process of the next test is kept to.
const LEVEL: &str = "ENGINE_TEST_LEVEL";

/// Run by the test below, once for each level; alone it computes at the machine's own.
#[test]
fn child_that_trains_at_one_level() {
    let level = std::env::var(LEVEL).unwrap_or_default();
    let named = [Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16].into_iter();
    if let Some(isa) = named.clone().find(|isa| isa.name() == level) {
        assert!(isa.limit(), "the level is set before any use");
    }
    let [exact, rounded] = PRECISIONS.map(|precision| run(LLAMA, config(precision), 2));
    println!("{}", Isa::detect().name());
    for (losses, state) in [exact, rounded] {
        // The header names the level; the tensors behind it are what is compared.
        let header = 8 + u64::from_le_bytes(state[..8].try_into().unwrap()) as usize;
        println!("{losses:?} {:?}", &state[header..]);
    }
}

/// This very program, under the emulator that runs it, if one does.
fn this_test() -> Command {
    let program = std::env::current_exe().unwrap();
    let runner = std::env::var("ENGINE_TEST_RUNNER").unwrap_or_default();
    let mut words = runner.split_whitespace();
    match words.next() {
        None => Command::new(program),
        Some(emulator) => {
            let mut command = Command::new(emulator);
            command.args(words).arg(program);
            command
        }
    }
}

#[test]
fn narrower_instruction_sets_train_the_same() {
    let at = |level: &str| {
        let output = this_test()
            .args(["child_that_trains_at_one_level", "--exact", "--nocapture"])
            .args(["--test-threads", "1"])
            .env(LEVEL, level)
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{level}: {text}");
        // The test harness begins the line on which the child names its level.
        let lines: Vec<&str> = text.lines().collect();
        let first = lines.iter().position(|line| line.starts_with('['));
        let first = first.expect("the child prints its losses");
        [first - 1, first, first + 1].map(|i| lines[i].to_owned())
    };
    let native = at("");
    let levels: Vec<_> = ["portable", "avx2", "avx512"].into_iter().map(at).collect();
    for [name, exact, rounded] in &levels {
        assert!(*exact == native[1], "f32 at {name}");
        assert!(*rounded == levels[0][2], "bf16 at {name}");
    }
    // Pairs one by one where this machine multiplies tiles of them: its own order of sums, the same f32.
    let [name, exact, _] = at("avx512bf16");
    assert!(exact == native[1], "f32 at {name}");
}

/// One model of each family with something that the decoder does in a way of its own.
const FAMILIES: [&str; 10] = [
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

#[test]
fn every_family_trains_at_every_level_and_in_bf16() {
    for name in FAMILIES {
        let pool = Pool::new(2);
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        let base = Arc::new(BaseModel::load(&folder.join(name), &pool).unwrap());
        // 128 tokens are the longest these models take: two blocks of queries.
        let vocab = base.config().vocab_size;
        let batch = [128, 33, 2].map(|n| example(vocab, n, n as u64));
        let run = |precision, memory| {
            let adapter = adapter(&base, &LoraConfig::all_linear(5, 8.0), 3);
            let config = TrainConfig {
                memory,
                ..config(precision)
            };
            let mut trainer = Trainer::new(base.clone(), adapter, config, pool.clone());
            let steps = (0..2).map(|_| trainer.step(&batch).unwrap());
            let losses: Vec<_> = steps.map(|step| (step.loss, step.grad_norm)).collect();
            (losses, trainer.save_state().unwrap())
        };
        let [exact, rounded] = PRECISIONS.map(|precision| {
            let [all, dropped, inputs] = LEVELS.map(|memory| run(precision, memory));
            assert!(all == dropped && all == inputs, "{precision:?} of {name}");
            all.0
        });
        for ((loss, norm), (rounded_loss, rounded_norm)) in exact.iter().zip(&rounded) {
            assert!(
                (loss - rounded_loss).abs() < 2e-2 * loss,
                "{name}: {loss} {rounded_loss}"
            );
            assert!(
                (norm - rounded_norm).abs() < 5e-2 * norm,
                "{name}: {norm} {rounded_norm}"
            );
        }
        assert_ne!(exact, rounded, "bf16 must be computed as such");
    }
}
