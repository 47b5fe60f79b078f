//! Owns the ways out: a model and its adapter as one, in Hugging Face's folder or in a GGUF file. Sizes are known before
//! the first byte, and what is written is read a row at a time, so that an export of any size can be streamed. Knows no
//! text: a vocabulary comes in as metadata.

mod gguf;
mod merged;
mod source;

use std::path::PathBuf;

pub use gguf::{FileType, Gguf, Metadata, Value};
pub use merged::{MAX_SHARD_BYTES, Merged};

use crate::weights::LoadError;

/// Why a model cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("{path:?} cannot be read: {source}")]
    Unreadable {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("config.json is not valid: {0}")]
    Config(#[from] serde_json::Error),
    #[error("the adapter changes {name}, which the model does not have in this shape")]
    NotInBase { name: String },
    #[error(
        "architecture {found:?} cannot be written as GGUF; known are {}",
        gguf::known_names()
    )]
    UnknownArchitecture { found: String },
    #[error("tensor {name} has no place in a GGUF file of architecture {architecture}")]
    UnknownTensor {
        name: String,
        architecture: &'static str,
    },
    #[error("tensor {name} is missing")]
    MissingTensor { name: String },
    #[error("config.json has no {key}, or one of the wrong type")]
    MissingKey { key: &'static str },
    /// llama.cpp would compute another function than the model's.
    #[error("{key} = {value} cannot be written as GGUF: {reason}")]
    Unsupported {
        key: &'static str,
        value: String,
        reason: &'static str,
    },
}
