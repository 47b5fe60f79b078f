//! Tokenizers in GGUF files: a Hugging Face tokenizer out of the metadata, and metadata out of a Hugging Face tokenizer.
//! The weights are the engine's.

mod pre_tokenizer;
mod sentencepiece;
mod vocabulary;

use std::collections::HashMap;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{Content, Value as Meta};
use serde_json::{Map, Value, json};

use self::pre_tokenizer::PreTokenizer;
pub use self::vocabulary::{VocabularyError, vocabulary};

#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    #[error("cannot read {}: {source}", path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("cannot write {}: {source}", path.display())]
    Write {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{} is not a GGUF file: {reason}", path.display())]
    Invalid { path: PathBuf, reason: String },
    #[error("GGUF metadata lacks {0}, or it has another type")]
    Missing(String),
    #[error("GGUF tokenizer model '{0}' is not supported; known: gpt2")]
    UnknownModel(String),
    #[error(
        "GGUF pre-tokenizer '{0}' is not supported; known: gpt-2, llama-bpe, dbrx, qwen2, smollm"
    )]
    UnknownPreTokenizer(String),
    #[error("GGUF vocabulary has the token '{0}' twice")]
    DuplicateToken(String),
    #[error("GGUF {key} is {id}, but there are only {n_tokens} tokens")]
    NoSuchToken {
        key: &'static str,
        id: u64,
        n_tokens: usize,
    },
}

/// Kinds of tokens in `tokenizer.ggml.token_type`.
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// Writes `tokenizer.json`, `tokenizer_config.json` (with the chat template) and `special_tokens_map.json` into
/// `out_dir`, which must exist.
pub fn write_tokenizer(gguf: &Path, out_dir: &Path) -> Result<(), GgufError> {
    let metadata = read_metadata(gguf)?;
    let tokenizer = GgufTokenizer::new(&metadata)?;
    write(out_dir, "tokenizer.json", &tokenizer.tokenizer_json()?)?;
    write(
        out_dir,
        "tokenizer_config.json",
        &tokenizer.config_json(&metadata),
    )?;
    write(
        out_dir,
        "special_tokens_map.json",
        &Value::Object(tokenizer.special_tokens),
    )
}

fn read_metadata(gguf: &Path) -> Result<HashMap<String, Meta>, GgufError> {
    let file = File::open(gguf).map_err(|source| GgufError::Read {
        path: gguf.to_owned(),
        source,
    })?;
    let content = Content::read(&mut BufReader::new(file)).map_err(|error| GgufError::Invalid {
        path: gguf.to_owned(),
        reason: error.to_string(),
    })?;
    Ok(content.metadata)
}

fn write(out_dir: &Path, name: &str, json: &Value) -> Result<(), GgufError> {
    let path = out_dir.join(name);
    let text = format!("{json:#}\n");
    std::fs::write(&path, text).map_err(|source| GgufError::Write { path, source })
}

/// What the metadata says of the tokenizer.
struct GgufTokenizer {
    tokens: Vec<String>,
    /// By token; empty where the file has none.
    token_types: Vec<i64>,
    merges: Vec<String>,
    pre: PreTokenizer,
    /// `bos_token` and the like, in the file's order.
    special_tokens: Map<String, Value>,
    adds_bos: bool,
}

/// One template, or a list of them by name where the file has others besides its usual one.
fn chat_template(metadata: &HashMap<String, Meta>) -> Option<Value> {
    let usual = text(metadata, "tokenizer.chat_template").ok()?;
    let named = |name: &str, template: String| json!({"name": name, "template": template});
    let others = metadata.keys().filter_map(|key| {
        let name = key.strip_prefix("tokenizer.chat_template.")?;
        Some(named(name, text(metadata, key).ok()?))
    });
    let mut others: Vec<Value> = others.collect();
    if others.is_empty() {
        return Some(usual.into());
    }
    others.sort_by_key(|one| one["name"].to_string());
    others.insert(0, named("default", usual));
    Some(others.into())
}

impl GgufTokenizer {
    fn new(metadata: &HashMap<String, Meta>) -> Result<Self, GgufError> {
        let model = text(metadata, "tokenizer.ggml.model")?;
        if model != "gpt2" {
            return Err(GgufError::UnknownModel(model));
        }
        let tokens = texts(metadata, "tokenizer.ggml.tokens")?;
        let mut special_tokens = Map::new();
        for (name, key) in SPECIAL_TOKENS {
            let Some(id) = metadata.get(key).and_then(integer) else {
                continue;
            };
            let token = usize::try_from(id).ok().and_then(|id| tokens.get(id));
            let Some(token) = token else {
                let id = u64::try_from(id).unwrap_or(u64::MAX);
                return Err(GgufError::NoSuchToken {
                    key,
                    id,
                    n_tokens: tokens.len(),
                });
            };
            special_tokens.insert(name.to_owned(), token.clone().into());
        }
        let token_types = match metadata.get("tokenizer.ggml.token_type") {
            Some(Meta::Array(types)) => types.iter().filter_map(integer).collect(),
            _ => Vec::new(),
        };
        Ok(Self {
            pre: PreTokenizer::parse(&text(metadata, "tokenizer.ggml.pre")?)?,
            merges: texts(metadata, "tokenizer.ggml.merges")?,
            adds_bos: matches!(
                metadata.get("tokenizer.ggml.add_bos_token"),
                Some(Meta::Bool(true))
            ),
            tokens,
            token_types,
            special_tokens,
        })
    }

