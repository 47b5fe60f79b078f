//! Training and generation at once on one GPU and one copy of the base, for `bench/gpu/run`: prints one JSON line. Weights are random, in
//! the shape of the given `config.json`; the training is LoRA of rank 16 over packed documents of 2048 tokens, eight a step.
//!
//! Usage: bench_gpu_both CONFIG.json [chats=8] [prompt=128] [new=64] [seconds=10] [handovers=20]
//!
//! First `chats` conversations at once, one set after the other, without a training; then steps without chats; then both. Last, `handovers` times: a
//! step, and the time from its end to the first token of an answer by the adapter as that step left it.

#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use engine::batch::Example;
use engine::config::ModelConfig;
use engine::cuda::{Base, Gpu, RankRoom};
use engine::generate::{Batcher, GenerateRequest, Limits, Sampling};
use engine::lora::{Adapter, LoraConfig};
use engine::pool::Pool;
use engine::schedule::Schedule;
use engine::train::{TrainConfig, Trainer};
use engine::weights::BaseWeights;
use engine::{MemoryLevel, Precision};
use serde_json::{Value, json};

const RANK: usize = 16;
const DOCUMENTS: usize = 8;
const DOCUMENT: usize = 2048;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some((config, options)) = args.split_first() else {
        return Err("bench_gpu_both CONFIG.json [KEY=VALUE …]".into());
    };
    let number = |key: &str, default: usize| {
        let mut named = options.iter().filter_map(|option| option.split_once('='));
        let found = named.find(|(name, _)| *name == key);
        found.map_or(Ok(default), |(_, value)| value.parse())
    };
    let chats = Chats {
        n: number("chats", 8)?,
        prompt: number("prompt", 128)?,
        new: number("new", 64)?,
    };
    let seconds = Duration::from_secs(number("seconds", 10)? as u64);
    let n_handovers = number("handovers", 20)?;
    let model = ModelConfig::from_json(&std::fs::read_to_string(config)?)?;
    let gpu = Gpu::open(0)?;
    let room = RankRoom::of_rank(RANK);
    let base = Base::random(&gpu, model.clone(), BaseWeights::Bf16, room)?;
    let base = Arc::new(base);
    let adapter = Adapter::init(&model, &LoraConfig::all_linear(RANK, 32.0), 1)?;
    let train = TrainConfig {
        learning_rate: 1e-4,
        schedule: Schedule::Constant,
        precision: Precision::Bf16,
        ..TrainConfig::default()
    };
    let memory = MemoryLevel::KeepAll.into();
    let mut trainer = Trainer::on_gpu(&gpu, Arc::clone(&base), adapter, train, memory)?;
    let n_threads = std::thread::available_parallelism()?.get();
    let limits = Limits {
        max_sequences: chats.n,
        max_cached_tokens: chats.n * (chats.prompt + chats.new).next_multiple_of(64),
    };
    let first = gpu.going_first()?;
    let mut batcher = Batcher::on_gpu(&first, base, Pool::new(n_threads), limits)?;
    let batch = batch(model.vocab_size);

    let mut latencies = Latencies::default();
    for _ in 0..2 {
        latencies = chats.answer(&mut batcher, model.vocab_size, seconds / 2)?;
    }
    let alone = latencies.json();
    let mut step = || -> Result<f64, Box<dyn Error + Send + Sync>> {
        let began = Instant::now();
        trainer.step(&batch)?;
        Ok(began.elapsed().as_secs_f64())
    };
    let mut steps = Vec::new();
    for i in 0..6 {
        let took = step().map_err(|error| error.to_string())?;
        if i > 1 {
            steps.push(took);
        }
    }
    let trained_alone = steps.len() as f64 / steps.iter().sum::<f64>();

    let (is_over, n_steps) = (AtomicBool::new(false), AtomicUsize::new(0));
    let (beside, took) = std::thread::scope(|scope| -> Result<_, Box<dyn Error>> {
        let training = scope.spawn(|| -> Result<f64, String> {
            let began = Instant::now();
            while !is_over.load(Ordering::Relaxed) {
                step().map_err(|error| error.to_string())?;
                n_steps.fetch_add(1, Ordering::Relaxed);
            }
            Ok(began.elapsed().as_secs_f64())
        });
        let beside = chats.answer(&mut batcher, model.vocab_size, seconds);
        is_over.store(true, Ordering::Relaxed);
        let took = training.join().map_err(|_| "the training broke")??;
        Ok((beside?, took))
    })?;
    let trained_beside = n_steps.load(Ordering::Relaxed) as f64 / took;

    let (mut first_tokens, mut handed_over) = (Vec::new(), Vec::new());
    for i in 0..n_handovers {
        trainer.step(&batch)?;
        let began = Instant::now();
        let adapter = Arc::new(trainer.adapter()?);
        handed_over.push(began.elapsed().as_secs_f64());
        batcher.admit(chats.request(i, model.vocab_size, Some(adapter), 1))?;
        while batcher.step()?.is_empty() {}
        first_tokens.push(began.elapsed().as_secs_f64());
    }
    let tokens = (DOCUMENTS * DOCUMENT) as f64;
    println!(
        "{}",
        json!({
            "engine": "luthier", "card": gpu.name(), "config": config, "options": options,
            "chats": alone, "chats_beside": beside.json(),
            "trained_tokens_per_s": tokens * trained_alone, "trained_tokens_per_s_beside": tokens * trained_beside,
            "training_kept": trained_beside / trained_alone,
            "first_token_s": spread(&mut first_tokens), "adapter_s": spread(&mut handed_over),
        })
    );
    Ok(())
}

