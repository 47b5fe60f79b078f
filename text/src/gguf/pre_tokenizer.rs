//! The pre-tokenizers that llama.cpp and Hugging Face both have, under llama.cpp's names.

use serde_json::{Value, json};

use super::GgufError;
use super::vocabulary::{VocabularyError, unsupported};

/// Qwen2's pre-tokenizer: contractions, words, single digits, punctuation, line ends, spaces.
const QWEN2_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Llama 3's: as Qwen2's, with up to three digits together.
const LLAMA3_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// How a text is cut before tokens are merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PreTokenizer {
    Gpt2,
    /// Looks whole words up before it merges.
    Llama3,
    /// Cuts as Llama 3 does, and merges.
    Dbrx,
    Qwen2,
    SmolLm,
}

const ALL: [PreTokenizer; 5] = [
    PreTokenizer::Gpt2,
    PreTokenizer::Llama3,
    PreTokenizer::Dbrx,
    PreTokenizer::Qwen2,
    PreTokenizer::SmolLm,
];

impl PreTokenizer {
    /// By `tokenizer.ggml.pre`.
    pub fn parse(name: &str) -> Result<Self, GgufError> {
        match name {
            "gpt-2" => Ok(PreTokenizer::Gpt2),
            "llama-bpe" | "llama3" | "llama-v3" => Ok(PreTokenizer::Llama3),
            "dbrx" => Ok(PreTokenizer::Dbrx),
            "qwen2" => Ok(PreTokenizer::Qwen2),
            "smollm" => Ok(PreTokenizer::SmolLm),
            other => Err(GgufError::UnknownPreTokenizer(other.to_owned())),
        }
    }

    /// `tokenizer.ggml.pre`.
    pub fn name(self) -> &'static str {
        match self {
            PreTokenizer::Gpt2 => "gpt-2",
            PreTokenizer::Llama3 => "llama-bpe",
            PreTokenizer::Dbrx => "dbrx",
            PreTokenizer::Qwen2 => "qwen2",
            PreTokenizer::SmolLm => "smollm",
        }
    }

    /// The one that cuts as a `tokenizer.json` does. Errors: `Unsupported`.
    pub fn find(tokenizer: &Value) -> Result<Self, VocabularyError> {
        let normalizer = &tokenizer["normalizer"];
        // llama.cpp does not normalise. NFC changes no text that is typed today.
        if !normalizer.is_null() && normalizer["type"] != "NFC" {
            return Err(unsupported(
                "normalizer",
                normalizer.to_string(),
                "null, NFC",
            ));
        }
        let ignores = tokenizer["model"]["ignore_merges"] == true;
        let steps = steps(&tokenizer["pre_tokenizer"]);
        let found = ALL
            .into_iter()
            .find(|pre| pre.ignores_merges() == ignores && self::steps(&pre.json()) == steps);
        found.ok_or_else(|| {
            let found = tokenizer["pre_tokenizer"].to_string();
            let known = "those of gpt-2, llama-bpe, dbrx, qwen2, smollm";
            unsupported("pre_tokenizer", found, known)
        })
    }

    /// Whether a word that is a token is not merged from its letters.
    pub fn ignores_merges(self) -> bool {
        self == PreTokenizer::Llama3
    }

    /// As `tokenizer.json` has it.
    pub fn json(self) -> Value {
        let byte_level = |use_regex: bool| {
            json!({
                "type": "ByteLevel",
                "add_prefix_space": false,
                "trim_offsets": true,
                "use_regex": use_regex,
            })
        };
        let split = |pattern: &str| {
            json!({
                "type": "Split",
                "pattern": {"Regex": pattern},
                "behavior": "Isolated",
                "invert": false,
            })
        };
        let parts = match self {
            PreTokenizer::Gpt2 => return byte_level(true),
            PreTokenizer::Llama3 | PreTokenizer::Dbrx => [split(LLAMA3_SPLIT), byte_level(false)],
            PreTokenizer::Qwen2 => [split(QWEN2_SPLIT), byte_level(false)],
            PreTokenizer::SmolLm => [
                json!({"type": "Digits", "individual_digits": true}),
                byte_level(true),
            ],
        };
        json!({"type": "Sequence", "pretokenizers": parts})
    }
}

/// What is done one after the other, without what does not change the cut.
fn steps(pre_tokenizer: &Value) -> Vec<Value> {
    let parts = match pre_tokenizer["pretokenizers"].as_array() {
        Some(parts) => parts.clone(),
        None => vec![pre_tokenizer.clone()],
    };
    let relevant = |mut part: Value| {
        if let Some(part) = part.as_object_mut() {
            part.remove("trim_offsets");
        }
        part
    };
    parts.into_iter().map(relevant).collect()
}
