//! Owns the way from a GGUF file to a Hugging Face folder: every tensor dequantised to bf16, under Hugging Face's names; and
//! to matrices that stay quantised. The tokenizer in the file is not its business.

mod quantized;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Seek, Write};
use std::path::{Path, PathBuf};

use candle_core::Device;
use candle_core::quantized::gguf_file::{Content, Value};
use half::bf16;
use serde_json::json;

use crate::quant::QuantError;
pub use quantized::GgufFile;

/// Why a GGUF file cannot be converted.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    #[error("{path:?}: {source}")]
    Io {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("the GGUF file is not valid: {0}")]
    Malformed(#[from] candle_core::Error),
    #[error("architecture {found:?} is not known; known are llama, qwen2")]
    UnknownArchitecture { found: String },
    #[error("the GGUF file has no {key}, or one of the wrong type")]
    MissingKey { key: String },
    #[error("tensor {name} is not known in architecture {architecture}")]
    UnknownTensor { name: String, architecture: String },
    #[error("the GGUF file has {key}, which is not supported")]
    Unsupported { key: String },
    #[error("tensor {name}: {source}")]
    Matrix { name: String, source: QuantError },
}

/// Writes `config.json` and `model.safetensors` (bf16) into `out_dir`, which is made if it is not there. The weights come
/// into place whole or not at all.
/// Errors: as [`GgufError`] says.
pub fn convert(gguf: &Path, out_dir: &Path) -> Result<(), GgufError> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| GgufError::Io { path, source }
    };
    let mut reader = BufReader::new(File::open(gguf).map_err(io(gguf))?);
    let content = Content::read(&mut reader)?;
    let source = Source::new(&content)?;
    let mut tensors = BTreeMap::new();
    for name in content.tensor_infos.keys() {
        tensors.insert(source.target_name(name)?, name.as_str());
    }
    let config = source.config(tensors.contains_key("lm_head.weight"))?;
    std::fs::create_dir_all(out_dir).map_err(io(out_dir))?;
    let (part, whole) = (
        out_dir.join("model.safetensors.part"),
        out_dir.join("model.safetensors"),
    );
    let mut writer = BufWriter::new(File::create(&part).map_err(io(&part))?);
    writer
        .write_all(&header(&content, &tensors))
        .map_err(io(&part))?;
    for (target, name) in &tensors {
        let bytes = source.tensor(&mut reader, name, target)?;
        writer.write_all(&bytes).map_err(io(&part))?;
    }
    let file = writer
        .into_inner()
        .map_err(|error| io(&part)(error.into_error()))?;
    file.sync_all().map_err(io(&part))?;
    let path = out_dir.join("config.json");
    std::fs::write(&path, config).map_err(io(&path))?;
    std::fs::rename(&part, &whole).map_err(io(&whole))
}

/// Modules of a block: GGUF's name, Hugging Face's.
const MODULES: [(&str, &str); 9] = [
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
    ("attn_norm", "input_layernorm"),
    ("ffn_norm", "post_attention_layernorm"),
];

struct Source<'a> {
    content: &'a Content,
    architecture: &'a str,
    n_heads: usize,
    n_kv_heads: usize,
}

impl<'a> Source<'a> {
    fn new(content: &'a Content) -> Result<Self, GgufError> {
        let key = "general.architecture";
        let value = content
            .metadata
            .get(key)
            .and_then(|value| value.to_string().ok());
        let architecture = value
            .ok_or_else(|| GgufError::MissingKey {
                key: key.to_owned(),
            })?
            .as_str();
        if !["llama", "qwen2"].contains(&architecture) {
            return Err(GgufError::UnknownArchitecture {
                found: architecture.to_owned(),
            });
        }
        for key in ["rope.scaling.type", "expert_count"].map(|key| format!("{architecture}.{key}"))
        {
            let value = content.metadata.get(&key);
            let unused = value.is_none_or(|value| match value {
                Value::String(kind) => kind == "none",
                value => number(value) == Some(0.0),
            });
            if !unused {
                return Err(GgufError::Unsupported { key });
            }
        }
        let mut source = Self {
            content,
            architecture,
            n_heads: 0,
            n_kv_heads: 0,
        };
        source.n_heads = source.size("attention.head_count")?;
        source.n_kv_heads = source
            .size("attention.head_count_kv")
            .unwrap_or(source.n_heads);
        Ok(source)
    }

    fn number(&self, key: &str) -> Result<f64, GgufError> {
        let key = format!("{}.{key}", self.architecture);
        self.content
            .metadata
            .get(&key)
            .and_then(number)
            .ok_or(GgufError::MissingKey { key })
    }

    fn size(&self, key: &str) -> Result<usize, GgufError> {
        self.number(key).map(|x| x as usize)
    }

    /// `blk.3.attn_q.weight` → `model.layers.3.self_attn.q_proj.weight`.
    fn target_name(&self, name: &str) -> Result<String, GgufError> {
        let top = match name {
            "token_embd.weight" => Some("model.embed_tokens.weight"),
            "output_norm.weight" => Some("model.norm.weight"),
            "output.weight" => Some("lm_head.weight"),
            _ => None,
        };
        if let Some(top) = top {
            return Ok(top.to_owned());
        }
        let parts: Vec<&str> = name.split('.').collect();
        let module = match parts[..] {
            ["blk", layer, module, kind @ ("weight" | "bias")] => {
                let known = MODULES.iter().find(|(gguf, _)| *gguf == module);
                known.map(|(_, target)| format!("model.layers.{layer}.{target}.{kind}"))
            }
            _ => None,
        };
        let (name, architecture) = (name.to_owned(), self.architecture.to_owned());
        module.ok_or(GgufError::UnknownTensor { name, architecture })
    }

