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

/// A shape, its name, the adapter's rank and the tokens of an example.
const SHAPES: [(&str, Tiny, usize, usize); 3] = [
    ("tiny", LLAMA, 5, 500),
    ("medium", MEDIUM, 16, 500),
    ("medium, long", MEDIUM, 64, 2048),
];
const PRECISIONS: [Precision; 2] = [Precision::Fp32, Precision::Bf16];
const LEVELS: [MemoryLevel; 3] = [
    MemoryLevel::LayerInputs,
    MemoryLevel::DropGateUp,
    MemoryLevel::KeepAll,
];

/// Tells a process which case it measures.
const CASE: &str = "LUTHIER_MEMORY_CASE";
/// How the line begins in which it says what it measured.
const SAYS: &str = "measured: ";

/// Each case in a process of its own: an allocator keeps what a training gave back, and the next one would seem to take less.
#[test]
fn a_training_takes_what_was_planned_and_not_much_less() {
    if let Ok(case) = std::env::var(CASE) {
        let (taken, told) = measure(case.parse().unwrap());
        println!("{SAYS}{taken} {told}");
        return;
    }
    let mut bad = Vec::new();
    for case in 0..SHAPES.len() * PRECISIONS.len() * LEVELS.len() {
        let (taken, told) = measured(case);
        let (shape, precision, level) = parts(case);
        let (name, _, _, n) = SHAPES[shape];
        let mib = |bytes: u64| bytes as f64 / MIB as f64;
        let (precision, level) = (PRECISIONS[precision], LEVELS[level]);
        let line = format!(
            "{name}, {precision:?}, {level:?}: {:.1} MiB of {:.1}",
            mib(taken),
            mib(told)
        );
        println!("{line}");
        let is_enough = taken <= told + SLACK;
        // A pass of fewer tokens than there is always room for takes less.
        let is_near = n < 1024 || told <= taken * 5 / 4 + SLACK;
        if !(is_enough && is_near) {
            bad.push(line);
        }
    }
    assert!(bad.is_empty(), "{bad:#?}");
}

/// Where its parts stand in [`SHAPES`], [`PRECISIONS`] and [`LEVELS`].
fn parts(case: usize) -> (usize, usize, usize) {
    let (rest, level) = (case / LEVELS.len(), case % LEVELS.len());
    (rest / PRECISIONS.len(), rest % PRECISIONS.len(), level)
}

/// What another process measures: taken and told. Bytes.
fn measured(case: usize) -> (u64, u64) {
    let test = "a_training_takes_what_was_planned_and_not_much_less";
    let done = std::process::Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env(CASE, case.to_string())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stdout);
    let numbers = said.lines().find_map(|line| Some(line.split_once(SAYS)?.1));
    let numbers = numbers.unwrap_or_else(|| panic!("case {case}: {done:?}"));
    let (taken, told) = numbers.split_once(' ').unwrap();
    (taken.parse().unwrap(), told.parse().unwrap())
}

/// What a training takes in this process, and what was told before. Bytes.
fn measure(case: usize) -> (u64, u64) {
    let (shape, precision, level) = parts(case);
    let (_, tiny, r, n) = SHAPES[shape];
    let (precision, memory) = (PRECISIONS[precision], LEVELS[level]);
    let pool = Pool::new(2);
    let dir = tempfile::tempdir().unwrap();
    tiny.write(dir.path());
    let short = "\"max_position_embeddings\":512";
    let json = tiny.config_json();
    assert!(json.contains(short), "{json}");
    let json = json.replace(short, "\"max_position_embeddings\":4096");
    std::fs::write(dir.path().join("config.json"), json).unwrap();
    let base = Arc::new(BaseModel::load(dir.path(), &pool).unwrap());
    let lora = LoraConfig::all_linear(r, 16.0);
    let adapter = AdapterShape::new(base.config(), &lora).unwrap();
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
    let told = training_bytes(base.config(), &adapter, run, memory).total();
    (grown(&base, tiny, &config, &lora, n, &pool), told)
}
