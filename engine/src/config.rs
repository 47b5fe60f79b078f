//! Owns what a model's `config.json` says of its shape, under Hugging Face's names; knows no weights.

use std::path::{Path, PathBuf};

use serde::Deserialize;

/// The families whose decoder block the engine computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// RMSNorm, RoPE, grouped-query attention, SwiGLU.
    Llama,
    /// As Llama, with biases on q, k and v.
    Qwen2,
}

/// What `architectures` may name.
const KNOWN: [(&str, Architecture); 2] = [
    ("LlamaForCausalLM", Architecture::Llama),
    ("Qwen2ForCausalLM", Architecture::Qwen2),
];

impl Architecture {
    /// The name in `architectures`.
    pub fn name(self) -> &'static str {
        let known = KNOWN.iter().find(|(_, architecture)| *architecture == self);
        known
            .expect("every architecture has a name — a bug in KNOWN")
            .0
    }
}

/// How positions are stretched beyond the trained context.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Positions are used as they are.
    None,
    /// All frequencies are divided by `factor`.
    Linear { factor: f32 },
    /// Low frequencies are divided by `factor`, high ones kept, those between interpolated. Source: Llama 3.1.
    Llama3 {
        factor: f32,
        low_freq_factor: f32,
        high_freq_factor: f32,
        original_max_position_embeddings: f32,
    },
}

/// The shape of a model.
/// Invariant: `num_attention_heads` is a multiple of `num_key_value_heads`; `head_dim` is even; no size is 0.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    pub architecture: Architecture,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
    pub vocab_size: usize,
    pub max_position_embeddings: usize,
    pub rms_norm_eps: f32,
    pub rope_theta: f32,
    pub rope_scaling: RopeScaling,
    /// The head's weight is the embedding's.
    pub tie_word_embeddings: bool,
    pub bos_token_id: Option<u32>,
    /// Empty where the file names none.
    pub eos_token_ids: Vec<u32>,
}

/// Why a `config.json` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{path:?} cannot be read: {source}")]
    Unreadable {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("config.json is not valid: {0}")]
    Malformed(#[from] serde_json::Error),
    #[error("architecture {found:?} is not known; known are {}", known_names())]
    UnknownArchitecture { found: String },
    #[error("{key} = {value} is not supported; supported: {supported}")]
    Unsupported {
        key: &'static str,
        value: String,
        supported: &'static str,
    },
    #[error("{key} = {value} cannot be: {reason}")]
    Invalid {
        key: &'static str,
        value: String,
        reason: &'static str,
    },
}

impl ModelConfig {
    /// Reads `config.json` from a model's folder.
    /// Errors: as [`Self::from_json`], and `Unreadable`.
    pub fn from_dir(dir: &Path) -> Result<Self, ConfigError> {
        let path = dir.join("config.json");
        let text = std::fs::read_to_string(&path)
            .map_err(|source| ConfigError::Unreadable { path, source })?;
        Self::from_json(&text)
    }

    /// Parses the text of a `config.json`.
    /// Errors: `Malformed`, `UnknownArchitecture`, `Unsupported`, `Invalid`.
    pub fn from_json(text: &str) -> Result<Self, ConfigError> {
        let file: File = serde_json::from_str(text)?;
        let architecture = file.architecture()?;
        file.check_supported(architecture)?;
        let config = file.config(architecture)?;
        config.check_sizes()?;
        Ok(config)
    }