/// Conversations that begin together.
struct Chats {
    n: usize,
    prompt: usize,
    new: usize,
}

/// Seconds.
#[derive(Default)]
struct Latencies {
    first_token: Vec<f64>,
    between: Vec<f64>,
    n_tokens: usize,
    took: f64,
}

impl Latencies {
    fn json(mut self) -> Value {
        json!({
            "first_token_s": spread(&mut self.first_token), "between_tokens_s": spread(&mut self.between),
            "tokens_per_s": self.n_tokens as f64 / self.took,
        })
    }
}

fn spread(seconds: &mut [f64]) -> Value {
    if seconds.is_empty() {
        return json!(null);
    }
    seconds.sort_by(f64::total_cmp);
    let at = |share: f64| seconds[((seconds.len() - 1) as f64 * share).round() as usize];
    json!({"p50": at(0.5), "p99": at(0.99), "n": seconds.len()})
}

impl Chats {
    fn request(
        &self,
        i: usize,
        vocab: usize,
        adapter: Option<Arc<Adapter>>,
        new: usize,
    ) -> GenerateRequest {
        GenerateRequest {
            prompt: (0..self.prompt)
                .map(|j| ((i * 7919 + j * 104_729) % vocab) as u32)
                .collect(),
            adapter,
            // No beginning is used again.
            scope: i.to_string().into(),
            sampling: Sampling {
                temperature: 0.0,
                ..Sampling::default()
            },
            max_new_tokens: new,
            stop_token_ids: Vec::new(),
            top_logprobs: None,
            grammar: None,
        }
    }

    /// Sets of conversations, one after the other, for so long.
    fn answer(
        &self,
        batcher: &mut Batcher,
        vocab: usize,
        long: Duration,
    ) -> Result<Latencies, Box<dyn Error>> {
        let (began, mut all, mut asked) = (Instant::now(), Latencies::default(), 0);
        while began.elapsed() < long {
            let set = Instant::now();
            for _ in 0..self.n {
                batcher.admit(self.request(asked, vocab, None, self.new))?;
                asked += 1;
            }
            let mut last: Option<Instant> = None;
            while !batcher.is_idle() {
                let n = batcher.step()?.len();
                if n == 0 {
                    continue;
                }
                match last {
                    None => all.first_token.push(set.elapsed().as_secs_f64()),
                    Some(last) => all.between.push(last.elapsed().as_secs_f64()),
                }
                all.n_tokens += n;
                last = Some(Instant::now());
            }
        }
        all.took = began.elapsed().as_secs_f64();
        Ok(all)
    }
}

fn batch(vocab: usize) -> Vec<Example> {
    let example = |i: usize| Example {
        tokens: (0..DOCUMENT)
            .map(|j| ((i * 6007 + j * 15_485_863) % vocab) as u32)
            .collect(),
        mask: vec![true; DOCUMENT],
    };
    (0..DOCUMENTS).map(example).collect()
}
