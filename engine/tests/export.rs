//! Exports: what comes out is the model with its adapter, for our own readers.

mod common;

use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;

use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use common::{LLAMA, QWEN2, Tiny};
use engine::config::ModelConfig;
use engine::export::{ExportError, FileType, Gguf, MAX_SHARD_BYTES, Merged};
use engine::generate::{Batcher, Limits};
use engine::lora::{Adapter, LoraConfig};
use engine::pool::Pool;
use engine::weights::BaseModel;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value as Json, json};

/// Rows a multiple of 32 wide and heads that fill the width, so that llama.cpp would read it too.
const SMALL: Tiny = Tiny {
    hidden: 96,
    inner: 64,
    head_dim: 16,
    ..LLAMA
};

fn fixture(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/{name}"))
}

fn fixture_adapter(name: &str) -> Arc<Adapter> {
    read_adapter(&fixture(name), &fixture(name).join("adapter"))
}

fn read_adapter(base: &Path, dir: &Path) -> Arc<Adapter> {
    let config = std::fs::read_to_string(dir.join("adapter_config.json")).unwrap();
    let weights = std::fs::read(dir.join("adapter_model.safetensors")).unwrap();
    let model = ModelConfig::from_dir(base).unwrap();
    Arc::new(Adapter::from_peft(&config, &weights, &model).unwrap())
}

/// Writes every file; its size must be the one that was foretold.
fn write_merged(merged: &Merged, out: &Path) -> Vec<String> {
    let files: Vec<(String, u64)> = merged.files().map(|(n, s)| (n.to_owned(), s)).collect();
    for (i, (name, size_bytes)) in files.iter().enumerate() {
        let mut bytes = Vec::new();
        merged.write(i, &mut bytes).unwrap();
        assert_eq!(bytes.len() as u64, *size_bytes, "{name}");
        std::fs::write(out.join(name), bytes).unwrap();
    }
    files.into_iter().map(|(name, _)| name).collect()
}

fn write_gguf(gguf: &Gguf) -> Vec<u8> {
    let mut bytes = Vec::new();
    gguf.write(&mut bytes).unwrap();
    assert_eq!(bytes.len() as u64, gguf.size_bytes());
    bytes
}

/// log-probabilities of tokens; as good as logits, up to a constant for each position.
fn scores(base: Arc<BaseModel>, adapter: Option<Arc<Adapter>>) -> Vec<f32> {
    let vocab = base.config().vocab_size;
    let limits = Limits {
        max_sequences: 1,
        max_cached_tokens: 64,
    };
    let tokens: Vec<u32> = (0..40).map(|i| ((i * 37 + 5) % vocab) as u32).collect();
    let mut batcher = Batcher::new(base, Pool::new(2), limits);
    batcher.score(&tokens, adapter.as_deref()).unwrap()
}

fn load(dir: &Path) -> Arc<BaseModel> {
    Arc::new(BaseModel::load(dir, &Pool::new(2)).unwrap())
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let off = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    off.fold(0.0, f32::max)
}

#[test]
fn a_merged_model_of_every_family_scores_as_base_and_adapter() {
    let mut n_models = 0;
    for entry in std::fs::read_dir(fixture("")).unwrap() {
        let dir = entry.unwrap().path();
        if !dir.join("adapter").is_dir() {
            continue;
        }
        let (base, adapter) = (in_f32(&dir), read_adapter(&dir, &dir.join("adapter")));
        let out = tempfile::tempdir().unwrap();
        let merged = Merged::new(base.path(), Some(adapter.clone()), MAX_SHARD_BYTES).unwrap();
        assert_eq!(
            write_merged(&merged, out.path()),
            ["config.json", "model.safetensors"]
        );
        let ours = scores(load(out.path()), None);
        let tuned = scores(load(base.path()), Some(adapter));
        let off = largest_difference(&ours, &tuned);
        assert!(off <= 1e-4, "{dir:?}: {off}"); // f32 sums in another order
        let effect = largest_difference(&tuned, &scores(load(base.path()), None));
        assert!(
            effect > 0.1,
            "{dir:?}: the adapter must change something: {effect}"
        );
        n_models += 1;
    }
    assert!(n_models >= 15, "{n_models} models with adapters");
}

