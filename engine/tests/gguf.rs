//! GGUF: what is converted is the model that was written.

mod common;

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use common::{LLAMA, QWEN2, Tiny};
use engine::generate::{Batcher, Limits};
use engine::gguf::{GgufError, GgufFile, convert};
use engine::pool::Pool;
use engine::weights::BaseModel;
use half::bf16;
use safetensors::SafeTensors;

/// Rows a multiple of 32 wide, so that every tensor can be quantised.
const SMALL: Tiny = Tiny {
    hidden: 64,
    inner: 96,
    head_dim: 16,
    ..LLAMA
};

fn gguf_name(name: &str) -> String {
    let modules = [
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("model.layers", "blk"),
    ];
    modules
        .iter()
        .fold(name.to_owned(), |name, (from, to)| name.replace(from, to))
}

/// The order of llama.cpp: (heads, 2, half) becomes (heads, half, 2).
fn permute(values: &[f32], rows: usize, heads: usize) -> Vec<f32> {
    let (width, half) = (values.len() / rows, rows / heads / 2);
    let mut out = vec![0.0; values.len()];
    for head in 0..heads {
        for side in 0..2 {
            for j in 0..half {
                let (from, to) = (
                    head * 2 * half + side * half + j,
                    head * 2 * half + 2 * j + side,
                );
                out[to * width..(to + 1) * width]
                    .copy_from_slice(&values[from * width..(from + 1) * width]);
            }
        }
    }
    out
}

fn write_gguf(tiny: Tiny, path: &Path, dtype: GgmlDType, extra: &[(&str, Value)]) {
    let arch = if tiny.architecture == "LlamaForCausalLM" {
        "llama"
    } else {
        "qwen2"
    };
    let sizes = [
        ("embedding_length", tiny.hidden),
        ("feed_forward_length", tiny.inner),
        ("block_count", tiny.layers),
        ("attention.head_count", tiny.heads),
        ("attention.head_count_kv", tiny.kv_heads),
        ("attention.key_length", tiny.head_dim),
        ("context_length", 512),
    ];
    let mut metadata: Vec<(String, Value)> = sizes
        .iter()
        .map(|(key, n)| (format!("{arch}.{key}"), Value::U32(*n as u32)))
        .collect();
    metadata.push((
        "general.architecture".to_owned(),
        Value::String(arch.to_owned()),
    ));
    metadata.push((
        format!("{arch}.attention.layer_norm_rms_epsilon"),
        Value::F32(1e-5),
    ));
    metadata.push((format!("{arch}.rope.freq_base"), Value::F32(10_000.0)));
    metadata.push(("tokenizer.ggml.eos_token_id".to_owned(), Value::U32(2)));
    metadata.extend(
        extra
            .iter()
            .map(|(key, value)| ((*key).to_owned(), value.clone())),
    );
    let tensors: Vec<(String, QTensor)> = tiny
        .tensors()
        .into_iter()
        .map(|(name, shape)| {
            let mut values = tiny.values(&name, shape.iter().product());
            if arch == "llama" && name.contains("q_proj") {
                values = permute(&values, shape[0], tiny.heads);
            } else if arch == "llama" && name.contains("k_proj") {
                values = permute(&values, shape[0], tiny.kv_heads);
            }
            let dtype = if shape.len() == 1 {
                GgmlDType::F32
            } else {
                dtype
            };
            let tensor = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
            (gguf_name(&name), QTensor::quantize(&tensor, dtype).unwrap())
        })
        .collect();
    let metadata: Vec<_> = metadata
        .iter()
        .map(|(key, value)| (key.as_str(), value))
        .collect();
    let tensors: Vec<_> = tensors
        .iter()
        .map(|(name, tensor)| (name.as_str(), tensor))
        .collect();
    gguf_file::write(&mut File::create(path).unwrap(), &metadata, &tensors).unwrap();
}

fn scores(base: Arc<BaseModel>) -> Vec<f32> {
    let mut batcher = Batcher::new(
        base,
        Pool::new(2),
        Limits {
            max_sequences: 1,
            max_cached_tokens: 64,
        },
    );
    let tokens: Vec<u32> = (0..40).map(|i| (i * 37 + 5) % 101).collect();
    batcher.score(&tokens, None).unwrap()
}

