//! GGUF metadata out of a Hugging Face tokenizer: what llama.cpp needs to split text into the same tokens. What it would
//! split otherwise is refused by name. Source: the GGUF specification, and llama.cpp's pre-tokenizers.

use std::path::Path;

use candle_core::quantized::gguf_file::Value as Meta;
use serde_json::Value;

use super::pre_tokenizer::PreTokenizer;
use super::{CONTROL, SPECIAL_TOKENS, USER_DEFINED, sentencepiece};
use crate::chat_model::LoadError;
use crate::chat_model::folder::{chat_templates, read_json, token_content};

/// Why a tokenizer cannot be written into a GGUF file.
#[derive(Debug, thiserror::Error)]
pub enum VocabularyError {
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("the folder has no {0}")]
    Missing(&'static str),
    #[error("tokenizer.json has {key} {found}, which cannot be written as GGUF; known are {known}")]
    Unsupported {
        key: &'static str,
        found: String,
        known: &'static str,
    },
    #[error("token {token:?} has the id {id}, but config.json has vocab_size {vocab_size}")]
    BeyondVocabulary {
        token: String,
        id: u64,
        vocab_size: usize,
    },
    /// SentencePiece merges by the score of the whole, this tokenizer by the pair.
    #[error("the merges that make {token:?} are not SentencePiece's")]
    NotSentencePiece { token: String },
}

/// Kinds of tokens beside those of `super`.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// The keys `tokenizer.…` of a model folder: the kind of tokenizer, its tokens, merges or scores, special tokens, chat
/// template. There are as many tokens as `config.json` says: places without one are unused.
/// Errors: files are missing or not valid; `Unsupported` where llama.cpp has nothing that splits as this tokenizer does.
pub fn vocabulary(folder: &Path) -> Result<Vec<(String, Meta)>, VocabularyError> {
    let file = |name| read_json(folder, name)?.ok_or(VocabularyError::Missing(name));
    let (tokenizer, config) = (file("tokenizer.json")?, file("config.json")?);
    let tokenizer_config = read_json(folder, "tokenizer_config.json")?.unwrap_or_default();
    let vocab_size = config["vocab_size"].as_u64();
    let vocab_size = vocab_size.ok_or(VocabularyError::Missing("vocab_size in config.json"))?;
    let tokens = Tokens::read(&tokenizer, vocab_size as usize)?;
    let mut metadata = Vec::new();
    let mut put = |key: &str, value: Meta| metadata.push((format!("tokenizer.{key}"), value));
    if tokenizer["model"]["type"] != "BPE" {
        let found = tokenizer["model"]["type"].to_string();
        return Err(unsupported("model.type", found, "BPE"));
    }
    if tokenizer["model"]["byte_fallback"] == true {
        let spaces = sentencepiece::add_space_prefix(&tokenizer)?;
        let scores = sentencepiece::scores(&tokenizer, &tokens.texts)?;
        put("ggml.model", Meta::String("llama".to_owned()));
        put("ggml.pre", Meta::String("default".to_owned()));
        put("ggml.add_space_prefix", Meta::Bool(spaces));
        put("ggml.scores", array(scores, Meta::F32));
    } else {
        let pre = PreTokenizer::find(&tokenizer)?;
        put("ggml.model", Meta::String("gpt2".to_owned()));
        put("ggml.pre", Meta::String(pre.name().to_owned()));
        put("ggml.merges", array(merges(&tokenizer), Meta::String));
    }
    for (name, key) in SPECIAL_TOKENS {
        let text = token_content(&tokenizer_config[name]);
        if let Some(id) = text.and_then(|text| tokens.id(&text)) {
            put(&key["tokenizer.".len()..], Meta::U32(id));
        }
    }
    let (adds_bos, adds_eos) = added_around(&tokenizer);
    put("ggml.add_bos_token", Meta::Bool(adds_bos));
    put("ggml.add_eos_token", Meta::Bool(adds_eos));
    put("ggml.token_type", array(tokens.kinds, Meta::I32));
    put("ggml.tokens", array(tokens.texts, Meta::String));
    let (chat, tools) = chat_templates(folder, &tokenizer_config)?;
    put("chat_template", Meta::String(chat));
    if let Some(tools) = tools {
        put("chat_template.tool_use", Meta::String(tools));
    }
    Ok(metadata)
}