#[test]
fn every_kind_of_adapter_is_merged() {
    let mut n_untied = 0;
    for entry in std::fs::read_dir(fixture("adapters")).unwrap() {
        let dir = entry.unwrap().path();
        let config = std::fs::read(dir.join("adapter_config.json")).unwrap();
        let config: Json = serde_json::from_slice(&config).unwrap();
        if config["init_lora_weights"] == "pissa" {
            // It is PEFT's own, and for another base than this one.
            continue;
        }
        let base = fixture(config["base_model_name_or_path"].as_str().unwrap());
        let is_tied = |dir: &Path| ModelConfig::from_dir(dir).unwrap().tie_word_embeddings;
        let adapter = read_adapter(&base, &dir);
        let (out, base) = (tempfile::tempdir().unwrap(), in_f32(&base));
        let merged = Merged::new(base.path(), Some(adapter.clone()), MAX_SHARD_BYTES).unwrap();
        write_merged(&merged, out.path());
        n_untied += usize::from(is_tied(base.path()) && !is_tied(out.path()));
        let ours = scores(load(out.path()), None);
        let tuned = scores(load(base.path()), Some(adapter));
        let off = largest_difference(&ours, &tuned);
        assert!(off <= 1e-4, "{dir:?}: {off}"); // f32 sums in another order
        let effect = largest_difference(&tuned, &scores(load(base.path()), None));
        assert!(effect > 0.1, "{dir:?}: {effect}");
    }
    assert!(n_untied > 0, "no trained head or embedding was met");
}

/// The folder with its weights in f32, so that merging rounds nothing.
fn in_f32(dir: &Path) -> tempfile::TempDir {
    let out = tempfile::tempdir().unwrap();
    std::fs::copy(dir.join("config.json"), out.path().join("config.json")).unwrap();
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = tensors_in(dir)
        .into_iter()
        .map(|(name, (shape, values))| {
            let bytes = values.iter().flat_map(|x| x.to_le_bytes());
            (name, shape, bytes.collect())
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        let view = safetensors::tensor::TensorView::new(Dtype::F32, shape.clone(), bytes);
        (name, view.unwrap())
    });
    let bytes = safetensors::serialize(views, None).unwrap();
    std::fs::write(out.path().join("model.safetensors"), bytes).unwrap();
    out
}

#[test]
fn what_pissa_took_out_of_the_base_is_not_added_twice() {
    let dir = tempfile::tempdir().unwrap();
    SMALL.write(dir.path());
    let pissa = LoraConfig {
        init_lora_weights: engine::lora::Init::Pissa,
        ..LoraConfig::all_linear(4, 8.0)
    };
    let base = load(dir.path());
    let fresh = Adapter::init_from(&base, &pissa, 1, &Pool::new(2)).unwrap();
    let (merged, untouched) = (
        merged_tensors(dir.path(), Arc::new(fresh)),
        tensors_in(dir.path()),
    );
    for (name, (_, values)) in untouched {
        let off = largest_difference(&merged[&name].1, &values);
        assert!(off < 1e-5, "{name}: {off}"); // what W is mostly made of, added and taken away
    }
}

