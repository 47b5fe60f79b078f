//! The smallest trainer: `train_tiny MODEL_DIR TOKENS_FILE OUT_DIR [EPOCHS]`.
//!
//! `MODEL_DIR` is a Hugging Face folder of a Llama or Qwen2 model. `TOKENS_FILE` holds one example on a line, as token
//! ids between spaces; an id with a `*` behind it is a label. `OUT_DIR` gets an adapter that PEFT can load.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use engine::batch::{Example, epoch_order};
use engine::generate::{Batcher, GenerateRequest, Limits, Sampling};
use engine::lora::{Adapter, LoraConfig};
use engine::pool::Pool;
use engine::train::{TrainConfig, Trainer};
use engine::weights::BaseModel;

const SEED: u64 = 42;
const BATCH_SIZE: usize = 4;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().collect();
    let [_, model_dir, tokens_file, out_dir, rest @ ..] = &args[..] else {
        return Err("usage: train_tiny MODEL_DIR TOKENS_FILE OUT_DIR [EPOCHS]".into());
    };
    let n_epochs: u32 = rest.first().map_or(Ok(3), |epochs| epochs.parse())?;
    let examples = read_examples(Path::new(tokens_file))?;
    let n_steps = u64::from(n_epochs) * examples.len().div_ceil(BATCH_SIZE) as u64;

    let pool = Pool::new(std::thread::available_parallelism()?.get());
    let base = Arc::new(BaseModel::load(Path::new(model_dir), &pool)?);
    println!("{} parameters", base.n_parameters());

    let fresh = Adapter::init(base.config(), &LoraConfig::default(), SEED)?;
    let config = TrainConfig {
        learning_rate: 2e-3,
        total_steps: n_steps,
        ..TrainConfig::default()
    };
    let mut trainer = Trainer::new(base.clone(), fresh, config, pool.clone());
    for epoch in 0..n_epochs {
        for batch in epoch_order(SEED, epoch, examples.len()).chunks(BATCH_SIZE) {
            let batch: Vec<Example> = batch
                .iter()
                .map(|&i| examples[i as usize].clone())
                .collect();
            let report = trainer.step(&batch)?;
            println!(
                "step {:4} of {n_steps}: loss {:.4}",
                report.step, report.loss
            );
        }
    }

    let adapter = Arc::new(trainer.adapter()?);
    std::fs::create_dir_all(out_dir)?;
    let out = Path::new(out_dir);
    std::fs::write(
        out.join("adapter_config.json"),
        adapter.config_json(model_dir),
    )?;
    std::fs::write(
        out.join("adapter_model.safetensors"),
        adapter.to_safetensors(),
    )?;
    println!("{out_dir}: {} values", adapter.n_parameters());
    complete(base, adapter, pool, &examples[0])
}

/// Says what the tuned model makes of the first example's beginning.
fn complete(
    base: Arc<BaseModel>,
    adapter: Arc<Adapter>,
    pool: Pool,
    example: &Example,
) -> Result<(), Box<dyn Error>> {
    let n_prompt = example
        .mask
        .iter()
        .position(|&is_label| is_label)
        .unwrap_or(1)
        .max(1);
    let limits = Limits {
        max_sequences: 1,
        max_cached_tokens: 4096,
    };
    let mut batcher = Batcher::new(base, pool, limits);
    batcher.admit(GenerateRequest {
        prompt: example.tokens[..n_prompt].to_vec(),
        adapter: Some(adapter),
        scope: "".into(),
        sampling: Sampling {
            temperature: 0.0,
            ..Sampling::default()
        },
        max_new_tokens: (example.tokens.len() - n_prompt).max(1),
        stop_token_ids: vec![],
        top_logprobs: None,
        grammar: None,
    })?;
    while !batcher.is_idle() {
        for output in batcher.step()? {
            print!("{} ", output?.token);
        }
    }
    println!();
    Ok(())
}

fn read_examples(path: &Path) -> Result<Vec<Example>, Box<dyn Error>> {
    let mut examples = Vec::new();
    for line in std::fs::read_to_string(path)?
        .lines()
        .filter(|line| !line.trim().is_empty())
    {
        let mut example = Example {
            tokens: Vec::new(),
            mask: Vec::new(),
        };
        for word in line.split_whitespace() {
            example.tokens.push(word.trim_end_matches('*').parse()?);
            example.mask.push(word.ends_with('*'));
        }
        examples.push(example);
    }
    if examples.is_empty() {
        Err("no example in the file".into())
    } else {
        Ok(examples)
    }
}