    /// Width of the queries, H·C.
    pub fn query_size(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Width of the keys, and of the values, K·C.
    pub fn key_value_size(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }

    fn check_sizes(&self) -> Result<(), ConfigError> {
        let sizes = [
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("head_dim", self.head_dim),
            ("vocab_size", self.vocab_size),
            ("max_position_embeddings", self.max_position_embeddings),
        ];
        for (key, value) in sizes {
            if value == 0 || value > 1 << 28 {
                return Err(ConfigError::Invalid {
                    key,
                    value: value.to_string(),
                    reason: "a size is in 1..=2^28",
                });
            }
        }
        let invalid = |key, value: usize, reason| {
            Err(ConfigError::Invalid {
                key,
                value: value.to_string(),
                reason,
            })
        };
        if !self
            .num_attention_heads
            .is_multiple_of(self.num_key_value_heads)
        {
            return invalid(
                "num_key_value_heads",
                self.num_key_value_heads,
                "it must divide num_attention_heads",
            );
        }
        if !self.head_dim.is_multiple_of(2) {
            return invalid("head_dim", self.head_dim, "rotary positions need pairs");
        }
        Ok(())
    }
}

/// `config.json` as it is written, by transformers 4 and 5.
#[derive(Deserialize)]
struct File {
    architectures: Option<Vec<String>>,
    model_type: Option<String>,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: usize,
    max_position_embeddings: Option<usize>,
    rms_norm_eps: Option<f32>,
    rope_theta: Option<f32>,
    rope_scaling: Option<Rope>,
    /// Since transformers 5: theta and scaling in one place.
    rope_parameters: Option<Rope>,
    #[serde(default)]
    tie_word_embeddings: bool,
    hidden_act: Option<String>,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default)]
    use_sliding_window: bool,
    bos_token_id: Option<u32>,
    eos_token_id: Option<OneOrMany>,
}

#[derive(Deserialize)]
struct Rope {
    #[serde(alias = "type")]
    rope_type: Option<String>,
    rope_theta: Option<f32>,
    factor: Option<f32>,
    low_freq_factor: Option<f32>,
    high_freq_factor: Option<f32>,
    original_max_position_embeddings: Option<f32>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

impl File {
    fn architecture(&self) -> Result<Architecture, ConfigError> {
        let named = self.architectures.as_ref().and_then(|names| names.first());
        let found = match (named, self.model_type.as_deref()) {
            (Some(name), _) => name.clone(),
            (None, Some("llama")) => "LlamaForCausalLM".to_owned(),
            (None, Some("qwen2")) => "Qwen2ForCausalLM".to_owned(),
            (None, other) => other.unwrap_or("").to_owned(),
        };
        let known = KNOWN.iter().find(|(name, _)| *name == found);
        known
            .map(|(_, architecture)| *architecture)
            .ok_or(ConfigError::UnknownArchitecture { found })
    }

    fn check_supported(&self, architecture: Architecture) -> Result<(), ConfigError> {
        let act = self.hidden_act.as_deref().unwrap_or("silu");
        if act != "silu" {
            return Err(ConfigError::Unsupported {
                key: "hidden_act",
                value: act.to_owned(),
                supported: "silu",
            });
        }
        if self.mlp_bias {
            return Err(ConfigError::Unsupported {
                key: "mlp_bias",
                value: "true".to_owned(),
                supported: "false",
            });
        }
        if architecture == Architecture::Qwen2 && self.use_sliding_window {
            let (key, value) = ("use_sliding_window", "true".to_owned());
            return Err(ConfigError::Unsupported {
                key,
                value,
                supported: "false",
            });
        }
        Ok(())
    }

