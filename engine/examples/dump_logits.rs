//! `dump_logits BASE DIR [KIND]`: writes DIR/logits.safetensors, the engine's logits for an adapter folder, for
//! `tests/parity/check_adapter.py` to compare with PEFT's. Where DIR holds no adapter, one of that
//! kind (plain, pissa, patterns, whole) is trained for five steps first.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use engine::batch::Example;
use engine::lora::{Adapter, Bias, Init, LoraConfig, TargetModules};
use engine::pool::Pool;
use engine::schedule::Schedule;
use engine::train::{TrainConfig, Trainer};
use engine::weights::BaseModel;
use safetensors::Dtype;
use safetensors::tensor::TensorView;

const N_STEPS: u64 = 5;
const LENGTHS: [u32; 3] = [3, 17, 40];

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [base_dir, dir, kind @ ..] = args.as_slice() else {
        return Err("usage: dump_logits BASE DIR [plain|pissa|patterns|whole]".into());
    };
    let dir = Path::new(dir);
    let pool = Pool::new(std::thread::available_parallelism()?.get());
    let base = Arc::new(BaseModel::load(Path::new(base_dir), &pool)?);
    let documents: Vec<Vec<u32>> = (0..)
        .zip(LENGTHS)
        .map(|(i, n)| document(i, n, &base))
        .collect();
    if !dir.join("adapter_config.json").exists() {
        fs::create_dir_all(dir)?;
        let lora = lora(kind.first().map_or("plain", String::as_str))?;
        let adapter = train(&base, &lora, &documents, &pool)?;
        let base_dir = fs::canonicalize(base_dir)?;
        fs::write(
            dir.join("adapter_config.json"),
            adapter.config_json(&base_dir.to_string_lossy()),
        )?;
        fs::write(
            dir.join("adapter_model.safetensors"),
            adapter.to_safetensors(),
        )?;
    }
    let adapter = Adapter::from_peft(
        &fs::read_to_string(dir.join("adapter_config.json"))?,
        &fs::read(dir.join("adapter_model.safetensors"))?,
        base.config(),
    )?;
    let mut trainer = Trainer::new(base, adapter, TrainConfig::default(), pool);
    let mut tensors = BTreeMap::new();
    for (i, tokens) in documents.iter().enumerate() {
        let logits = trainer.logits(tokens)?;
        tensors.insert(
            format!("logits.{i}"),
            (
                Dtype::F32,
                vec![tokens.len(), logits.len() / tokens.len()],
                f32_bytes(&logits),
            ),
        );
        tensors.insert(
            format!("tokens.{i}"),
            (Dtype::I32, vec![tokens.len()], u32_bytes(tokens)),
        );
    }
    let views = tensors.iter().map(|(name, (dtype, shape, data))| {
        TensorView::new(*dtype, shape.clone(), data).map(|view| (name.as_str(), view))
    });
    let views = views.collect::<Result<Vec<_>, _>>()?;
    fs::write(
        dir.join("logits.safetensors"),
        safetensors::serialize(views, None)?,
    )?;
    Ok(())
}

/// Tokens spread over the vocabulary; any will do.
fn document(i: u32, n: u32, base: &BaseModel) -> Vec<u32> {
    let vocab = base.config().vocab_size as u32;
    (0..n)
        .map(|t| (i * 7919 + t * t * 31 + t * 104_729 + 5) % vocab)
        .collect()
}

fn lora(kind: &str) -> Result<LoraConfig, Box<dyn Error>> {
    let plain = LoraConfig::all_linear(8, 16.0);
    match kind {
        "plain" => Ok(plain),
        "pissa" => Ok(LoraConfig {
            init_lora_weights: Init::Pissa,
            rank_pattern: vec![("k_proj".to_owned(), 3)],
            ..plain
        }),
        "patterns" => Ok(LoraConfig {
            target_modules: TargetModules::Regex(r"model\.layers\.\d+\..*_proj".to_owned()),
            exclude_modules: Some(TargetModules::List(vec!["layers.0.mlp.up_proj".to_owned()])),
            rank_pattern: vec![(r"layers\.1\..*".to_owned(), 5)],
            alpha_pattern: vec![("q_proj".to_owned(), 3.5)],
            use_rslora: true,
            init_lora_weights: Init::Gaussian,
            ..plain
        }),
        "whole" => Ok(LoraConfig {
            use_dora: true,
            bias: Bias::All,
            lora_dropout: 0.1,
            modules_to_save: vec!["lm_head".to_owned(), "embed_tokens".to_owned()],
            ..plain
        }),
        other => {
            Err(format!("unknown kind {other:?}; known are plain, pissa, patterns, whole").into())
        }
    }
}

fn train(
    base: &Arc<BaseModel>,
    lora: &LoraConfig,
    documents: &[Vec<u32>],
    pool: &Pool,
) -> Result<Adapter, Box<dyn Error>> {
    let config = TrainConfig {
        learning_rate: 1e-2,
        total_steps: N_STEPS,
        schedule: Schedule::Constant,
        ..TrainConfig::default()
    };
    let adapter = Adapter::init_from(base, lora, 1, pool)?;
    let mut trainer = Trainer::new(base.clone(), adapter, config, pool.clone());
    let examples: Vec<Example> = documents
        .iter()
        .map(|tokens| Example {
            tokens: tokens.clone(),
            mask: vec![true; tokens.len()],
        })
        .collect();
    for _ in 0..N_STEPS {
        trainer.step(&examples)?;
    }
    Ok(trainer.adapter()?)
}

fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn u32_bytes(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}
