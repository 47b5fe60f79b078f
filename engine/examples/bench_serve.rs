//! Rounds of generation on request, for `bench/serve_cpu`: prints `{"ready": …}`, then one JSON line for each line `step` on
//! standard input. A round takes `--batch` sequences of `--prompt` random tokens in and generates `--new` tokens for each, with
//! the model in the folder `--model`; with `--adapters N` they take turns with N adapters of rank 16 on all linears.
//! `--write DIR --shape NAME` only writes a model of random weights.

#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

mod support;

use std::error::Error;
use std::io::BufRead;
use std::sync::Arc;
use std::time::Instant;

use engine::generate::{Batcher, GenerateRequest, Limits, Sampling};
use engine::lora::{Adapter, LoraConfig};
use engine::pool::Pool;
use engine::weights::BaseModel;
use serde_json::json;
use support::{cpu_s, hash, peak_mib, shape_of, value, write_model};

fn main() -> Result<(), Box<dyn Error>> {
    if let Ok(dir) = value("--write") {
        std::fs::create_dir_all(&dir)?;
        return write_model(dir.as_ref(), shape_of(&value("--shape")?)?);
    }
    let number = |name: &str| -> Result<usize, Box<dyn Error>> { Ok(value(name)?.parse()?) };
    let (n_sequences, n_prompt, n_new) =
        (number("--batch")?, number("--prompt")?, number("--new")?);
    let pool = Pool::new(number("--threads")?);
    let base = Arc::new(BaseModel::load(value("--model")?.as_ref(), &pool)?);
    let n_adapters = number("--adapters").unwrap_or(0);
    let adapters = (0..n_adapters as u64)
        .map(|seed| {
            let config = LoraConfig::all_linear(16, 32.0);
            Ok(Arc::new(Adapter::init(base.config(), &config, seed)?))
        })
        .collect::<Result<Vec<_>, Box<dyn Error>>>()?;
    let limits = Limits {
        max_sequences: n_sequences,
        // Room for all, and pages are whole.
        max_cached_tokens: n_sequences * (n_prompt + n_new + 64),
    };
    let precision = base.generation_precision();
    let mut batcher = Batcher::in_precision(Arc::clone(&base), pool, limits, precision);
    let mut n_rounds = 0;
    let mut round = || -> Result<serde_json::Value, Box<dyn Error>> {
        n_rounds += 1;
        for i in 0..n_sequences {
            // Prompts are new in each round: what was read before would not be read again.
            let request = request(&base, n_rounds * n_sequences + i, n_prompt, n_new);
            let adapter = adapters.get(i % n_adapters.max(1)).cloned();
            batcher.admit(GenerateRequest { adapter, ..request })?;
        }
        let (mut n_tokens, mut first) = (0, None);
        let (wall, cpu) = (Instant::now(), cpu_s()?);
        while !batcher.is_idle() {
            n_tokens += batcher.step()?.len();
            if n_tokens >= n_sequences && first.is_none() {
                first = Some((wall.elapsed().as_secs_f64(), cpu_s()? - cpu, n_tokens));
            }
        }
        let (prefill_s, prefill_cpu_s, n_first) = first.ok_or("no token came")?;
        Ok(json!({
            "prefill_s": prefill_s, "prefill_cpu_s": prefill_cpu_s,
            "decode_s": wall.elapsed().as_secs_f64() - prefill_s, "decode_cpu_s": cpu_s()? - cpu - prefill_cpu_s,
            "prompt_tokens": n_sequences * n_prompt, "new_tokens": n_tokens - n_first, "peak_mib": peak_mib()?,
        }))
    };
    round()?;
    let adapter_bytes = adapters.first().map_or(0, |a| 4 * a.n_parameters());
    println!(
        "{}",
        json!({ "ready": { "program": "luthier engine", "adapter_bytes": adapter_bytes } })
    );
    for line in std::io::stdin().lock().lines() {
        if line?.trim() != "step" {
            break;
        }
        println!("{}", round()?);
    }
    Ok(())
}

fn request(base: &BaseModel, i: usize, n_prompt: usize, n_new: usize) -> GenerateRequest {
    let vocab = base.config().vocab_size as u32;
    let token = |t: usize| 3 + hash((i * n_prompt + t) as u32) % (vocab - 3);
    GenerateRequest {
        prompt: (0..n_prompt).map(token).collect(),
        adapter: None,
        scope: "".into(),
        sampling: Sampling {
            temperature: 0.0,
            ..Sampling::default()
        },
        max_new_tokens: n_new,
        stop_token_ids: Vec::new(),
        top_logprobs: None,
        grammar: None,
    }
}