    fn config(self, architecture: Architecture) -> Result<ModelConfig, ConfigError> {
        let heads = self.num_attention_heads;
        let scaling = self.rope_scaling.as_ref().or(self.rope_parameters.as_ref());
        let nested_theta = [&self.rope_parameters, &self.rope_scaling]
            .into_iter()
            .flatten()
            .find_map(|r| r.rope_theta);
        Ok(ModelConfig {
            architecture,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: heads,
            num_key_value_heads: self.num_key_value_heads.unwrap_or(heads),
            head_dim: self.head_dim.unwrap_or(self.hidden_size / heads.max(1)),
            vocab_size: self.vocab_size,
            max_position_embeddings: self.max_position_embeddings.unwrap_or(2048),
            rms_norm_eps: self.rms_norm_eps.unwrap_or(1e-6),
            rope_theta: self.rope_theta.or(nested_theta).unwrap_or(10_000.0),
            rope_scaling: scaling.map_or(Ok(RopeScaling::None), Rope::scaling)?,
            tie_word_embeddings: self.tie_word_embeddings,
            bos_token_id: self.bos_token_id,
            eos_token_ids: match self.eos_token_id {
                None => Vec::new(),
                Some(OneOrMany::One(id)) => vec![id],
                Some(OneOrMany::Many(ids)) => ids,
            },
        })
    }
}

impl Rope {
    fn scaling(&self) -> Result<RopeScaling, ConfigError> {
        let number = |key, value: Option<f32>| match value {
            Some(x) if x > 0.0 => Ok(x),
            other => Err(ConfigError::Invalid {
                key,
                value: format!("{other:?}"),
                reason: "it must be a positive number",
            }),
        };
        match self.rope_type.as_deref().unwrap_or("default") {
            "default" => Ok(RopeScaling::None),
            "linear" => Ok(RopeScaling::Linear {
                factor: number("factor", self.factor)?,
            }),
            "llama3" => Ok(RopeScaling::Llama3 {
                factor: number("factor", self.factor)?,
                low_freq_factor: number("low_freq_factor", self.low_freq_factor)?,
                high_freq_factor: number("high_freq_factor", self.high_freq_factor)?,
                original_max_position_embeddings: number(
                    "original_max_position_embeddings",
                    self.original_max_position_embeddings,
                )?,
            }),
            other => {
                let supported = "default, linear, llama3";
                Err(ConfigError::Unsupported {
                    key: "rope_type",
                    value: other.to_owned(),
                    supported,
                })
            }
        }
    }
}

fn known_names() -> String {
    KNOWN.map(|(name, _)| name).join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LLAMA: &str = r#"{"architectures":["LlamaForCausalLM"],"hidden_size":64,"intermediate_size":176,
        "num_hidden_layers":2,"num_attention_heads":4,"num_key_value_heads":2,"vocab_size":512,"rms_norm_eps":1e-5,
        "max_position_embeddings":256,"rope_theta":10000.0,"tie_word_embeddings":true,"eos_token_id":[1,2]}"#;

    #[test]
    fn a_llama_config_is_read_with_its_defaults() {
        let config = ModelConfig::from_json(LLAMA).unwrap();
        assert_eq!(
            (
                config.head_dim,
                config.query_size(),
                config.key_value_size()
            ),
            (16, 64, 32)
        );
        assert_eq!(
            (config.architecture, config.rope_scaling),
            (Architecture::Llama, RopeScaling::None)
        );
        assert_eq!(config.eos_token_ids, [1, 2]);
    }

    #[test]
    fn both_spellings_of_rope_are_read() {
        let llama3 = r#"{"rope_type":"llama3","factor":8.0,"low_freq_factor":1.0,"high_freq_factor":4.0,
            "original_max_position_embeddings":8192,"rope_theta":500000.0}"#;
        let new = LLAMA.replace(
            r#""rope_theta":10000.0"#,
            &format!(r#""rope_parameters":{llama3}"#),
        );
        let old = LLAMA.replace(
            r#""rope_theta":10000.0"#,
            &format!(r#""rope_theta":500000.0,"rope_scaling":{llama3}"#),
        );
        let (new, old) = (
            ModelConfig::from_json(&new).unwrap(),
            ModelConfig::from_json(&old).unwrap(),
        );
        assert_eq!(new, old);
        assert_eq!(new.rope_theta, 500_000.0);
        assert!(matches!(
            new.rope_scaling,
            RopeScaling::Llama3 { factor: 8.0, .. }
        ));
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        let cases = [
            (
                LLAMA.replace("LlamaFor", "GemmaFor"),
                "architecture \"GemmaForCausalLM\" is not known; known are LlamaForCausalLM, Qwen2ForCausalLM",
            ),
            (
                LLAMA.replace(r#""vocab_size""#, r#""hidden_act":"gelu","vocab_size""#),
                "hidden_act = gelu is not supported; supported: silu",
            ),
            (
                LLAMA.replace(
                    r#""vocab_size""#,
                    r#""rope_scaling":{"type":"yarn"},"vocab_size""#,
                ),
                "rope_type = yarn is not supported; supported: default, linear, llama3",
            ),
            (
                LLAMA.replace(r#""num_key_value_heads":2"#, r#""num_key_value_heads":3"#),
                "num_key_value_heads = 3 cannot be: it must divide num_attention_heads",
            ),
            (
                LLAMA.replace("64", "0"),
                "hidden_size = 0 cannot be: a size is in 1..=2^28",
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(
                ModelConfig::from_json(&text).unwrap_err().to_string(),
                expected
            );
        }
    }
}
