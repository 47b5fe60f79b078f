//! Why a job failed, in the three fields its `error` object shows.

use serde::{Deserialize, Serialize};

/// OpenAI's `error` on a failed job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobError {
    /// e.g. `invalid_training_file`, `invalid_n_examples`, `server_error`.
    pub code: String,
    pub message: String,
    /// `training_file` or `validation_file` where one of them is at fault.
    pub param: Option<String>,
}

/// What kind of failure ended an attempt; decides between "try again" and "give up".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureClass {
    /// The input is at fault: another attempt would end the same way.
    User,
    /// The surroundings are at fault (bucket, device, network): try again later.
    Infra,
    /// The worker stops on purpose and hands the job back.
    Drain,
}
