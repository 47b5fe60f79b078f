//! Training steps on request, for `bench/train_cpu`: prints `{"ready": …}`, then one JSON line for each line `step` on standard
//! input. The model has random weights of the given shape; every token is a label.

#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

mod support;

use std::error::Error;
use std::io::BufRead;
use std::sync::Arc;
use std::time::Instant;

use engine::batch::Example;
use engine::lora::{Adapter, LoraConfig};
use engine::pool::Pool;
use engine::schedule::Schedule;
use engine::train::{TrainConfig, Trainer};
use engine::weights::BaseModel;
use engine::{MemoryLevel, Precision};
use serde_json::json;
use support::{Shape, cpu_s, hash, peak_mib, shape_of, value, write_model};

struct Args {
    shape: Shape,
    batch: usize,
    seq: usize,
    threads: usize,
    precision: Precision,
    memory: MemoryLevel,
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = parse()?;
    let pool = Pool::new(args.threads);
    let base = random_base(args.shape, &pool)?;
    let adapter = Adapter::init(base.config(), &LoraConfig::all_linear(16, 32.0), 1)?;
    let config = TrainConfig {
        learning_rate: 1e-4,
        schedule: Schedule::Constant,
        precision: args.precision,
        memory: args.memory,
        ..TrainConfig::default()
    };
    let vocab = base.config().vocab_size as u32;
    let mut trainer = Trainer::new(Arc::new(base), adapter, config, pool);
    let batch: Vec<Example> = (0..args.batch as u32)
        .map(|i| document(i, args.seq as u32, vocab))
        .collect();
    trainer.step(&batch)?;
    println!("{}", json!({ "ready": "luthier engine" }));
    for line in std::io::stdin().lock().lines() {
        if line?.trim() != "step" {
            break;
        }
        let (wall, cpu) = (Instant::now(), cpu_s()?);
        let loss = trainer.step(&batch)?.loss;
        let (wall_s, cpu_s) = (wall.elapsed().as_secs_f64(), cpu_s()? - cpu);
        println!(
            "{}",
            json!({ "wall_s": wall_s, "cpu_s": cpu_s, "loss": loss, "peak_mib": peak_mib()? })
        );
    }
    Ok(())
}

fn parse() -> Result<Args, Box<dyn Error>> {
    Ok(Args {
        shape: shape_of(&value("--shape")?)?,
        batch: value("--batch")?.parse()?,
        seq: value("--seq")?.parse()?,
        threads: value("--threads")?.parse()?,
        precision: match value("--dtype")?.as_str() {
            "fp32" => Precision::Fp32,
            "bf16" => Precision::Bf16,
            other => return Err(format!("unknown dtype {other}").into()),
        },
        memory: match value("--memory").as_deref().unwrap_or("keep_all") {
            "keep_all" => MemoryLevel::KeepAll,
            "drop_gate_up" => MemoryLevel::DropGateUp,
            "layer_inputs" => MemoryLevel::LayerInputs,
            other => return Err(format!("unknown memory level {other}").into()),
        },
    })
}

fn document(i: u32, n: u32, vocab: u32) -> Example {
    let tokens = (0..n).map(|t| 1 + hash(i * n + t) % (vocab - 1)).collect();
    Example {
        tokens,
        mask: vec![true; n as usize],
    }
}

/// A model of random weights, loaded as any other; its folder is deleted.
fn random_base(shape: Shape, pool: &Pool) -> Result<BaseModel, Box<dyn Error>> {
    let dir = std::env::temp_dir().join(format!("bench_train-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let base = write_model(&dir, shape).and_then(|()| Ok(BaseModel::load(&dir, pool)?));
    std::fs::remove_dir_all(&dir)?;
    base
}
