//! A fine-tuning job and its one state machine.
//!
//! `FineTuningJob::apply` is the only way a job changes: a pure function from a job and an event to the next job
//! and the effects that the same transaction must carry out. The store guards the write by `version`, so two
//! writers never both win.

use serde::{Deserialize, Serialize};

use crate::error::JobError;
use crate::hyperparameters::ResolvedHyperparameters;
use crate::id::{DispatchId, FileId, JobId, OrganizationId, ProjectId, WorkerId};
use crate::method::Method;
use crate::time::Timestamp;
use crate::x_training::{Training, XTraining};

/// Where a job stands. The public `status` is coarser, see [`JobState::public_status`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    Validating,
    Queued,
    /// Offered to the workers; the first claim wins.
    Dispatched,
    Running,
    /// Every step is done and durable; the worker proves and hands over the result.
    Finalizing,
    Pausing,
    Paused,
    Cancelling,
    Succeeded,
    Failed,
    Cancelled,
}

impl JobState {
    pub const ALL: [JobState; 11] = [
        JobState::Validating,
        JobState::Queued,
        JobState::Dispatched,
        JobState::Running,
        JobState::Finalizing,
        JobState::Pausing,
        JobState::Paused,
        JobState::Cancelling,
        JobState::Succeeded,
        JobState::Failed,
        JobState::Cancelled,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            JobState::Validating => "validating",
            JobState::Queued => "queued",
            JobState::Dispatched => "dispatched",
            JobState::Running => "running",
            JobState::Finalizing => "finalizing",
            JobState::Pausing => "pausing",
            JobState::Paused => "paused",
            JobState::Cancelling => "cancelling",
            JobState::Succeeded => "succeeded",
            JobState::Failed => "failed",
            JobState::Cancelled => "cancelled",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.as_str() == text)
    }

    /// Nothing leaves a terminal state.
    pub fn is_terminal(self) -> bool {
        matches!(
            self,
            JobState::Succeeded | JobState::Failed | JobState::Cancelled
        )
    }

    /// An attempt holds a lease on the job.
    pub fn is_leased(self) -> bool {
        matches!(
            self,
            JobState::Running | JobState::Finalizing | JobState::Pausing | JobState::Cancelling
        )
    }

    /// OpenAI's `status`. `paused` only ever follows an explicit pause.
    pub fn public_status(self) -> &'static str {
        match self {
            JobState::Validating => "validating_files",
            JobState::Queued | JobState::Dispatched => "queued",
            JobState::Running | JobState::Finalizing | JobState::Pausing | JobState::Cancelling => {
                "running"
            }
            JobState::Paused => "paused",
            JobState::Succeeded => "succeeded",
            JobState::Failed => "failed",
            JobState::Cancelled => "cancelled",
        }
    }
}

/// What the client ordered; never changes after creation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobSpec {
    /// The base model's name.
    pub model: String,
    pub training_file: FileId,
    pub validation_file: Option<FileId>,
    pub suffix: Option<String>,
    /// 0…2³¹−1; drawn at creation when the client gave none.
    pub seed: u32,
    pub method: Method,
    /// At most 16 pairs, in the client's order.
    pub metadata: Option<Vec<(String, String)>>,
    /// Options beyond OpenAI's. `None`: a job from before there were any.
    #[serde(default)]
    pub x_training: Option<XTraining>,
}

impl JobSpec {
    /// What the job trains with. `context_length`: of its base model, in tokens.
    pub fn training(&self, context_length: u32) -> Training {
        match &self.x_training {
            Some(x_training) => x_training.resolved.clone(),
            None => Training::default_for(context_length),
        }
    }
}

/// What a successful job left behind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobResult {
    pub fine_tuned_model: String,
    /// Tokens trained on: tokens of the dataset times epochs.
    pub trained_tokens: u64,
    pub result_file: FileId,
}

/// A job. The private fields move only through `apply`.
#[derive(Debug, Clone, PartialEq)]
pub struct FineTuningJob {
    pub id: JobId,
    pub project_id: ProjectId,
    pub organization_id: OrganizationId,
    pub organization_slug: String,
    pub spec: JobSpec,
    /// The last part of the tuned model's name, drawn at creation: 8 base-62 characters.
    pub model_nonce: String,
    pub created_at: Timestamp,
    pub(crate) p: Progress,
}

