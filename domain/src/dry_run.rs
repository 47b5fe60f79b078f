//! Dry runs: a job is ordered, judged to its end and never made. Only the scheduler, who validates jobs, can make the
//! report; whoever ordered it finds the report in the row.

use serde::{Deserialize, Serialize};

use crate::error::JobError;
use crate::hyperparameters::ResolvedHyperparameters;
use crate::id::{DryRunId, ProjectId};
use crate::job::JobSpec;
use crate::method::Method;
use crate::speed::DeviceKind;
use crate::time::Timestamp;
use crate::x_training::GradientCheckpointing;

/// Dry runs of a project that wait for their report at the same time.
pub const MAX_UNFINISHED: u64 = 4;

/// An order, and in the end its report.
#[derive(Debug, Clone, PartialEq)]
pub struct DryRun {
    pub id: DryRunId,
    pub project_id: ProjectId,
    /// What the job would be.
    pub spec: JobSpec,
    pub created_at: Timestamp,
    pub report: Option<Report>,
}

/// What a job of this order would do.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Report {
    /// Why the job would fail.
    pub error: Option<JobError>,
    /// What it would train with; known where it would not fail.
    pub plan: Option<Plan>,
    /// `None`: the file was not read.
    pub training: Option<FileReport>,
    pub validation: Option<FileReport>,
    /// Rows of the validation file that the training file has too.
    pub leaked: Option<Repeats>,
}

/// What is estimated beside a report whenever it is asked for, as none of it is the file's.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Estimates {
    /// `None`: the job would fail, or no price is set for its base model.
    pub price: Option<Price>,
    /// From the first step to the last, by the speed of finished jobs. Seconds; `None`: none has measured it.
    pub seconds: Option<f64>,
    /// What a worker says of it, or why none does; `None`: the job would fail.
    pub memory: Option<Result<MemoryPlan, String>>,
}

/// What a training takes of a worker's memory, by the plan that the worker makes when it begins one. Counted from above.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryPlan {
    /// Whose memory it is.
    pub device: DeviceKind,
    /// Why a worker that has a GPU would train on its CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_declined: Option<String>,
    /// Frozen weights of the base model. Bytes.
    pub weights: u64,
    /// The adapter with gradients and moments, and as it is multiplied with. Bytes.
    pub adapter: u64,
    /// What passes compute in, and what is kept of one until its backward. Bytes.
    pub activations: u64,
    /// What a training on a GPU takes of the host's memory. Bytes.
    pub on_host: u64,
    /// What there is for all of it, where the device's system says so. Bytes.
    pub available: Option<u64>,
    /// Whether all of it is available.
    pub fits: bool,
    /// Tokens that a pass has at most: a step is as many passes as its batch needs.
    pub pass_tokens: u64,
    /// What the backward computes again, never `auto`.
    pub gradient_checkpointing: GradientCheckpointing,
    /// Layers in which something is computed again.
    pub n_recomputed_layers: u64,
    /// Whether streams between layers wait in the host's memory.
    pub streams_on_host: bool,
}

impl MemoryPlan {
    /// Of the device's memory. Bytes.
    pub fn total(&self) -> u64 {
        self.weights + self.adapter + self.activations
    }
}

/// What the job would cost: no estimate, as its `trained_tokens` are known.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Price {
    pub n_tokens: u64,
    /// US dollars.
    pub per_million_tokens: f64,
    /// US dollars.
    pub amount: f64,
}

/// The size of a training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    pub hyperparameters: ResolvedHyperparameters,
    pub total_steps: u64,
    /// Tokens of all examples times epochs: the job's `trained_tokens` to the token.
    pub trained_tokens: u64,
}

impl Plan {
    /// For `n_examples` ≥ 1 of `n_tokens` together; `hidden_size` of the base model.
    pub fn new(method: &Method, hidden_size: u32, n_examples: u64, n_tokens: u64) -> Self {
        let hyperparameters = method.resolve(n_examples, hidden_size);
        let n_epochs = u64::from(hyperparameters.n_epochs);
        let steps_per_epoch = n_examples.div_ceil(hyperparameters.batch_size.into());
        Self {
            hyperparameters,
            total_steps: n_epochs * steps_per_epoch,
            trained_tokens: n_epochs * n_tokens,
        }
    }
}

/// What is in a file.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct FileReport {
    /// Lines that are not blank.
    pub n_rows: u64,
    /// What is trained on: rows, or the pieces that long ones are split into.
    pub n_examples: u64,
    /// Of all examples; of both answers of a pair.
    pub n_tokens: u64,
    /// Of the longest example.
    pub longest: u64,
    /// Of what shares a pass of a training at most: an example, both answers of a pair, or a prompt with another row's answer.
    #[serde(default)]
    pub longest_together: u64,
    /// Of rows with judged answers, those whose answer is a good one.
    #[serde(default)]
    pub n_desirable: Option<u64>,
    pub n_bad_rows: u64,
    /// The first of them.
    pub bad_rows: Vec<BadRow>,
    /// Rows longer than `max_length`, by what becomes of them.
    pub n_cut: u64,
    pub n_split: u64,
    pub n_dropped: u64,
    /// Good rows that stand in the file before, byte for byte.
    pub duplicates: Repeats,
    pub labels: Labels,
}

/// A row that fails the job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadRow {
    /// 1-based, over all lines.
    pub line: u64,
    /// From the start of the file.
    pub byte_offset: u64,
    /// JSON pointer into the row; empty for the row itself.
    pub pointer: String,
    pub reason: String,
    pub suggested_fix: String,
}

/// Rows that were seen before.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Repeats {
    pub n_rows: u64,
    /// The first of them.
    pub rows: Vec<Repeat>,
    /// False: there were too many different rows to remember all, so some repeats may be missing.
    pub is_complete: bool,
}

/// Lines are 1-based.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repeat {
    pub line: u64,
    /// Where the same row stood first: in the training file, for rows of a validation file that leaked.
    pub first_line: u64,
}

/// What is learned.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Labels {
    /// Tokens that are learned, of all examples once.
    pub n_tokens: u64,
    /// How many tokens of a row are learned; shortest first, without empty ones.
    pub lengths: Vec<Lengths>,
    /// The last answers of the rows, the most frequent first, where they are few and repeat.
    pub answers: Option<Vec<Answer>>,
}

/// Rows of which `at_most` tokens are learned, and more than half of that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lengths {
    /// A power of two. Tokens.
    pub at_most: u64,
    pub n_rows: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    pub text: String,
    pub n_rows: u64,
}
