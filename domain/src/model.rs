//! Tuned models: their names, and what serves an answer under a name.

use serde::{Deserialize, Serialize};

use crate::id::{JobId, ProjectId};
use crate::time::Timestamp;
use crate::x_training::FrozenWeights;

/// A tuned model, a checkpoint of a job that succeeded, or an adapter that a client brought.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunedModel {
    /// `ft:{base}:{org}:{suffix}:{8 base62}`, for an earlier checkpoint followed by `:ckpt-step-{n}`.
    pub name: String,
    pub project_id: ProjectId,
    /// The job that made it; `None`: a client brought the adapter.
    pub job_id: Option<JobId>,
    pub base_model: String,
    pub adapter: AdapterRef,
    /// The organisation's slug.
    pub owned_by: String,
    pub created_at: Timestamp,
}

/// A PEFT adapter in the bucket.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct AdapterRef {
    /// Folder with `adapter_config.json` and `adapter_model.safetensors`.
    pub object_prefix: String,
    /// Of `adapter_model.safetensors`. Another folder may hold the same weights under another configuration.
    pub sha256: String,
    pub size_bytes: u64,
    /// How the base's weights were held when it was trained. It answers on the same ones.
    #[serde(default)]
    pub frozen_weights: FrozenWeights,
}

/// What an answer is computed with: a base model and perhaps an adapter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServedModel {
    pub base_model: String,
    pub adapter: Option<AdapterRef>,
}

impl ServedModel {
    /// How the base's weights are held: as the adapter was trained.
    pub fn frozen_weights(&self) -> FrozenWeights {
        let adapter = self.adapter.as_ref();
        adapter.map_or(FrozenWeights::Stored, |adapter| adapter.frozen_weights)
    }
}

/// The public name of a tuned model. No part holds a `:`, so there are exactly five parts.
pub fn tuned_model_name(base: &str, org_slug: &str, suffix: Option<&str>, nonce: &str) -> String {
    format!("ft:{base}:{org_slug}:{}:{nonce}", suffix.unwrap_or(""))
}

/// The public name of an earlier checkpoint, with a nonce of its own.
pub fn checkpoint_name(
    base: &str,
    org_slug: &str,
    suffix: Option<&str>,
    nonce: &str,
    step: u64,
) -> String {
    format!(
        "{}:ckpt-step-{step}",
        tuned_model_name(base, org_slug, suffix, nonce)
    )
}

/// 1–64 characters of `[A-Za-z0-9_.-]`; anything else could not stand in a model name or a path.
pub fn is_valid_suffix(suffix: &str) -> bool {
    (1..=64).contains(&suffix.len())
        && suffix
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}
