//! Checkpoints: from where a job can go on, and which of them a client may talk to.

use serde::{Deserialize, Serialize};

use crate::id::{CheckpointId, JobId};
use crate::metrics::StepMetrics;
use crate::model::AdapterRef;
use crate::time::Timestamp;

/// A checkpoint exists when its row does; its objects were durable before.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Checkpoint {
    pub id: CheckpointId,
    pub job_id: JobId,
    pub attempt: u32,
    /// Optimizer steps done.
    pub step: u64,
    /// Set at the end of an epoch (1-based): only these are shown to clients.
    pub epoch: Option<u32>,
    pub state: StateRef,
    pub adapter: AdapterRef,
    /// `fine_tuned_model_checkpoint`; the last checkpoint's equals the job's `fine_tuned_model`.
    pub name: String,
    pub metrics: StepMetrics,
    pub created_at: Timestamp,
}

/// The trainer's full state in the bucket: one safetensors object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateRef {
    pub object_key: String,
    pub sha256: String,
    pub size_bytes: u64,
}

/// How many epoch checkpoints of a finished job stay servable, as at OpenAI.
pub const VISIBLE_CHECKPOINTS: usize = 3;