#[test]
fn weights_are_rounded_once_and_all_others_stay_as_they_are() {
    let (base, adapter) = (fixture("tiny_qwen2"), fixture_adapter("tiny_qwen2"));
    let merged = Merged::new(&base, Some(adapter.clone()), MAX_SHARD_BYTES).unwrap();
    let out = tempfile::tempdir().unwrap();
    write_merged(&merged, out.path());
    let before = std::fs::read(base.join("model.safetensors")).unwrap();
    let after = std::fs::read(out.path().join("model.safetensors")).unwrap();
    let (before, after) = (
        SafeTensors::deserialize(&before).unwrap(),
        SafeTensors::deserialize(&after).unwrap(),
    );
    assert_eq!(before.len(), after.len());
    let mut n_changed = 0;
    for (name, old) in before.tensors() {
        let new = after.tensor(&name).unwrap();
        assert_eq!((new.dtype(), new.shape()), (old.dtype(), old.shape()));
        assert_eq!(new.dtype(), Dtype::BF16);
        n_changed += usize::from(new.data() != old.data());
        let is_target = name.contains("_proj.weight");
        assert_eq!(new.data() != old.data(), is_target, "{name}");
    }
    assert_eq!(n_changed, 3 * 7);
    // One value by hand: layer 1, k_proj, row 5, column 7.
    let value = |tensors: &SafeTensors<'_>| {
        let tensor = tensors
            .tensor("model.layers.1.self_attn.k_proj.weight")
            .unwrap();
        let at = 2 * (5 * 64 + 7);
        half::bf16::from_le_bytes(tensor.data()[at..at + 2].try_into().unwrap())
    };
    let (a, b) = adapter.matrices(1, engine::lora::Module::K).unwrap();
    let change: f32 = (0..8).map(|k| b[5 * 8 + k] * a[k * 64 + 7]).sum();
    let expected = value(&before).to_f32() + 32.0 / 8.0 * change;
    assert_eq!(value(&after), half::bf16::from_f32(expected));
}

#[test]
fn a_large_model_is_cut_into_shards_with_an_index() {
    let name = "tiny_llama_tied";
    let (base, adapter) = (fixture(name), fixture_adapter(name));
    let out = tempfile::tempdir().unwrap();
    let merged = Merged::new(&base, Some(adapter.clone()), 200_000).unwrap();
    let names = write_merged(&merged, out.path());
    let shards: Vec<&String> = names
        .iter()
        .filter(|n| n.ends_with(".safetensors"))
        .collect();
    assert_eq!(shards[0], "model-00001-of-00004.safetensors");
    assert_eq!(shards.len(), 4);
    let index = std::fs::read(out.path().join("model.safetensors.index.json")).unwrap();
    let index: Json = serde_json::from_slice(&index).unwrap();
    let total: u64 = shards
        .iter()
        .map(|shard| {
            let bytes = std::fs::read(out.path().join(shard)).unwrap();
            let tensors = SafeTensors::deserialize(&bytes).unwrap();
            for tensor in tensors.names() {
                assert_eq!(index["weight_map"][tensor], ***shard);
            }
            tensors
                .iter()
                .map(|(_, t)| t.data().len() as u64)
                .sum::<u64>()
        })
        .sum();
    assert_eq!(index["metadata"]["total_size"], total);
    let whole = scores(load(&base), Some(adapter));
    let off = largest_difference(&scores(load(out.path()), None), &whole);
    assert!(off <= 1e-4, "{off}"); // f32 sums in another order
}

#[test]
fn a_tied_head_is_written_once_and_the_other_files_come_along() {
    let dir = tempfile::tempdir().unwrap();
    let untied = Tiny {
        tied: false,
        ..SMALL
    };
    untied.write(dir.path());
    std::fs::write(dir.path().join("config.json"), SMALL.config_json()).unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
    std::fs::write(dir.path().join("chat_template.jinja"), "x").unwrap();
    std::fs::write(dir.path().join("notes.txt"), "not a part of the model").unwrap();
    let out = tempfile::tempdir().unwrap();
    let merged = Merged::new(dir.path(), None, MAX_SHARD_BYTES).unwrap();
    let names = write_merged(&merged, out.path());
    let expected = [
        "config.json",
        "tokenizer.json",
        "chat_template.jinja",
        "model.safetensors",
    ];
    assert_eq!(names, expected);
    let bytes = std::fs::read(out.path().join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    assert!(tensors.tensor("lm_head.weight").is_err());
    assert_eq!(tensors.len(), untied.tensors().len() - 1);
}

#[test]
fn an_adapter_of_another_model_is_refused() {
    let adapter = fixture_adapter("tiny_llama_tied");
    for other in ["tiny_llama_untied", "tiny_qwen2"] {
        let error = Merged::new(&fixture(other), Some(adapter.clone()), MAX_SHARD_BYTES);
        assert!(
            matches!(error, Err(ExportError::NotInBase { .. })),
            "{other}"
        );
    }
}

/// A model with an adapter, and the adapter.
fn tuned(tiny: Tiny, dir: &Path) -> Arc<Adapter> {
    tiny.write(dir);
    let config = LoraConfig::all_linear(4, 8.0);
    Arc::new(common::adapter(&load(dir), &config, 3))
}

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Every tensor of a folder: its shape, and its values widened to f32.
fn tensors_in(dir: &Path) -> Tensors {
    let files = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let files = files.filter(|path| path.extension().is_some_and(|end| end == "safetensors"));
    files
        .flat_map(|path| tensors_of(&std::fs::read(path).unwrap()))
        .collect()
}

fn tensors_of(bytes: &[u8]) -> Tensors {
    let tensors = SafeTensors::deserialize(bytes).unwrap();
    let widened = |tensor: &safetensors::tensor::TensorView<'_>| -> Vec<f32> {
        let n = tensor.dtype().bitsize() / 8;
        let values = tensor.data().chunks_exact(n);
        // bf16 is the upper half of f32.
        let whole = |b: &[u8]| [&[0; 4][..4 - n], b].concat().try_into().unwrap();
        values.map(|b| f32::from_le_bytes(whole(b))).collect()
    };
    let tensors = tensors.tensors().into_iter();
    tensors
        .map(|(name, tensor)| (name, (tensor.shape().to_vec(), widened(&tensor))))
        .collect()
}

