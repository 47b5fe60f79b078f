//! GGUF: a folder around the file is the model that was written, and trains as the values of its blocks do.

mod common;

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use common::{LLAMA, QWEN2, Tiny, adapter, example};
use engine::export::{MAX_SHARD_BYTES, Merged};
use engine::generate::{Batcher, GenerateRequest, Limits, Sampling};
use engine::gguf::{GgufError, as_folder};
use engine::lora::LoraConfig;
use engine::pool::Pool;
use engine::train::{TrainConfig, Trainer};
use engine::weights::{BaseModel, BaseWeights, LoadError};
use engine::{MemoryLevel, Precision};
use half::bf16;
use safetensors::SafeTensors;

/// Rows a multiple of 32 wide, so that every tensor can be quantised.
const SMALL: Tiny = Tiny {
    hidden: 64,
    inner: 96,
    head_dim: 16,
    ..LLAMA
};

/// Rows a multiple of 256 wide, for the kinds of blocks that llama.cpp calls K.
const WIDE: Tiny = Tiny {
    hidden: 256,
    inner: 256,
    heads: 4,
    head_dim: 64,
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
            (gguf_name(&name), quantized(values, shape, dtype))
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

/// Matrices in blocks, vectors in f32.
fn quantized(values: Vec<f32>, shape: Vec<usize>, dtype: GgmlDType) -> QTensor {
    let dtype = match shape.len() {
        1 => GgmlDType::F32,
        _ => dtype,
    };
    let tensor = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
    QTensor::quantize(&tensor, dtype).unwrap()
}

/// A folder of the values that candle reads from blocks.
fn write_values_of(tiny: Tiny, dtype: GgmlDType, dir: &Path) {
    tiny.write_changed(dir, |_, shape, values| {
        let blocks = quantized(values.to_vec(), shape.to_vec(), dtype);
        let read = blocks.dequantize(&Device::Cpu).unwrap();
        values.copy_from_slice(&read.flatten_all().unwrap().to_vec1::<f32>().unwrap());
    });
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
fn a_folder_around_a_gguf_file_is_the_model_within_its_precision() {
    let cases = [
        // The weights are whole in bf16; q8_0 keeps 8 bits of them, q4_1 four.
        (SMALL, GgmlDType::F32, 0.0),
        (SMALL, GgmlDType::BF16, 0.0),
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
        let gguf = dir.path().join("some.gguf");
        write_gguf(tiny, &gguf, dtype, &[]);
        let folder = dir.path().join("folder");
        as_folder(&gguf, &folder).unwrap();
        let pool = Pool::new(2);
        let base = Arc::new(BaseModel::load(&folder, &pool).unwrap());
        let original = tiny.load(&pool);
        assert_eq!(base.config(), original.config());
        assert_eq!(base.n_parameters(), original.n_parameters());
        let (ours, exact) = (scores(base), scores(original));
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

/// Losses and the bytes of the adapter after three steps.
fn trained(dir: &Path, weights: BaseWeights, precision: Precision) -> (Vec<f32>, Vec<u8>) {
    let pool = Pool::new(2);
    let base = Arc::new(BaseModel::load_as(dir, weights, &pool).unwrap());
    let config = TrainConfig {
        learning_rate: 5e-3,
        total_steps: 3,
        precision,
        memory: MemoryLevel::KeepAll,
        ..TrainConfig::default()
    };
    let adapter = adapter(&base, &LoraConfig::all_linear(5, 8.0), 3);
    let vocab = base.config().vocab_size;
    let mut trainer = Trainer::new(base, adapter, config, pool);
    let steps = (0..3).map(|step| {
        let batch = [70, 33, 2].map(|n| example(vocab, n, step * 10 + n as u64));
        trainer.step(&batch).unwrap().loss
    });
    (steps.collect(), trainer.save_state().unwrap())
}

/// The log-probabilities of an answer to a short prompt, for one sequence and for five.
fn answers(dir: &Path) -> Vec<f32> {
    let base = Arc::new(BaseModel::load(dir, &Pool::new(2)).unwrap());
    let limits = Limits {
        max_sequences: 5,
        max_cached_tokens: 640,
    };
    let mut batcher = Batcher::new(base, Pool::new(2), limits);
    let mut logprobs = Vec::new();
    for n in [1, 5] {
        for i in 0..n {
            let request = GenerateRequest {
                prompt: vec![3 + i, 7, 1],
                adapter: None,
                scope: "".into(),
                sampling: Sampling {
                    temperature: 0.0,
                    ..Sampling::default()
                },
                max_new_tokens: 6,
                stop_token_ids: vec![],
                top_logprobs: None,
                grammar: None,
            };
            batcher.admit(request).unwrap();
        }
        while !batcher.is_idle() {
            let outputs = batcher.step().unwrap().into_iter();
            logprobs.extend(outputs.map(|output| output.unwrap().logprob));
        }
    }
    logprobs
}

#[test]
fn the_blocks_of_a_file_train_and_answer_as_their_values_do() {
    let untied = Tiny {
        tied: false,
        ..SMALL
    };
    let cases = [
        (SMALL, GgmlDType::Q8_0),
        (untied, GgmlDType::Q4_0),
        (SMALL, GgmlDType::Q4_1),
        (SMALL, GgmlDType::Q5_1),
        (WIDE, GgmlDType::Q4K),
        (WIDE, GgmlDType::Q6K),
    ];
    for (tiny, dtype) in cases {
        let dir = tempfile::tempdir().unwrap();
        let (gguf, blocks, values) = (
            dir.path().join("some.gguf"),
            dir.path().join("blocks"),
            dir.path().join("values"),
        );
        write_gguf(tiny, &gguf, dtype, &[]);
        as_folder(&gguf, &blocks).unwrap();
        std::fs::create_dir(&values).unwrap();
        write_values_of(tiny, dtype, &values);
        for precision in [Precision::Fp32, Precision::Bf16] {
            let ours = trained(&blocks, BaseWeights::AsStored, precision);
            let expected = trained(&values, BaseWeights::AsStored, precision);
            assert!(ours == expected, "{dtype:?} in {precision:?}");
        }
        assert_eq!(answers(&blocks), answers(&values), "{dtype:?}");
        // Asked for in bf16, the linears are, whatever the file holds.
        let ours = trained(&blocks, BaseWeights::Bf16, Precision::Fp32);
        let expected = trained(&values, BaseWeights::Bf16, Precision::Fp32);
        assert!(ours == expected, "{dtype:?} as bf16");
    }
}

#[test]
fn a_gguf_file_is_written_out_as_the_values_of_its_blocks() {
    for dtype in [GgmlDType::F16, GgmlDType::Q8_0, GgmlDType::Q5_1] {
        let dir = tempfile::tempdir().unwrap();
        let gguf = dir.path().join("some.gguf");
        write_gguf(SMALL, &gguf, dtype, &[]);
        let (folder, out) = (dir.path().join("folder"), dir.path().join("out"));
        as_folder(&gguf, &folder).unwrap();
        let merged = Merged::new(&folder, None, MAX_SHARD_BYTES).unwrap();
        merged.write_all(&out).unwrap();
        let written = std::fs::read(out.join("model.safetensors")).unwrap();
        let written = SafeTensors::deserialize(&written).unwrap();
        write_values_of(SMALL, dtype, dir.path());
        let expected = std::fs::read(dir.path().join("model.safetensors")).unwrap();
        let expected = SafeTensors::deserialize(&expected).unwrap();
        let names = |file: &SafeTensors<'_>| {
            let mut names: Vec<String> = file.names().into_iter().map(str::to_owned).collect();
            names.sort_unstable();
            names
        };
        assert_eq!(names(&written), names(&expected));
        for (name, values) in expected.tensors() {
            let bytes = values.data().as_chunks::<4>().0.iter();
            let values = bytes.map(|x| f32::from_le_bytes(*x));
            let encoded: Vec<u8> = match (!name.contains("norm"), dtype) {
                (false, _) => values.flat_map(|x| x.to_le_bytes()).collect(),
                (true, GgmlDType::F16) => values
                    .flat_map(|x| half::f16::from_f32(x).to_le_bytes())
                    .collect(),
                (true, _) => values
                    .flat_map(|x| bf16::from_f32(x).to_le_bytes())
                    .collect(),
            };
            assert_eq!(written.tensor(&name).unwrap().data(), encoded, "{name}");
        }
        let config = |dir: &Path| std::fs::read(dir.join("config.json")).unwrap();
        assert_eq!(config(&out), config(&folder));
    }
}

#[test]
fn what_cannot_be_used_is_refused_by_name_and_leaves_no_folder() {
    let dir = tempfile::tempdir().unwrap();
    let (gguf, folder) = (dir.path().join("some.gguf"), dir.path().join("folder"));
    let refused = |extra: &[(&str, Value)]| {
        write_gguf(SMALL, &gguf, GgmlDType::F32, extra);
        as_folder(&gguf, &folder).unwrap_err()
    };
    let error = refused(&[("general.architecture", Value::String("gemma".to_owned()))]);
    assert!(matches!(error, GgufError::UnknownArchitecture { found } if found == "gemma"));
    let error = refused(&[("llama.rope.scaling.type", Value::String("yarn".to_owned()))]);
    assert!(matches!(error, GgufError::Unsupported { key } if key == "llama.rope.scaling.type"));
    let error = refused(&[("llama.attention.head_count", Value::U32(5))]);
    assert!(matches!(error, GgufError::Unsupported { key } if key.contains("attn_q.weight")));
    std::fs::write(&gguf, b"GGUF but no more").unwrap();
    let error = as_folder(&gguf, &folder).unwrap_err();
    assert!(matches!(error, GgufError::Malformed(_)));
    let error = as_folder(&dir.path().join("none.gguf"), &folder).unwrap_err();
    assert!(matches!(error, GgufError::Io { .. }));
    assert!(!folder.exists());
}

#[test]
fn a_file_that_is_cut_off_or_lacks_a_matrix_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (gguf, folder) = (dir.path().join("some.gguf"), dir.path().join("folder"));
    write_gguf(SMALL, &gguf, GgmlDType::Q8_0, &[]);
    as_folder(&gguf, &folder).unwrap();
    let whole = std::fs::read(&gguf).unwrap();
    let pool = Pool::new(1);
    let load = || BaseModel::load(&folder, &pool).err();
    assert!(load().is_none());
    std::fs::remove_file(folder.join("model.gguf")).unwrap();
    std::fs::write(folder.join("model.gguf"), &whole[..whole.len() / 2]).unwrap();
    let error = load().unwrap();
    assert!(matches!(error, LoadError::Gguf(GgufError::CutOff { .. })));
    std::fs::remove_file(folder.join("model.gguf")).unwrap();
    let three_layers = Tiny { layers: 3, ..SMALL };
    std::fs::write(folder.join("config.json"), three_layers.config_json()).unwrap();
    std::fs::write(folder.join("model.gguf"), whole).unwrap();
    let error = load().unwrap();
    let missing = "model.layers.2.input_layernorm.weight";
    assert!(matches!(error, LoadError::MissingTensor { name } if name == missing));
}
