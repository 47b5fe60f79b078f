//! One run of a job on one worker. The number is the fence: whoever names a stale one is refused.

use serde::{Deserialize, Serialize};

use crate::id::{JobId, WorkerId};
use crate::time::Timestamp;

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttemptEnd {
    Succeeded,
    Failed,
    /// The lease ran out: the worker died, hung or was cut off.
    Lost,
    /// Handed back on purpose: drain or pause.
    Released,
    Cancelled,
}

/// An attempt as it is stored, for people who ask what happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    pub job_id: JobId,
    /// 1-based, rises by one at each claim.
    pub number: u32,
    pub worker_id: WorkerId,
    pub claimed_at: Timestamp,
    pub ended_at: Option<Timestamp>,
    pub end: Option<AttemptEnd>,
}