fn merged_tensors(base: &Path, adapter: Arc<Adapter>) -> Tensors {
    let out = tempfile::tempdir().unwrap();
    let merged = Merged::new(base, Some(adapter), MAX_SHARD_BYTES).unwrap();
    write_merged(&merged, out.path());
    tensors_in(out.path())
}

#[test]
fn our_reader_reads_back_what_was_written_as_gguf() {
    let qwen2 = Tiny {
        architecture: QWEN2.architecture,
        kv_heads: 3,
        tied: false,
        ..SMALL
    };
    for tiny in [SMALL, qwen2] {
        let dir = tempfile::tempdir().unwrap();
        let adapter = tuned(tiny, dir.path());
        let end = vec![("tokenizer.ggml.eos_token_id".to_owned(), Value::U32(2))];
        let gguf = Gguf::new(dir.path(), Some(adapter.clone()), FileType::Bf16, "x", end);
        let file = dir.path().join("model.gguf");
        std::fs::write(&file, write_gguf(&gguf.unwrap())).unwrap();
        let (around, out) = (dir.path().join("around"), dir.path().join("back"));
        engine::gguf::as_folder(&file, &around).unwrap();
        let back = Merged::new(&around, None, MAX_SHARD_BYTES).unwrap();
        back.write_all(&out).unwrap();
        let config = |dir: &Path| ModelConfig::from_dir(dir).unwrap();
        assert_eq!(config(&out), config(dir.path()));
        let (merged, back) = (merged_tensors(dir.path(), adapter), tensors_in(&out));
        let names = |tensors: &Tensors| tensors.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&merged), names(&back));
        for (name, (_, values)) in merged {
            let rounded: Vec<f32> = values
                .iter()
                .map(|&x| half::bf16::from_f32(x).to_f32())
                .collect();
            assert_eq!(back[&name].1, rounded, "{name}");
        }
    }
}

#[test]
fn every_type_holds_the_merged_weights_and_q8_0_is_ggmls() {
    let dir = tempfile::tempdir().unwrap();
    let adapter = tuned(SMALL, dir.path());
    let (shape, values) = merged_tensors(dir.path(), adapter.clone())
        .remove("model.layers.1.mlp.up_proj.weight")
        .unwrap();
    let values = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
    let types = [
        (FileType::F32, GgmlDType::F32),
        (FileType::F16, GgmlDType::F16),
        (FileType::Bf16, GgmlDType::BF16),
        (FileType::Q8_0, GgmlDType::Q8_0),
    ];
    for (file_type, dtype) in types {
        let gguf = Gguf::new(dir.path(), Some(adapter.clone()), file_type, "x", vec![]).unwrap();
        let bytes = write_gguf(&gguf);
        let mut reader = Cursor::new(&bytes);
        let content = Content::read(&mut reader).unwrap();
        let ours = content
            .tensor(&mut reader, "blk.1.ffn_up.weight", &Device::Cpu)
            .unwrap();
        let theirs = QTensor::quantize(&values, dtype).unwrap();
        assert_eq!(ours.dtype(), dtype);
        assert_eq!(ours.data().unwrap(), theirs.data().unwrap(), "{dtype:?}");
        let norm = content
            .tensor(&mut reader, "output_norm.weight", &Device::Cpu)
            .unwrap();
        assert_eq!(norm.dtype(), GgmlDType::F32);
    }
}

