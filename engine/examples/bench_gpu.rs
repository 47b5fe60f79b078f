//! Training steps on a GPU, for `bench/gpu/run`: prints one JSON line for each workload. Weights are random, in the shape of the
//! given `config.json`.
//!
//! Usage: bench_gpu CONFIG.json WORKLOAD [KEY=VALUE …]
//!   WORKLOAD   packed: 8 documents of 2048 tokens, every token a label; packed2: 2 of them; long: 2 of 8192; or a file with a line of
//!              document lengths for each step, a third of each without labels
//!   steps=8    timed, after three to warm up
//!   memory=keep-all | drop-gate-up | layer-inputs
//!   gate-up=N  layers that keep gate and up although the level drops them
//!   streams=gpu | host
//!   base=bf16 | nf4 | int8 | fp8
//!   pass=N     the most tokens that share a pass
//!   profile=1  also what the kernels of one step take, each waited for

#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

use engine::batch::Example;
use engine::config::ModelConfig;
use engine::cuda::{Base, Gpu, MemoryPlan, RankRoom, Streams};
use engine::lora::{Adapter, LoraConfig};
use engine::quant::Kind;
use engine::schedule::Schedule;
use engine::train::{TrainConfig, Trainer};
use engine::weights::BaseWeights;
use engine::{MemoryLevel, Precision};
use serde_json::json;

const RANK: usize = 16;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [config, workload, options @ ..] = &args[..] else {
        return Err("bench_gpu CONFIG.json WORKLOAD [KEY=VALUE …]".into());
    };
    let option = |key: &str| {
        let named = options.iter().filter_map(|option| option.split_once('='));
        named
            .filter(|(name, _)| *name == key)
            .map(|(_, value)| value)
            .next_back()
    };
    let n_steps: usize = option("steps").map_or(Ok(8), str::parse)?;
    let level = match option("memory").unwrap_or("keep-all") {
        "keep-all" => MemoryLevel::KeepAll,
        "drop-gate-up" => MemoryLevel::DropGateUp,
        "layer-inputs" => MemoryLevel::LayerInputs,
        other => return Err(format!("no memory level {other}").into()),
    };
    let weights = match option("base").unwrap_or("bf16") {
        "bf16" => BaseWeights::Bf16,
        "nf4" => BaseWeights::Quantized(Kind::Nf4DoubleQuant),
        "int8" => BaseWeights::Quantized(Kind::Int8),
        "fp8" => BaseWeights::Quantized(Kind::Fp8),
        other => return Err(format!("no base {other}").into()),
    };
    let pass_tokens = option("pass").map(str::parse).transpose()?;
    let model = ModelConfig::from_json(&std::fs::read_to_string(config)?)?;
    let gpu = Gpu::open(0)?;
    let (free_before, total) = gpu.memory()?;
    let began = Instant::now();
    let room = RankRoom::of_rank(RANK);
    let base = Arc::new(Base::random(&gpu, model.clone(), weights, room)?);
    let load_s = began.elapsed().as_secs_f64();
    let adapter = Adapter::init(&model, &LoraConfig::all_linear(RANK, 32.0), 1)?;
    let train = TrainConfig {
        learning_rate: 1e-4,
        schedule: Schedule::Constant,
        precision: Precision::Bf16,
        pass_tokens,
        ..TrainConfig::default()
    };
    let memory = MemoryPlan {
        n_gate_up: option("gate-up").map_or(Ok(0), str::parse)?,
        streams: match option("streams").unwrap_or("gpu") {
            "gpu" => Streams::OnGpu,
            "host" => Streams::OnHost,
            other => return Err(format!("no place for streams {other}").into()),
        },
        ..MemoryPlan::from(level)
    };
    let mut trainer = Trainer::on_gpu(&gpu, base, adapter, train, memory)?;
    let batches = batches(workload, model.vocab_size, 3 + n_steps)?;
    let (mut losses, mut seconds, mut tokens) = (Vec::new(), Vec::new(), 0);
    for (i, batch) in batches.iter().enumerate() {
        let began = Instant::now();
        losses.push(trainer.step(batch)?.loss);
        gpu.synchronize()?;
        if i >= 3 {
            seconds.push(began.elapsed().as_secs_f64());
            tokens += batch
                .iter()
                .map(|example| example.tokens.len())
                .sum::<usize>();
        }
    }
    let (free_after, _) = gpu.memory()?;
    let profile = match option("profile") {
        Some(_) => profile(&gpu, &mut trainer, &batches[0])?,
        None => json!(null),
    };
    let total_s: f64 = seconds.iter().sum();
    seconds.sort_by(f64::total_cmp);
    let median = seconds[seconds.len() / 2];
    println!(
        "{}",
        json!({
            "engine": "luthier", "card": gpu.name(), "config": config, "workload": workload, "options": options,
            "steps": n_steps, "tokens": tokens, "seconds": median, "fastest": seconds[0],
            "slowest": seconds[seconds.len() - 1], "tokens_per_s": tokens as f64 / total_s,
            "memory_gib": (free_before - free_after) as f64 / (1u64 << 30) as f64,
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

/// The documents of each step.
fn batches(workload: &str, vocab: usize, n: usize) -> Result<Vec<Vec<Example>>, Box<dyn Error>> {
    let (lengths, prompts): (Vec<Vec<usize>>, bool) = match workload {
        "packed" => (vec![vec![2048; 8]; n], false),
        "packed2" => (vec![vec![2048; 2]; n], false),
        "long" => (vec![vec![8192; 2]; n], false),
        path => {
            let text = std::fs::read_to_string(path)?;
            let lines = text
                .lines()
                .map(|line| line.split_whitespace().map(str::parse).collect());
            (lines.collect::<Result<_, _>>()?, true)
        }
    };
    let mut numbers = Numbers(1);
    let mut example = |len: usize| Example {
        tokens: (0..len).map(|_| numbers.below(vocab) as u32).collect(),
        mask: (0..len).map(|i| !prompts || i >= len / 3).collect(),
    };
    let steps = lengths.iter().take(n);
    Ok(steps
        .map(|lengths| lengths.iter().map(|&len| example(len)).collect())
        .collect())
}

/// Numbers that look random and never change.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % n
    }
}