pub(super) fn unsupported(
    key: &'static str,
    found: String,
    known: &'static str,
) -> VocabularyError {
    VocabularyError::Unsupported { key, found, known }
}

fn array<T>(values: Vec<T>, value: impl Fn(T) -> Meta) -> Meta {
    Meta::Array(values.into_iter().map(value).collect())
}

/// Every token by its id, and what kind it is.
struct Tokens {
    texts: Vec<String>,
    kinds: Vec<i32>,
}

impl Tokens {
    fn read(tokenizer: &Value, vocab_size: usize) -> Result<Self, VocabularyError> {
        let mut tokens = Self {
            texts: (0..vocab_size).map(|id| format!("[PAD{id}]")).collect(),
            kinds: vec![UNUSED; vocab_size],
        };
        let vocab = tokenizer["model"]["vocab"].as_object();
        for (text, id) in vocab.ok_or(VocabularyError::Missing("model.vocab in tokenizer.json"))? {
            let kind = match () {
                () if tokenizer["model"]["unk_token"] == text.as_str() => UNKNOWN,
                () if sentencepiece::is_byte(text)
                    && tokenizer["model"]["byte_fallback"] == true =>
                {
                    BYTE
                }
                () => NORMAL,
            };
            tokens.put(text, id, kind)?;
        }
        for added in tokenizer["added_tokens"].as_array().into_iter().flatten() {
            let kind = match added["special"] == true {
                true => CONTROL,
                false => USER_DEFINED,
            };
            let text = added["content"].as_str().unwrap_or_default();
            tokens.put(text, &added["id"], kind as i32)?;
        }
        Ok(tokens)
    }

    fn put(&mut self, text: &str, id: &Value, kind: i32) -> Result<(), VocabularyError> {
        let id = id.as_u64().unwrap_or(u64::MAX);
        let vocab_size = self.texts.len();
        let place = usize::try_from(id).ok().filter(|id| *id < vocab_size);
        let place = place.ok_or_else(|| VocabularyError::BeyondVocabulary {
            token: text.to_owned(),
            id,
            vocab_size,
        })?;
        text.clone_into(&mut self.texts[place]);
        self.kinds[place] = kind;
        Ok(())
    }

    fn id(&self, text: &str) -> Option<u32> {
        let id = self.texts.iter().position(|token| token == text)?;
        u32::try_from(id).ok()
    }
}

/// "a b" for each pair, in the order of their ranks; they are written as text or as a pair.
pub(super) fn merges(tokenizer: &Value) -> Vec<String> {
    let merges = tokenizer["model"]["merges"].as_array();
    let text = |merge: &Value| match merge.as_array() {
        Some(pair) => pair
            .iter()
            .filter_map(Value::as_str)
            .collect::<Vec<_>>()
            .join(" "),
        None => merge.as_str().unwrap_or_default().to_owned(),
    };
    merges.into_iter().flatten().map(text).collect()
}

/// Whether a special token is put before every text, and after it.
fn added_around(tokenizer: &Value) -> (bool, bool) {
    let post = &tokenizer["post_processor"];
    let parts = post["processors"].as_array();
    let mut parts = parts.into_iter().flatten().chain([post]);
    let template = parts.find(|part| part["type"] == "TemplateProcessing");
    let single = template.and_then(|template| template["single"].as_array());
    let is_special = |part: Option<&Value>| part.is_some_and(|p| p.get("SpecialToken").is_some());
    single.map_or((false, false), |single| {
        (is_special(single.first()), is_special(single.last()))
    })
}
