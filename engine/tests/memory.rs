//! What a training takes of memory is what was planned, as the kernel counts it. One test, so that its process is measured and nothing else.
#![cfg(target_os = "linux")]

mod common;

use std::sync::Arc;

use common::{LLAMA, Tiny, example};
use engine::lora::{Adapter, AdapterShape, LoraConfig};
use engine::pool::Pool;
use engine::train::{RunShape, TrainConfig, Trainer, training_bytes};
use engine::weights::BaseModel;
use engine::{MemoryLevel, Precision};

const MIB: u64 = 1 << 20;
/// What the estimate does not see: threads' own scratch, pages that the allocator keeps, whole huge pages.
const SLACK: u64 = 8 * MIB;

const MEDIUM: Tiny = Tiny {
    hidden: 256,
    inner: 704,
    layers: 8,
    heads: 4,
    kv_heads: 2,
    head_dim: 64,
    vocab: 8192,
    ..LLAMA
};

/// Of /proc/self/status. Bytes.
fn status(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .unwrap();
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    kib * 1024
}

/// How far this process grew while a training ran, at its peak. Bytes.
fn grown(
    base: &Arc<BaseModel>,
    tiny: Tiny,
    config: &TrainConfig,
    lora: &LoraConfig,
    n: usize,
    pool: &Pool,
) -> u64 {
    // The peak from here on. Source: proc(5), `/proc/pid/clear_refs`.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = status("VmRSS:");
    let adapter = Adapter::init(base.config(), lora, 1).unwrap();
    let mut trainer = Trainer::new(base.clone(), adapter, config.clone(), pool.clone());
    let mut batch = example(tiny.vocab, n, 1);
    batch.mask = vec![true; n];
    for _ in 0..2 {
        trainer.step(&[batch.clone()]).unwrap();
    }
    status("VmHWM:").saturating_sub(before)
}

#[test]
fn a_training_takes_no_more_than_was_planned() {
    let pool = Pool::new(2);
    let levels = [
        MemoryLevel::LayerInputs,
        MemoryLevel::DropGateUp,
        MemoryLevel::KeepAll,
    ];
    let mut bad = Vec::new();
    for (name, tiny, r, n) in [
        ("tiny", LLAMA, 5, 500),
        ("medium", MEDIUM, 16, 500),
        ("medium, long", MEDIUM, 64, 2048),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let json = tiny.config_json().replace(
            "\"max_position_embeddings\":512",
            "\"max_position_embeddings\":4096",
        );
        tiny.write(dir.path());
        std::fs::write(dir.path().join("config.json"), json).unwrap();
        let base = Arc::new(BaseModel::load(dir.path(), &pool).unwrap());
        let lora = LoraConfig::all_linear(r, 16.0);
        let shape = AdapterShape::new(base.config(), &lora).unwrap();
        for precision in [Precision::Fp32, Precision::Bf16] {
            for memory in levels {
                let config = TrainConfig {
                    precision,
                    memory,
                    ..TrainConfig::default()
                };
                let run = RunShape {
                    precision,
                    longest: n,
                    keeps_first: false,
                };
                let told = training_bytes(base.config(), &shape, run, memory).total();
                let taken = grown(&base, tiny, &config, &lora, n, &pool);
                let line = format!(
                    "{name}, {precision:?}, {memory:?}: {:.1} MiB of {:.1}",
                    taken as f64 / MIB as f64,
                    told as f64 / MIB as f64
                );
                println!("{line}");
                // How near it comes cannot be told here: what earlier trainings gave back stays with the allocator.
                if taken > told + SLACK {
                    bad.push(line);
                }
            }
        }
    }
    assert!(bad.is_empty(), "{bad:#?}");
}
