//! Workers as the rest sees them: where they answer and what they hold.

use serde::{Deserialize, Serialize};

use crate::id::WorkerId;
use crate::time::Timestamp;

/// What a worker says of itself with every beat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerStatus {
    pub worker_id: WorkerId,
    /// Base URL of its HTTP door, as the API reaches it.
    pub address: String,
    /// Base models it can train and serve (names).
    pub base_models: Vec<String>,
    /// Adapters in memory, by the hash of their weights.
    pub adapters: Vec<String>,
    /// Sequences it is generating now, and at most.
    pub n_live: u32,
    pub max_live: u32,
    /// e.g. `cpu, 2 threads`.
    pub device: String,
}

/// A worker row: alive while `seen_at` is recent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Worker {
    pub status: WorkerStatus,
    pub seen_at: Timestamp,
}
