//! Base models: what an operator installed for everyone to tune and to talk to.

use serde::{Deserialize, Serialize};

use crate::time::Timestamp;

/// One file of a model folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestFile {
    /// Relative to the model's folder, no directory part.
    pub name: String,
    pub size_bytes: u64,
    pub sha256: String,
}

/// A base model: a Hugging Face folder in the bucket. `name` holds neither `:` nor `/`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BaseModel {
    pub name: String,
    /// Hash over the manifest; what a checkpoint records of its base.
    pub sha256: String,
    /// Folder in the bucket, see [`crate::object_key::base_model`].
    pub object_prefix: String,
    pub files: Vec<ManifestFile>,
    /// e.g. `LlamaForCausalLM`.
    pub architecture: String,
    pub hidden_size: u32,
    pub n_parameters: u64,
    /// Tokens of prompt and answer together.
    pub context_length: u32,
    pub created_at: Timestamp,
}

/// A name that fits into `ft:{base}:{org}:{suffix}:{id}` and into a path: letters, digits, `.`, `_`, `-`.
pub fn is_valid_base_name(name: &str) -> bool {
    (1..=96).contains(&name.len())
        && !name.starts_with('.')
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}