    fn tokenizer_json(&self) -> Result<Value, GgufError> {
        let mut vocab = Map::new();
        for (id, token) in self.tokens.iter().enumerate() {
            if vocab.insert(token.clone(), id.into()).is_some() {
                return Err(GgufError::DuplicateToken(token.clone()));
            }
        }
        let normalizer = match self.pre {
            PreTokenizer::Qwen2 => json!({"type": "NFC"}),
            _ => Value::Null,
        };
        Ok(json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": self.added_tokens(),
            "normalizer": normalizer,
            "pre_tokenizer": self.pre.json(),
            "post_processor": self.post_processor(),
            "decoder": {
                "type": "ByteLevel",
                "add_prefix_space": true,
                "trim_offsets": true,
                "use_regex": true,
            },
            "model": {
                "type": "BPE",
                "dropout": null,
                "unk_token": null,
                "continuing_subword_prefix": null,
                "end_of_word_suffix": null,
                "fuse_unk": false,
                "byte_fallback": false,
                "ignore_merges": self.pre.ignores_merges(),
                "vocab": vocab,
                "merges": self.merges,
            },
        }))
    }

    /// Control tokens, and the words a user defined.
    fn added_tokens(&self) -> Vec<Value> {
        let added = |(id, (token, kind)): (usize, (&String, &i64))| {
            (*kind == CONTROL || *kind == USER_DEFINED).then(|| {
                json!({
                    "id": id,
                    "content": token,
                    "single_word": false,
                    "lstrip": false,
                    "rstrip": false,
                    "normalized": false,
                    "special": *kind == CONTROL,
                })
            })
        };
        self.tokens
            .iter()
            .zip(&self.token_types)
            .enumerate()
            .filter_map(added)
            .collect()
    }

    /// Puts the beginning-of-text token before a text that is encoded without a template.
    fn post_processor(&self) -> Value {
        let Some(bos) = self
            .special_tokens
            .get("bos_token")
            .filter(|_| self.adds_bos)
        else {
            return Value::Null;
        };
        let id = self
            .tokens
            .iter()
            .position(|token| Some(token.as_str()) == bos.as_str());
        let special = json!({"SpecialToken": {"id": bos, "type_id": 0}});
        let sequence = |id: &str, type_id: u32| json!({"Sequence": {"id": id, "type_id": type_id}});
        let bos_text = bos.as_str().unwrap_or_default();
        json!({
            "type": "TemplateProcessing",
            "single": [special, sequence("A", 0)],
            "pair": [special, sequence("A", 0), special, sequence("B", 1)],
            "special_tokens": {bos_text: {"id": bos, "ids": [id], "tokens": [bos]}},
        })
    }

    fn config_json(&self, metadata: &HashMap<String, Meta>) -> Value {
        let mut config = Map::new();
        config.insert(
            "tokenizer_class".to_owned(),
            "PreTrainedTokenizerFast".into(),
        );
        config.extend(self.special_tokens.clone());
        if let Some(template) = chat_template(metadata) {
            config.insert("chat_template".to_owned(), template);
        }
        let architecture = text(metadata, "general.architecture").unwrap_or_default();
        let context = metadata
            .get(&format!("{architecture}.context_length"))
            .and_then(integer);
        if let Some(context) = context {
            config.insert("model_max_length".to_owned(), context.into());
        }
        config.insert("add_bos_token".to_owned(), self.adds_bos.into());
        config.insert("clean_up_tokenization_spaces".to_owned(), false.into());
        Value::Object(config)
    }
}

const SPECIAL_TOKENS: [(&str, &str); 4] = [
    ("bos_token", "tokenizer.ggml.bos_token_id"),
    ("eos_token", "tokenizer.ggml.eos_token_id"),
    ("unk_token", "tokenizer.ggml.unknown_token_id"),
    ("pad_token", "tokenizer.ggml.padding_token_id"),
];

fn text(metadata: &HashMap<String, Meta>, key: &str) -> Result<String, GgufError> {
    match metadata.get(key) {
        Some(Meta::String(text)) => Ok(text.clone()),
        _ => Err(GgufError::Missing(key.to_owned())),
    }
}

fn texts(metadata: &HashMap<String, Meta>, key: &str) -> Result<Vec<String>, GgufError> {
    let missing = || GgufError::Missing(key.to_owned());
    let Some(Meta::Array(values)) = metadata.get(key) else {
        return Err(missing());
    };
    let one = |value: &Meta| match value {
        Meta::String(text) => Ok(text.clone()),
        _ => Err(missing()),
    };
    values.iter().map(one).collect()
}

fn integer(value: &Meta) -> Option<i64> {
    match value {
        Meta::U8(n) => Some(i64::from(*n)),
        Meta::I8(n) => Some(i64::from(*n)),
        Meta::U16(n) => Some(i64::from(*n)),
        Meta::I16(n) => Some(i64::from(*n)),
        Meta::U32(n) => Some(i64::from(*n)),
        Meta::I32(n) => Some(i64::from(*n)),
        Meta::U64(n) => i64::try_from(*n).ok(),
        Meta::I64(n) => Some(*n),
        _ => None,
    }
}