#[test]
fn a_converted_model_is_the_model_within_its_precision() {
    let cases = [
        // The weights are whole in bf16; q8_0 keeps 8 bits of them, q4_1 four.
        (SMALL, GgmlDType::F32, 0.0),
        (
            Tiny {
                architecture: QWEN2.architecture,
                kv_heads: 3,
                tied: false,
                ..SMALL
            },
            GgmlDType::F32,
            0.0,
        ),
        (SMALL, GgmlDType::Q8_0, 0.1),
        (SMALL, GgmlDType::Q4_1, 1.0),
    ];
    for (tiny, dtype, tolerance) in cases {
        let dir = tempfile::tempdir().unwrap();
        let gguf = dir.path().join("model.gguf");
        write_gguf(tiny, &gguf, dtype, &[]);
        convert(&gguf, &dir.path().join("hf")).unwrap();
        let pool = Pool::new(2);
        let converted = Arc::new(BaseModel::load(&dir.path().join("hf"), &pool).unwrap());
        let original = tiny.load(&pool);
        assert_eq!(converted.config(), original.config());
        let (ours, exact) = (scores(converted), scores(original));
        let off = ours
            .iter()
            .zip(&exact)
            .map(|(a, b)| (a - b).abs())
            .sum::<f32>()
            / 39.0;
        assert!(off <= tolerance, "{dtype:?} {}: {off}", tiny.architecture);
        let spread = exact.iter().map(|x| (x - exact[0]).abs()).sum::<f32>() / 39.0;
        assert!(
            spread > 1.5,
            "the scores must differ for the comparison to mean anything: {spread}"
        );
    }
}

#[test]
fn what_cannot_be_converted_is_refused_by_name_and_leaves_no_weights() {
    let dir = tempfile::tempdir().unwrap();
    let gguf = dir.path().join("model.gguf");
    let refused = |extra: &[(&str, Value)]| {
        write_gguf(SMALL, &gguf, GgmlDType::F32, extra);
        convert(&gguf, dir.path()).unwrap_err()
    };
    let error = refused(&[("general.architecture", Value::String("gemma".to_owned()))]);
    assert!(matches!(error, GgufError::UnknownArchitecture { found } if found == "gemma"));
    let error = refused(&[("llama.rope.scaling.type", Value::String("yarn".to_owned()))]);
    assert!(matches!(error, GgufError::Unsupported { key } if key == "llama.rope.scaling.type"));
    std::fs::write(&gguf, b"GGUF but no more").unwrap();
    assert!(matches!(
        convert(&gguf, dir.path()).unwrap_err(),
        GgufError::Malformed(_)
    ));
    let missing = dir.path().join("none.gguf");
    assert!(matches!(
        convert(&missing, dir.path()).unwrap_err(),
        GgufError::Io { .. }
    ));
    assert!(!dir.path().join("model.safetensors").exists());
}

#[test]
fn a_matrix_that_stays_quantised_is_the_one_that_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let gguf = dir.path().join("model.gguf");
    for dtype in [GgmlDType::Q8_0, GgmlDType::Q4_0, GgmlDType::Q5_1] {
        write_gguf(SMALL, &gguf, dtype, &[]);
        convert(&gguf, dir.path()).unwrap();
        let converted = std::fs::read(dir.path().join("model.safetensors")).unwrap();
        let converted = SafeTensors::deserialize(&converted).unwrap();
        let mut file = GgufFile::open(&gguf).unwrap();
        let names: Vec<String> = file.names().map(str::to_owned).collect();
        let mut expected_names = converted.names();
        expected_names.sort_unstable();
        assert_eq!(names, expected_names);
        for name in names {
            let Some(matrix) = file.quantized(&name).unwrap() else {
                assert!(name.ends_with("norm.weight"), "{name} was quantised");
                continue;
            };
            let expected = converted.tensor(&name).unwrap();
            assert_eq!([matrix.rows(), matrix.columns()], expected.shape());
            let mut values = vec![bf16::ZERO; matrix.rows() * matrix.columns()];
            for (row, out) in values.chunks_exact_mut(matrix.columns()).enumerate() {
                matrix.dequantize_bf16(row, 0..matrix.columns(), out);
            }
            let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
            assert_eq!(bytes, expected.data(), "{name} in {dtype:?}");
        }
    }
}

#[test]
fn a_matrix_that_is_missing_or_cut_off_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let gguf = dir.path().join("model.gguf");
    write_gguf(SMALL, &gguf, GgmlDType::Q8_0, &[]);
    let mut file = GgufFile::open(&gguf).unwrap();
    let error = file.quantized("lm_head.weight").err().unwrap();
    assert!(matches!(error, GgufError::MissingKey { key } if key == "lm_head.weight"));
    let whole = std::fs::read(&gguf).unwrap();
    std::fs::write(&gguf, &whole[..whole.len() / 2]).unwrap();
    let mut file = GgufFile::open(&gguf).unwrap();
    let names: Vec<String> = file.names().map(str::to_owned).collect();
    let refused = names.iter().filter_map(|name| file.quantized(name).err());
    let refused: Vec<GgufError> = refused.collect();
    assert!(!refused.is_empty());
    assert!(
        refused
            .iter()
            .all(|error| matches!(error, GgufError::Io { .. }))
    );
}
