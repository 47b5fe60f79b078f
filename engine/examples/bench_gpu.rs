//! Training steps on a GPU, for `bench/gpu/run`: prints one JSON line for each workload. Weights are random, in the shape of the
//! given `config.json`.
//!
//! Usage: bench_gpu CONFIG.json WORKLOAD [STEPS [MEMORY_LEVEL]]
//!   packed: 8 documents of 2048 tokens, every token a label; long: 2 of 8192; alpaca: 64 documents of about 200 tokens, a third of each
//!   without labels

#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

use engine::batch::Example;
use engine::config::ModelConfig;
use engine::cuda::{Base, Gpu, RankRoom};
use engine::lora::{Adapter, LoraConfig};
use engine::schedule::Schedule;
use engine::train::{TrainConfig, Trainer};
use engine::{MemoryLevel, Precision};
use serde_json::json;

const RANK: usize = 16;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [config, workload, ..] = &args[..] else {
        return Err("bench_gpu CONFIG.json WORKLOAD [STEPS [MEMORY_LEVEL]]".into());
    };
    let n_steps: usize = args.get(2).map_or(Ok(8), |n| n.parse())?;
    let memory = match args.get(3).map(String::as_str) {
        None | Some("keep-all") => MemoryLevel::KeepAll,
        Some("drop-gate-up") => MemoryLevel::DropGateUp,
        Some("layer-inputs") => MemoryLevel::LayerInputs,
        Some(other) => return Err(format!("no memory level {other}").into()),
    };
    let model = ModelConfig::from_json(&std::fs::read_to_string(config)?)?;
    let gpu = Gpu::open(0)?;
    let (free_before, total) = gpu.memory()?;
    let began = Instant::now();
    let base = Arc::new(Base::random(&gpu, model.clone(), RankRoom::of_rank(RANK))?);
    let load_s = began.elapsed().as_secs_f64();
    let adapter = Adapter::init(&model, &LoraConfig::all_linear(RANK, 32.0), 1)?;
    let train = TrainConfig {
        learning_rate: 1e-4,
        schedule: Schedule::Constant,
        precision: Precision::Bf16,
        memory,
        ..TrainConfig::default()
    };
    let mut trainer = Trainer::on_gpu(base, adapter, train)?;
    let batch = batch(workload, model.vocab_size)?;
    let n_tokens: usize = batch.iter().map(|example| example.tokens.len()).sum();
    let mut losses = Vec::new();
    for _ in 0..3 {
        losses.push(trainer.step(&batch)?.loss);
    }
    let mut seconds = Vec::new();
    for _ in 0..n_steps {
        let began = Instant::now();
        losses.push(trainer.step(&batch)?.loss);
        gpu.synchronize()?;
        seconds.push(began.elapsed().as_secs_f64());
    }
    let (free_after, _) = gpu.memory()?;
    let profile = match std::env::var_os("BENCH_PROFILE") {
        Some(_) => profile(&gpu, &mut trainer, &batch)?,
        None => json!(null),
    };
    seconds.sort_by(f64::total_cmp);
    let median = seconds[seconds.len() / 2];
    println!(
        "{}",
        json!({
            "engine": "luthier", "card": gpu.name(), "config": config, "workload": workload, "memory": format!("{memory:?}"),
            "tokens": n_tokens, "seconds": median, "fastest": seconds[0], "slowest": seconds[seconds.len() - 1],
            "tokens_per_s": n_tokens as f64 / median, "memory_gib": (free_before - free_after) as f64 / (1u64 << 30) as f64,
            "total_gib": total as f64 / (1u64 << 30) as f64,
            "load_s": load_s, "losses": losses, "profile": profile,
        })
    );
    Ok(())
}

/// Milliseconds of one step by kernel, each waited for: what the parts take, not how they overlap.
fn profile(
    gpu: &Gpu,
    trainer: &mut Trainer,
    batch: &[Example],
) -> Result<serde_json::Value, Box<dyn Error>> {
    gpu.begin_profile();
    trainer.step(batch)?;
    let mut rows = gpu.end_profile();
    rows.sort_by(|a, b| b.1.total_cmp(&a.1));
    let rows = rows
        .iter()
        .map(|(name, ms, n)| json!([name, (ms * 1e3).round() / 1e3, n]));
    Ok(rows.collect())
}

fn batch(workload: &str, vocab: usize) -> Result<Vec<Example>, String> {
    let mut numbers = Numbers(1);
    let lengths: Vec<usize> = match workload {
        "packed" => vec![2048; 8],
        "long" => vec![8192; 2],
        "alpaca" => (0..64).map(|_| numbers.length()).collect(),
        other => return Err(format!("no workload {other}")),
    };
    let prompt = |len: usize| if workload == "alpaca" { len / 3 } else { 0 };
    let examples = lengths.iter().map(|&len| Example {
        tokens: (0..len).map(|_| numbers.next(vocab) as u32).collect(),
        mask: (0..len).map(|i| i >= prompt(len)).collect(),
    });
    Ok(examples.collect())
}

/// Numbers that look random and never change.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self, below: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % below
    }

    /// Of a document: about 200 in the mean, few of them long.
    fn length(&mut self) -> usize {
        let unit = (self.next(1 << 20) as f64 + 0.5) / f64::from(1 << 20);
        (150.0 * (-2.0 * unit.ln()).sqrt()).clamp(16.0, 1024.0) as usize
    }
}
