//! Generation on a GPU, for `bench/gpu/run`: prints one JSON line. Weights are random, in the shape of the given `config.json`; every
//! sequence is greedy.
//!
//! Usage: bench_gpu_decode CONFIG.json [batch=1] [prompt=128] [new=128] [adapters=0] [rank=16] [base=bf16|nf4|int8]

#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

use engine::config::ModelConfig;
use engine::cuda::{Base, Gpu, RankRoom};
use engine::generate::{Batcher, GenerateRequest, Limits, Sampling};
use engine::lora::{Adapter, LoraConfig};
use engine::pool::Pool;
use engine::quant::Kind;
use engine::weights::BaseWeights;
use serde_json::json;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some((config, options)) = args.split_first() else {
        return Err("bench_gpu_decode CONFIG.json [KEY=VALUE …]".into());
    };
    let number = |key: &str, default: usize| {
        let mut named = options.iter().filter_map(|option| option.split_once('='));
        let found = named.find(|(name, _)| *name == key);
        found.map_or(Ok(default), |(_, value)| value.parse())
    };
    let (batch, prompt, new) = (
        number("batch", 1)?,
        number("prompt", 128)?,
        number("new", 128)?,
    );
    let (n_adapters, rank) = (number("adapters", 0)?, number("rank", 16)?);
    let model = ModelConfig::from_json(&std::fs::read_to_string(config)?)?;
    let gpu = Gpu::open(0)?;
    let (free_before, _) = gpu.memory()?;
    let mut named = options.iter().filter_map(|option| option.split_once('='));
    let weights = match named.find(|(name, _)| *name == "base") {
        None | Some((_, "bf16")) => BaseWeights::Bf16,
        Some((_, "nf4")) => BaseWeights::Quantized(Kind::Nf4DoubleQuant),
        Some((_, "int8")) => BaseWeights::Quantized(Kind::Int8),
        Some((_, other)) => return Err(format!("no base {other}").into()),
    };
    let base = Base::random(&gpu, model.clone(), weights, RankRoom::NONE)?;
    let weight_bytes = base.size_bytes();
    let limits = Limits {
        max_sequences: batch,
        max_cached_tokens: batch * (prompt + new).next_multiple_of(64),
    };
    let n_threads = std::thread::available_parallelism()?.get();
    let mut batcher = Batcher::on_gpu(&gpu, Arc::new(base), Pool::new(n_threads), limits)?;
    let lora = LoraConfig::all_linear(rank, 32.0);
    let adapters = (0..n_adapters).map(|i| Adapter::init(&model, &lora, i as u64).map(Arc::new));
    let adapters: Vec<_> = adapters.collect::<Result<_, _>>()?;
    for i in 0..batch {
        batcher.admit(GenerateRequest {
            prompt: (0..prompt)
                .map(|j| ((i * 7919 + j * 104_729) % model.vocab_size) as u32)
                .collect(),
            adapter: (n_adapters > 0).then(|| adapters[i % n_adapters].clone()),
            scope: "bench".into(),
            sampling: Sampling {
                temperature: 0.0,
                ..Sampling::default()
            },
            max_new_tokens: new,
            stop_token_ids: Vec::new(),
            top_logprobs: None,
            grammar: None,
        })?;
    }
    let began = Instant::now();
    // Those whose prompts are through answer on while the others' are read.
    let mut answering = Vec::new();
    while answering.len() < batch {
        let ids = batcher
            .step()?
            .into_iter()
            .flatten()
            .map(|output| output.id);
        answering.extend(ids);
        answering.sort_unstable();
        answering.dedup();
    }
    let prefill_s = began.elapsed().as_secs_f64();
    let mut seconds = Vec::new();
    let mut n_tokens = 0;
    while batcher.n_live() == batch && seconds.len() + 2 < new {
        let began = Instant::now();
        let n = batcher.step()?.len();
        // The first steps make room.
        if seconds.len() >= 4 {
            n_tokens += n;
        }
        seconds.push(began.elapsed().as_secs_f64());
    }
    let timed = &seconds[4.min(seconds.len())..];
    let total: f64 = timed.iter().sum();
    // What a step cannot do without: all weights that lie on the GPU, and the keys and values of each sequence.
    let of_token = 2 * 2 * model.key_value_size() * model.num_hidden_layers;
    let cached = batch * (prompt + seconds.len() / 2) * of_token;
    let read_gb = (weight_bytes as f64 + cached as f64) / 1e9;
    let (free_after, _) = gpu.memory()?;
    gpu.begin_profile();
    batcher.step()?;
    let mut profile = gpu.end_profile();
    profile.sort_by(|a, b| b.1.total_cmp(&a.1));
    let profile: Vec<_> = profile
        .iter()
        .map(|(name, ms, n)| json!([name, ms, n]))
        .collect();
    println!(
        "{}",
        json!({
            "engine": "luthier", "card": gpu.name(), "config": config, "options": options, "tokens_per_s": n_tokens as f64 / total,
            "step_ms": 1e3 * total / timed.len() as f64, "weight_gb": weight_bytes as f64 / 1e9,
            "read_gb": read_gb, "read_gb_per_s": read_gb * timed.len() as f64 / total, "prefill_s": prefill_s,
            "prefill_tokens_per_s": (batch * prompt) as f64 / prefill_s,
            "memory_gib": (free_before - free_after) as f64 / (1u64 << 30) as f64, "profile": profile,
        })
    );
    Ok(())
}