#[test]
fn metadata_says_what_llama_cpp_wants_and_carries_the_vocabulary() {
    let dir = fixture("tiny_llama_untied");
    let tokens = vec![(
        "tokenizer.ggml.tokens".to_owned(),
        Value::Array(vec![Value::String("é".to_owned())]),
    )];
    let gguf = Gguf::new(&dir, None, FileType::Q8_0, "my-model", tokens).unwrap();
    let content = Content::read(&mut Cursor::new(write_gguf(&gguf))).unwrap();
    let get = |key: &str| format!("{:?}", content.metadata[key]);
    let expected = [
        ("general.architecture", "String(\"llama\")"),
        ("general.name", "String(\"my-model\")"),
        ("general.file_type", "U32(7)"),
        ("llama.vocab_size", "U32(512)"),
        ("llama.context_length", "U32(256)"),
        ("llama.embedding_length", "U32(64)"),
        ("llama.feed_forward_length", "U32(128)"),
        ("llama.block_count", "U32(2)"),
        ("llama.attention.head_count", "U32(4)"),
        ("llama.attention.head_count_kv", "U32(2)"),
        ("llama.attention.key_length", "U32(16)"),
        ("llama.attention.layer_norm_rms_epsilon", "F32(1e-6)"),
        ("llama.rope.freq_base", "F32(500000.0)"),
        ("llama.rope.dimension_count", "U32(16)"),
        ("tokenizer.ggml.tokens", "Array([String(\"é\")])"),
    ];
    for (key, value) in expected {
        assert_eq!(get(key), value, "{key}");
    }
}

/// What a GGUF file of SMALL with another `config.json` says; `changes` are put over SMALL's.
fn gguf_of(changes: Json) -> Result<Content, ExportError> {
    let dir = tempfile::tempdir().unwrap();
    SMALL.write(dir.path());
    let mut config: Json = serde_json::from_str(&SMALL.config_json()).unwrap();
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let gguf = Gguf::new(dir.path(), None, FileType::F32, "x", vec![])?;
    Ok(Content::read(&mut Cursor::new(write_gguf(&gguf))).unwrap())
}

#[test]
fn a_window_that_llama_cpp_does_not_know_ends_the_context() {
    let mistral = json!({"architectures": ["MistralForCausalLM"], "sliding_window": 100});
    let content = gguf_of(mistral).unwrap();
    let length = content.metadata["llama.context_length"].to_u32().unwrap();
    assert_eq!(length, 100, "beyond the window the two would differ");
}

#[test]
fn llama_3s_positions_become_a_tensor() {
    let rope = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64});
    let content = gguf_of(json!({"rope_scaling": rope})).unwrap();
    assert_eq!(content.tensor_infos["rope_freqs.weight"].shape.dims(), [8]);
    assert!(
        !gguf_of(json!({}))
            .unwrap()
            .tensor_infos
            .contains_key("rope_freqs.weight")
    );
}

/// Writes a folder of f32 tensors whose values count up.
fn write_folder(dir: &Path, config: Json, tensors: &[(&str, &[usize])]) {
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let mut next = 0.0f32;
    let tensors: Vec<(&str, &[usize], Vec<u8>)> = tensors
        .iter()
        .map(|(name, shape)| {
            let bytes = (0..shape.iter().product()).flat_map(|_: usize| {
                next += 1.0;
                next.to_le_bytes()
            });
            (*name, *shape, bytes.collect())
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        let view = safetensors::tensor::TensorView::new(Dtype::F32, shape.to_vec(), bytes);
        (*name, view.unwrap())
    });
    let bytes = safetensors::serialize(views, None).unwrap();
    std::fs::write(dir.join("model.safetensors"), bytes).unwrap();
}