    /// The text of `config.json`.
    fn config(&self, has_head: bool) -> Result<String, GgufError> {
        let embedding = &self.content.tensor_infos.get("token_embd.weight");
        let missing = || GgufError::MissingKey {
            key: "token_embd.weight".to_owned(),
        };
        let vocab_size = embedding.ok_or_else(missing)?.shape.dims()[0];
        let hidden_size = self.size("embedding_length")?;
        let head_dim = self
            .size("attention.key_length")
            .unwrap_or(hidden_size / self.n_heads.max(1));
        let (class, model_type) = match self.architecture {
            "llama" => ("LlamaForCausalLM", "llama"),
            _ => ("Qwen2ForCausalLM", "qwen2"),
        };
        let id = |key: &str| {
            self.content
                .metadata
                .get(&format!("tokenizer.ggml.{key}"))
                .and_then(number)
                .map(|x| x as u32)
        };
        let config = json!({
            "architectures": [class],
            "model_type": model_type,
            "hidden_size": hidden_size,
            "intermediate_size": self.size("feed_forward_length")?,
            "num_hidden_layers": self.size("block_count")?,
            "num_attention_heads": self.n_heads,
            "num_key_value_heads": self.n_kv_heads,
            "head_dim": head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": self.size("context_length")?,
            "rms_norm_eps": shortest(self.number("attention.layer_norm_rms_epsilon")?),
            "rope_theta": shortest(self.number("rope.freq_base").unwrap_or(10_000.0)),
            "vocab_size": vocab_size,
            "tie_word_embeddings": !has_head,
            "bos_token_id": id("bos_token_id"),
            "eos_token_id": id("eos_token_id"),
            "pad_token_id": id("padding_token_id"),
            "torch_dtype": "bfloat16",
        });
        Ok(serde_json::to_string_pretty(&config).expect("a JSON value can be written"))
    }

    /// A tensor's values in bf16, little-endian.
    fn tensor(
        &self,
        reader: &mut (impl std::io::Read + Seek),
        name: &str,
        target: &str,
    ) -> Result<Vec<u8>, GgufError> {
        let tensor = self
            .content
            .tensor(reader, name, &Device::Cpu)?
            .dequantize(&Device::Cpu)?;
        let n_rows = tensor.dims().first().copied().unwrap_or(1);
        let values = tensor.flatten_all()?.to_vec1::<f32>()?;
        Ok(self
            .in_order(values, n_rows, target)?
            .iter()
            .flat_map(|&x| bf16::from_f32(x).to_le_bytes())
            .collect())
    }

    /// Puts the rows of `target` into Hugging Face's order; a row is numbers or the bytes of whole blocks.
    fn in_order<T: Copy>(
        &self,
        values: Vec<T>,
        n_rows: usize,
        target: &str,
    ) -> Result<Vec<T>, GgufError> {
        let n_heads = match target {
            _ if self.architecture != "llama" => return Ok(values),
            t if t.contains("self_attn.q_proj") => self.n_heads,
            t if t.contains("self_attn.k_proj") => self.n_kv_heads,
            _ => return Ok(values),
        };
        unpermute(&values, n_rows, n_heads).ok_or_else(|| GgufError::Unsupported {
            key: format!("{target} with {n_rows} rows"),
        })
    }
}

/// GGUF keeps the pairs of llama's rotary positions side by side, Hugging Face keeps the halves apart.
fn unpermute<T: Copy>(values: &[T], n_rows: usize, n_heads: usize) -> Option<Vec<T>> {
    if n_heads == 0 || !n_rows.is_multiple_of(2 * n_heads) {
        return None;
    }
    let (width, head_dim) = (values.len() / n_rows, n_rows / n_heads);
    let mut ordered = Vec::with_capacity(values.len());
    for row in 0..n_rows {
        let (head, i) = (row / head_dim, row % head_dim);
        let (half, j) = (i / (head_dim / 2), i % (head_dim / 2));
        let from = head * head_dim + 2 * j + half;
        ordered.extend_from_slice(&values[from * width..(from + 1) * width]);
    }
    Some(ordered)
}

/// The head of a safetensors file: its length, then names, shapes and places, padded to eight bytes.
fn header(content: &Content, tensors: &BTreeMap<String, &str>) -> Vec<u8> {
    let mut entries =
        serde_json::Map::from_iter([("__metadata__".to_owned(), json!({"format": "pt"}))]);
    let mut end = 0;
    for (target, name) in tensors {
        let shape = &content.tensor_infos[*name].shape;
        let start = end;
        end += shape.elem_count() * 2;
        let entry = json!({"dtype": "BF16", "shape": shape.dims(), "data_offsets": [start, end]});
        entries.insert(target.clone(), entry);
    }
    let mut text = serde_json::to_string(&entries)
        .expect("a JSON value can be written")
        .into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.append(&mut text);
    bytes
}

fn number(value: &Value) -> Option<f64> {
    match *value {
        Value::U8(x) => Some(f64::from(x)),
        Value::I8(x) => Some(f64::from(x)),
        Value::U16(x) => Some(f64::from(x)),
        Value::I16(x) => Some(f64::from(x)),
        Value::U32(x) => Some(f64::from(x)),
        Value::I32(x) => Some(f64::from(x)),
        Value::U64(x) => Some(x as f64),
        Value::I64(x) => Some(x as f64),
        Value::F32(x) => Some(f64::from(x)),
        Value::F64(x) => Some(x),
        Value::Bool(_) | Value::String(_) | Value::Array(_) => None,
    }
}

/// 1e-5, where the file holds it as f32 and f64 would say 0.000009999999747378752.
fn shortest(x: f64) -> f64 {
    (x as f32)
        .to_string()
        .parse()
        .expect("a printed number can be read")
}
