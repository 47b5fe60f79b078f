//! Training on quantised bases: exactly what training on the values that they stand for is.

mod common;

use std::path::Path;
use std::sync::Arc;

use common::{LLAMA, QWEN2, Tiny, adapter, example};
use engine::lora::LoraConfig;
use engine::pool::Pool;
use engine::quant::{GgmlType, Kind, Quantized};
use engine::train::{TrainConfig, Trainer};
use engine::weights::{BaseModel, BaseWeights};
use engine::{MemoryLevel, Precision};
use half::bf16;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

/// Sizes that blocks of 32 divide, for GGML's kinds.
const EVEN: Tiny = Tiny {
    hidden: 64,
    inner: 96,
    heads: 4,
    head_dim: 16,
    ..LLAMA
};

fn run(base: BaseModel, precision: Precision, memory: MemoryLevel) -> (Vec<f32>, Vec<u8>) {
    let base = Arc::new(base);
    let adapter = adapter(&base, &LoraConfig::all_linear(5, 8.0), 3);
    let vocab = base.config().vocab_size;
    let config = TrainConfig {
        learning_rate: 5e-3,
        total_steps: 3,
        precision,
        memory,
        ..TrainConfig::default()
    };
    let mut trainer = Trainer::new(base, adapter, config, Pool::new(2));
    let steps = (0..3).map(|step| {
        let batch = [70, 33, 2].map(|n| example(vocab, n, step * 10 + n as u64));
        trainer.step(&batch).unwrap().loss
    });
    let losses = steps.collect();
    (losses, trainer.save_state().unwrap())
}

/// A model whose linears hold the values that quantised ones stand for.
fn dequantized(tiny: Tiny, kind: Kind, pool: &Pool) -> BaseModel {
    let dir = tempfile::tempdir().unwrap();
    tiny.write_changed(dir.path(), |name, shape, values| {
        if name.ends_with("_proj.weight") {
            let (rows, columns) = (shape[0], shape[1]);
            let quantized = Quantized::quantize(kind, rows, columns, values).unwrap();
            for (row, values) in values.chunks_exact_mut(columns).enumerate() {
                quantized.dequantize(row, 0..columns, values);
            }
        }
    });
    BaseModel::load(dir.path(), pool).unwrap()
}

#[test]
fn a_quantised_base_trains_as_the_values_it_stands_for() {
    let q8_0 = Kind::Ggml(GgmlType::Q8_0);
    for (tiny, kind) in [
        (LLAMA, Kind::Nf4),
        (QWEN2, Kind::Nf4DoubleQuant),
        (QWEN2, Kind::Int8),
        (LLAMA, Kind::Fp8),
        (EVEN, q8_0),
    ] {
        let pool = Pool::new(2);
        let dir = tempfile::tempdir().unwrap();
        tiny.write(dir.path());
        let load = || BaseModel::load_as(dir.path(), BaseWeights::Quantized(kind), &pool).unwrap();
        let as_stored = BaseModel::load(dir.path(), &pool).unwrap();
        let plain = run(as_stored, Precision::Fp32, MemoryLevel::KeepAll);
        for precision in [Precision::Fp32, Precision::Bf16] {
            let quantised = run(load(), precision, MemoryLevel::LayerInputs);
            let values = dequantized(tiny, kind, &pool);
            let expected = run(values, precision, MemoryLevel::KeepAll);
            assert!(quantised == expected, "{kind} in {precision:?}");
            assert_ne!(quantised.0, plain.0, "{kind} must not be what is stored");
        }
    }
}

/// A fixture whose linears hold the values that quantised ones stand for; norms, embeddings, head and router stay.
fn dequantized_fixture(folder: &Path, kind: Kind, pool: &Pool) -> BaseModel {
    let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let is_linear = |name: &str| {
        ["_proj.weight", "w1.weight", "w2.weight", "w3.weight"]
            .iter()
            .any(|end| name.ends_with(end))
    };
    let widened = file.tensors().into_iter().map(|(name, view)| {
        let halves = view.data().as_chunks::<2>().0.iter();
        let mut values: Vec<f32> = halves.map(|x| bf16::from_le_bytes(*x).to_f32()).collect();
        if is_linear(&name) {
            let (rows, columns) = (view.shape()[0], view.shape()[1]);
            let quantized = Quantized::quantize(kind, rows, columns, &values).unwrap();
            for (row, values) in values.chunks_exact_mut(columns).enumerate() {
                quantized.dequantize(row, 0..columns, values);
            }
        }
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        (name, view.shape().to_vec(), bytes)
    });
    let widened: Vec<_> = widened.collect();
    let views = widened.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap();
        (name.as_str(), view)
    });
    let dir = tempfile::tempdir().unwrap();
    let out = safetensors::serialize(views, None).unwrap();
    std::fs::write(dir.path().join("model.safetensors"), out).unwrap();
    std::fs::copy(folder.join("config.json"), dir.path().join("config.json")).unwrap();
    BaseModel::load(dir.path(), pool).unwrap()
}

#[test]
fn fused_tensors_and_experts_are_quantised_as_they_are_multiplied() {
    let pool = Pool::new(2);
    for name in ["tiny_phi3", "tiny_mixtral"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/fixtures")
            .join(name);
        for precision in [Precision::Fp32, Precision::Bf16] {
            let weights = BaseWeights::Quantized(Kind::Nf4);
            let base = BaseModel::load_as(&folder, weights, &pool).unwrap();
            let quantised = run(base, precision, MemoryLevel::LayerInputs);
            let values = dequantized_fixture(&folder, Kind::Nf4, &pool);
            let expected = run(values, precision, MemoryLevel::KeepAll);
            assert!(quantised == expected, "{name} in {precision:?}");
        }
    }
}

#[test]
fn a_matrix_that_a_kind_cannot_hold_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    LLAMA.write(dir.path());
    let kind = BaseWeights::Quantized(Kind::Ggml(GgmlType::Q8_0));
    let error = BaseModel::load_as(dir.path(), kind, &Pool::new(1)).err();
    let error = error.expect("rows of 40 have no blocks of 32").to_string();
    assert!(
        error.contains("q_proj") && error.contains("multiple of 32"),
        "{error}"
    );
}