/// The values of a tensor of the file, and its shape.
fn values_of(dir: &Path, name: &str) -> (Vec<usize>, Vec<f32>) {
    let gguf = Gguf::new(dir, None, FileType::F32, "x", vec![]).unwrap();
    let mut reader = Cursor::new(write_gguf(&gguf));
    let content = Content::read(&mut reader).unwrap();
    let tensor = content.tensor(&mut reader, name, &Device::Cpu).unwrap();
    let tensor = tensor.dequantize(&Device::Cpu).unwrap();
    let values = tensor.flatten_all().unwrap().to_vec1().unwrap();
    (tensor.dims().to_vec(), values)
}

#[test]
fn experts_are_stacked_in_their_order_and_none_may_be_missing() {
    let dir = tempfile::tempdir().unwrap();
    let config = |n_experts: usize| {
        json!({"architectures": ["Qwen3MoeForCausalLM"], "hidden_size": 2, "intermediate_size": 2, "vocab_size": 2,
            "num_hidden_layers": 1, "num_attention_heads": 1, "num_experts": n_experts, "num_experts_per_tok": 1,
            "norm_topk_prob": true})
    };
    let name = |i| format!("model.layers.0.mlp.experts.{i}.up_proj.weight");
    let names: Vec<String> = (0..11).map(name).collect();
    let tensors: Vec<(&str, &[usize])> = names.iter().map(|n| (n.as_str(), &[1, 2][..])).collect();
    write_folder(dir.path(), config(11), &tensors);
    let (shape, values) = values_of(dir.path(), "blk.0.ffn_up_exps.weight");
    let expected: Vec<f32> = (1..=22).map(|i| i as f32).collect();
    assert_eq!((shape, values), (vec![11, 1, 2], expected));
    write_folder(dir.path(), config(12), &tensors);
    let error = Gguf::new(dir.path(), None, FileType::F32, "x", vec![]);
    let error = error.err().map(|error| error.to_string());
    assert_eq!(error.unwrap(), "tensor blk.0.ffn_up_exps.weight is missing");
}

#[test]
fn gemmas_norms_are_written_with_the_one_they_add() {
    let dir = tempfile::tempdir().unwrap();
    let config = json!({"architectures": ["Gemma2ForCausalLM"], "hidden_size": 4, "intermediate_size": 2, "vocab_size": 2,
        "num_hidden_layers": 1, "num_attention_heads": 1, "query_pre_attn_scalar": 4, "attn_logit_softcapping": 50.0});
    write_folder(dir.path(), config, &[("model.norm.weight", &[4])]);
    let (_, values) = values_of(dir.path(), "output_norm.weight");
    assert_eq!(values, [2.0, 3.0, 4.0, 5.0]);
}

#[test]
fn what_llama_cpp_computes_otherwise_is_refused_by_name() {
    let gemma = json!({"architectures": ["Gemma2ForCausalLM"], "query_pre_attn_scalar": 99, "attn_logit_softcapping": 50.0});
    let cases = [
        (
            json!({"architectures": ["MambaForCausalLM"]}),
            "architecture \"MambaForCausalLM\" cannot be written as GGUF; known are LlamaForCausalLM, ",
        ),
        (
            json!({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}),
            "rope_type = dynamic cannot be written as GGUF: ",
        ),
        (
            json!({"architectures": ["Qwen2ForCausalLM"], "head_dim": 32}),
            "head_dim = 32 cannot be written as GGUF: ",
        ),
        (
            gemma,
            "query_pre_attn_scalar = 99 cannot be written as GGUF: ",
        ),
        (
            json!({"architectures": ["Phi3ForCausalLM"], "hidden_size": null}),
            "config.json has no hidden_size, or one of the wrong type",
        ),
    ];
    for (changes, expected) in cases {
        let error = gguf_of(changes).expect_err(expected).to_string();
        assert!(error.starts_with(expected), "{error}");
    }
}
