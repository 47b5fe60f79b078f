//! Loading: every storage a Hugging Face folder may have gives the same model, and what is wrong is named.

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use common::{LLAMA, QWEN2, Tiny};
use engine::generate::{Batcher, Limits};
use engine::pool::Pool;
use engine::quant::Kind;
use engine::weights::{BaseModel, BaseWeights, LoadError, size_bytes};
use half::{bf16, f16};
use safetensors::{Dtype, tensor::TensorView};

type Stored = (String, Vec<usize>, Vec<u8>);

fn stored(tiny: Tiny, dtype: Dtype) -> Vec<Stored> {
    let bytes = |values: Vec<f32>| match dtype {
        Dtype::BF16 => values
            .iter()
            .flat_map(|&x| bf16::from_f32(x).to_le_bytes())
            .collect(),
        Dtype::F16 => values
            .iter()
            .flat_map(|&x| f16::from_f32(x).to_le_bytes())
            .collect(),
        Dtype::F64 => values
            .iter()
            .flat_map(|&x| f64::from(x).to_le_bytes())
            .collect(),
        _ => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
    };
    let tensors = tiny.tensors().into_iter();
    tensors
        .map(|(name, shape)| {
            let values = tiny.values(&name, shape.iter().product());
            (name, shape, bytes(values))
        })
        .collect()
}

fn write(path: &Path, tensors: &[Stored], dtype: Dtype) {
    let views = tensors
        .iter()
        .map(|(name, shape, bytes)| (name, TensorView::new(dtype, shape.clone(), bytes).unwrap()));
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

fn folder(tiny: Tiny) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), tiny.config_json()).unwrap();
    dir
}

fn scores(base: BaseModel) -> Vec<f32> {
    let limits = Limits {
        max_sequences: 1,
        max_cached_tokens: 64,
    };
    let mut batcher = Batcher::new(Arc::new(base), Pool::new(2), limits);
    batcher
        .score(
            &(0..40).map(|i| (i * 37 + 5) % 101).collect::<Vec<u32>>(),
            None,
        )
        .unwrap()
}

fn load(dir: &Path) -> Result<BaseModel, LoadError> {
    BaseModel::load(dir, &Pool::new(2))
}

#[test]
fn f32_bf16_f16_and_shards_are_the_same_model() {
    for tiny in [LLAMA, QWEN2] {
        let dir = folder(tiny);
        let file = dir.path().join("model.safetensors");
        write(&file, &stored(tiny, Dtype::F32), Dtype::F32);
        let whole = load(dir.path()).unwrap();
        let n_values: usize = tiny
            .tensors()
            .iter()
            .map(|(_, shape)| shape.iter().product::<usize>())
            .sum();
        assert_eq!(whole.n_parameters(), n_values as u64);
        let expected = scores(whole);
        write(&file, &stored(tiny, Dtype::BF16), Dtype::BF16);
        assert_eq!(scores(load(dir.path()).unwrap()), expected);
        write(&file, &stored(tiny, Dtype::F16), Dtype::F16);
        let half = scores(load(dir.path()).unwrap());
        // The smallest weights are subnormal in f16.
        assert!(
            half.iter()
                .zip(&expected)
                .all(|(a, b)| (a - b).abs() < 1e-2)
        );
        std::fs::remove_file(&file).unwrap();
        write_shards(dir.path(), tiny);
        assert_eq!(scores(load(dir.path()).unwrap()), expected);
    }
}

fn write_shards(dir: &Path, tiny: Tiny) {
    let tensors = stored(tiny, Dtype::F32);
    let (first, second) = tensors.split_at(tensors.len() / 2);
    let mut map = BTreeMap::new();
    for (shard, tensors) in [("a.safetensors", first), ("b.safetensors", second)] {
        write(&dir.join(shard), tensors, Dtype::F32);
        map.extend(tensors.iter().map(|(name, ..)| (name.clone(), shard)));
    }
    let index = serde_json::json!({ "weight_map": map });
    std::fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

#[test]
fn what_is_wrong_with_a_folder_is_named() {
    let dir = folder(LLAMA);
    let file = dir.path().join("model.safetensors");
    let message = |tensors: &[Stored], dtype| {
        write(&file, tensors, dtype);
        load(dir.path()).err().unwrap().to_string()
    };
    let mut tensors = stored(LLAMA, Dtype::F32);
    let at = tensors
        .iter()
        .position(|(name, ..)| name.contains("1.mlp.up_proj"))
        .unwrap();
    tensors[at].1.reverse();
    let name = "model.layers.1.mlp.up_proj.weight";
    let found = message(&tensors, Dtype::F32);
    assert_eq!(
        found,
        format!("tensor {name} has shape [40, 72], not [72, 40]")
    );
    tensors.remove(at);
    assert_eq!(
        message(&tensors, Dtype::F32),
        format!("tensor {name} is missing")
    );
    let found = message(&stored(LLAMA, Dtype::F64), Dtype::F64);
    assert_eq!(
        found,
        "tensor model.embed_tokens.weight is F64; F32, BF16 and F16 can be read"
    );
    std::fs::write(&file, b"no safetensors at all").unwrap();
    assert!(matches!(load(dir.path()), Err(LoadError::Malformed { .. })));
    std::fs::remove_file(&file).unwrap();
    assert!(matches!(
        load(dir.path()),
        Err(LoadError::Unreadable { .. })
    ));
    let index = r#"{"weight_map":{"model.norm.weight":"../elsewhere.safetensors"}}"#;
    std::fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
    let found = load(dir.path()).err().unwrap().to_string();
    assert!(
        found.ends_with("shard \"../elsewhere.safetensors\" is not a plain file name"),
        "{found}"
    );
}

#[test]
fn what_weights_take_of_memory_is_known_before_they_are_loaded() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let quantized = [Kind::Nf4, Kind::Nf4DoubleQuant, Kind::Int8, Kind::Fp8];
    let ways = quantized.map(BaseWeights::Quantized);
    let ways = ways
        .into_iter()
        .chain([BaseWeights::AsStored, BaseWeights::Bf16]);
    let pool = Pool::new(1);
    for weights in ways {
        for name in [
            "tiny_llama_tied",
            "tiny_llama_untied",
            "tiny_qwen2",
            "tiny_gemma3",
            "tiny_mixtral",
            "tiny_phi3",
        ] {
            let dir = fixtures.join(name);
            let told = size_bytes(&dir, weights).unwrap();
            let base = BaseModel::load_as(&dir, weights, &pool).unwrap();
            let taken = base.size_bytes();
            // Sixteen rows to a panel: each matrix by itself has some more than those that are read as one.
            assert!(
                told >= taken && told as f64 <= 1.06 * taken as f64,
                "{name} {weights:?}: {told} {taken}"
            );
        }
    }
}
