//! Owns the way from a GGUF file to a Hugging Face folder: names, the order of rows, and `config.json`. The weights stay in
//! the file; the tokenizer in it is not its business.

use std::io::Cursor;
use std::path::{Path, PathBuf};

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::{Content, TensorInfo, Value};
use safetensors::Dtype;
use serde_json::json;

use crate::quant::GgmlType;
use crate::stored::{Encoding, GGUF_FILE, Stored};

/// Why a GGUF file cannot be used.
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
    #[error("the GGUF file ends before tensor {name} does; copy or download it again")]
    CutOff { name: String },
}

/// Makes `out_dir` a folder that loads: `config.json`, and the file itself as `model.gguf`, linked where that can be.
/// Errors: as [`GgufError`] says.
pub fn as_folder(gguf: &Path, out_dir: &Path) -> Result<(), GgufError> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| GgufError::Io { path, source }
    };
    let file = std::fs::File::open(gguf).map_err(io(gguf))?;
    // SAFETY: the map is private and read once, here.
    let map = unsafe { memmap2::Mmap::map(&file) }.map_err(io(gguf))?;
    let content = Content::read(&mut Cursor::new(&map[..]))?;
    let source = Source::new(&content)?;
    let tensors = source.tensors(map.len(), 0)?;
    let has_head = tensors.iter().any(|tensor| tensor.name == "lm_head.weight");
    let config = source.config(has_head)?;
    std::fs::create_dir_all(out_dir).map_err(io(out_dir))?;
    let path = out_dir.join("config.json");
    std::fs::write(&path, config).map_err(io(&path))?;
    let path = out_dir.join(GGUF_FILE);
    if std::fs::hard_link(gguf, &path).is_err() {
        std::fs::copy(gguf, &path).map_err(io(&path))?;
    }
    Ok(())
}

/// The tensors of file number `file`, whose bytes are `map`, in the order of their bytes.
/// Errors: as [`GgufError`] says.
pub(crate) fn tensors(map: &[u8], file: usize) -> Result<Vec<Stored>, GgufError> {
    let content = Content::read(&mut Cursor::new(map))?;
    Source::new(&content)?.tensors(map.len(), file)
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

    /// Every tensor of a file of `len` bytes, in the order of their bytes.
    fn tensors(&self, len: usize, file: usize) -> Result<Vec<Stored>, GgufError> {
        let infos = self.content.tensor_infos.iter();
        let stored = infos.map(|(name, info)| {
            let stored = self.stored(name, info, file)?;
            let cut_off = || GgufError::CutOff { name: name.clone() };
            (stored.bytes.end <= len)
                .then_some(stored)
                .ok_or_else(cut_off)
        });
        let mut tensors = stored.collect::<Result<Vec<_>, _>>()?;
        tensors.sort_by_key(|tensor| (tensor.bytes.start, tensor.bytes.end));
        Ok(tensors)
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

    fn stored(&self, name: &str, info: &TensorInfo, file: usize) -> Result<Stored, GgufError> {
        let target = self.target_name(name)?;
        let shape = info.shape.dims();
        let unsupported = |what: String| GgufError::Unsupported {
            key: format!("{name} {what}"),
        };
        let encoding = encoding(info.ggml_dtype)
            .ok_or_else(|| unsupported(format!("in {:?}", info.ggml_dtype)))?;
        let width = shape.last().copied().unwrap_or(1);
        if !width.is_multiple_of(info.ggml_dtype.block_size()) {
            return Err(unsupported(format!("in rows of {width}, not whole blocks")));
        }
        let n_interleaved = self.n_interleaved(&target);
        let n_rows = shape.first().copied().unwrap_or(1);
        if n_interleaved.is_some_and(|n| n == 0 || !n_rows.is_multiple_of(2 * n)) {
            return Err(unsupported(format!("with {n_rows} rows")));
        }
        let start = self.content.tensor_data_offset.saturating_add(info.offset) as usize;
        let n_blocks = info.shape.elem_count() / info.ggml_dtype.block_size();
        let end = start.saturating_add(n_blocks.saturating_mul(info.ggml_dtype.type_size()));
        Ok(Stored {
            name: target,
            encoding,
            shape: shape.to_vec(),
            n_interleaved,
            file,
            bytes: start..end,
        })
    }

    /// GGUF keeps the pairs of llama's rotary positions side by side, Hugging Face keeps the halves apart.
    fn n_interleaved(&self, target: &str) -> Option<usize> {
        match target {
            _ if self.architecture != "llama" => None,
            t if t.contains("self_attn.q_proj") => Some(self.n_heads),
            t if t.contains("self_attn.k_proj") => Some(self.n_kv_heads),
            _ => None,
        }
    }
}

fn encoding(dtype: GgmlDType) -> Option<Encoding> {
    Some(match dtype {
        GgmlDType::F32 => Encoding::Numbers(Dtype::F32),
        GgmlDType::F16 => Encoding::Numbers(Dtype::F16),
        GgmlDType::BF16 => Encoding::Numbers(Dtype::BF16),
        GgmlDType::Q4_0 => Encoding::Blocks(GgmlType::Q4_0),
        GgmlDType::Q4_1 => Encoding::Blocks(GgmlType::Q4_1),
        GgmlDType::Q5_0 => Encoding::Blocks(GgmlType::Q5_0),
        GgmlDType::Q5_1 => Encoding::Blocks(GgmlType::Q5_1),
        GgmlDType::Q8_0 => Encoding::Blocks(GgmlType::Q8_0),
        GgmlDType::Q2K => Encoding::Blocks(GgmlType::Q2K),
        GgmlDType::Q3K => Encoding::Blocks(GgmlType::Q3K),
        GgmlDType::Q4K => Encoding::Blocks(GgmlType::Q4K),
        GgmlDType::Q5K => Encoding::Blocks(GgmlType::Q5K),
        GgmlDType::Q6K => Encoding::Blocks(GgmlType::Q6K),
        GgmlDType::Q8_1 | GgmlDType::Q8K => return None,
    })
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