/// The part of a job that changes. Public to be stored and read back; only `apply` makes a new one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    pub state: JobState,
    /// Rises by one with every write; the guard of every UPDATE.
    pub version: u64,
    /// The current or last attempt; 0 before the first claim. The fence of every worker's call.
    pub attempt: u32,
    pub worker_id: Option<WorkerId>,
    pub dispatch_id: Option<DispatchId>,
    /// When the state was entered.
    pub state_since: Timestamp,
    /// Set while an attempt holds the job.
    pub lease_until: Option<Timestamp>,
    /// Not offered before this instant (backoff).
    pub not_before: Option<Timestamp>,
    pub hyperparameters: Option<ResolvedHyperparameters>,
    /// Optimizer steps of the whole job; known once validated.
    pub total_steps: Option<u64>,
    /// What the job's `trained_tokens` will be; known once validated, but of jobs from before it was kept.
    #[serde(default)]
    pub planned_tokens: Option<u64>,
    /// Highest step whose metrics were published.
    pub last_step: u64,
    /// Step of the newest committed checkpoint.
    pub checkpoint_step: u64,
    /// Infra failures and lost leases since the last progress (a newer checkpoint).
    pub failures_without_progress: u32,
    /// Lost leases since the last progress.
    pub crashes_without_progress: u32,
    pub checkpoint_step_at_claim: u64,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
    pub estimated_finish: Option<Timestamp>,
    pub error: Option<JobError>,
    pub result: Option<JobResult>,
}

impl FineTuningJob {
    /// A new job: `validating`, version 0. The creation event comes with it.
    #[allow(clippy::too_many_arguments)]
    pub fn create(
        id: JobId,
        project_id: ProjectId,
        organization_id: OrganizationId,
        organization_slug: String,
        spec: JobSpec,
        model_nonce: String,
        now: Timestamp,
    ) -> (Self, Vec<crate::event::NewEvent>) {
        let mut events = vec![crate::event::NewEvent::info(format!(
            "Created fine-tuning job: {id}"
        ))];
        events.push(crate::event::NewEvent::info(match &spec.validation_file {
            Some(validation) => {
                format!(
                    "Validating training file: {} and validation file: {validation}",
                    spec.training_file
                )
            }
            None => format!("Validating training file: {}", spec.training_file),
        }));
        let p = Progress {
            state: JobState::Validating,
            version: 0,
            attempt: 0,
            worker_id: None,
            dispatch_id: None,
            state_since: now,
            lease_until: None,
            not_before: None,
            hyperparameters: None,
            total_steps: None,
            planned_tokens: None,
            last_step: 0,
            checkpoint_step: 0,
            failures_without_progress: 0,
            crashes_without_progress: 0,
            checkpoint_step_at_claim: 0,
            started_at: None,
            finished_at: None,
            estimated_finish: None,
            error: None,
            result: None,
        };
        let job = Self {
            id,
            project_id,
            organization_id,
            organization_slug,
            spec,
            model_nonce,
            created_at: now,
            p,
        };
        (job, events)
    }

    /// Rebuilds a job from its stored parts.
    #[allow(clippy::too_many_arguments)]
    pub fn from_stored(
        id: JobId,
        project_id: ProjectId,
        organization_id: OrganizationId,
        organization_slug: String,
        spec: JobSpec,
        model_nonce: String,
        created_at: Timestamp,
        progress: Progress,
    ) -> Self {
        Self {
            id,
            project_id,
            organization_id,
            organization_slug,
            spec,
            model_nonce,
            created_at,
            p: progress,
        }
    }

    pub fn progress(&self) -> &Progress {
        &self.p
    }

    pub fn state(&self) -> JobState {
        self.p.state
    }

    /// The name the tuned model has, or will have.
    pub fn tuned_model_name(&self) -> String {
        crate::model::tuned_model_name(
            &self.spec.model,
            &self.organization_slug,
            self.spec.suffix.as_deref(),
            &self.model_nonce,
        )
    }
}
