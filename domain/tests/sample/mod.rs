//! A sample job and what may happen to it.
#![allow(dead_code, reason = "each test binary uses a part")]

use domain::checkpoint::{Checkpoint, StateRef};
use domain::error::{FailureClass, JobError};
use domain::event::NewEvent;
use domain::file::{File, Purpose};
use domain::hyperparameters::{Hyperparameters, ResolvedHyperparameters};
use domain::id::{
    CheckpointId, DispatchId, Entropy, FileId, JobId, OrganizationId, ProjectId, WorkerId,
};
use domain::job::{FineTuningJob, JobResult, JobSpec};
use domain::job_event::{Effect, JobEvent};
use domain::method::Method;
use domain::metrics::StepMetrics;
use domain::model::{AdapterRef, TunedModel};
use domain::speed::{DeviceKind, TrainingSpeed};
use domain::time::Timestamp;
use domain::x_training::FrozenWeights;

pub const TOTAL_STEPS: u64 = 6;
pub const LEASE_S: i64 = 30;
pub const BACKOFF_MAX_S: i64 = 15;

pub fn at(seconds: i64) -> Timestamp {
    Timestamp::from_unix_s(1_790_000_000 + seconds)
}

/// 24 times the same character.
pub fn entropy(n: u8) -> Entropy {
    [n; 24]
}

pub fn job() -> (FineTuningJob, Vec<NewEvent>) {
    let spec = JobSpec {
        model: "tiny".into(),
        training_file: FileId::mint(entropy(1)),
        validation_file: None,
        suffix: Some("tickets".into()),
        seed: 42,
        method: Method::Supervised {
            hyperparameters: Hyperparameters::default(),
        },
        metadata: None,
        x_training: None,
    };
    FineTuningJob::create(
        JobId::mint(entropy(2)),
        ProjectId::mint(entropy(3)),
        OrganizationId::mint(entropy(4)),
        "luthier".into(),
        spec,
        "aB3dE6gH".into(),
        at(0),
    )
}

pub fn dispatch(n: u8) -> DispatchId {
    DispatchId::mint(entropy(n))
}

pub fn error(code: &str) -> JobError {
    JobError {
        code: code.into(),
        message: format!("it failed: {code}"),
        param: None,
    }
}

pub fn validated() -> JobEvent {
    JobEvent::Validated {
        hyperparameters: ResolvedHyperparameters {
            n_epochs: 3,
            batch_size: 4,
            learning_rate_multiplier: 1.0,
            learning_rate: 1.25e-3,
        },
        total_steps: TOTAL_STEPS,
        planned_tokens: 5_070,
        details: Vec::new(),
    }
}

pub fn validation_failed() -> JobEvent {
    let detail = NewEvent::message(domain::event::Level::Error, "Line 3: not JSON");
    JobEvent::ValidationFailed {
        error: error("invalid_training_file"),
        details: vec![detail],
    }
}

pub fn offered(n: u8) -> JobEvent {
    JobEvent::Offered {
        dispatch_id: dispatch(n),
    }
}

pub fn claimed(offer: Option<u8>, now: Timestamp) -> JobEvent {
    JobEvent::Claimed {
        dispatch_id: offer.map(dispatch),
        worker_id: WorkerId::mint(entropy(9)),
        lease_until: now.plus_s(LEASE_S),
    }
}

pub fn step(step: u64) -> StepMetrics {
    StepMetrics {
        step,
        train_loss: 1.5,
        train_mean_token_accuracy: 0.5,
        ..StepMetrics::default()
    }
}

pub fn beat(attempt: u32, steps: &[u64], now: Timestamp) -> JobEvent {
    JobEvent::Beat {
        attempt,
        lease_until: now.plus_s(LEASE_S),
        metrics: steps.iter().map(|s| step(*s)).collect(),
        estimated_finish: Some(now.plus_s(600)),
    }
}

pub fn adapter(at_step: u64) -> AdapterRef {
    AdapterRef {
        object_prefix: format!("p/step-{at_step}/adapter"),
        sha256: "aa".into(),
        size_bytes: 10,
        frozen_weights: FrozenWeights::Stored,
    }
}

pub fn checkpoint(attempt: u32, at_step: u64, epoch: Option<u32>) -> Checkpoint {
    Checkpoint {
        id: CheckpointId::mint(entropy(10 + at_step as u8)),
        job_id: job().0.id,
        attempt,
        step: at_step,
        epoch,
        state: StateRef {
            object_key: format!("p/step-{at_step}/state"),
            sha256: "bb".into(),
            size_bytes: 20,
        },
        adapter: adapter(at_step),
        name: format!("ft:tiny:luthier:tickets:nonce:ckpt-step-{at_step}"),
        metrics: step(at_step),
        created_at: at(0),
    }
}

pub fn saved(attempt: u32, at_step: u64, epoch: Option<u32>) -> JobEvent {
    JobEvent::CheckpointSaved {
        attempt,
        checkpoint: checkpoint(attempt, at_step, epoch),
    }
}

pub fn tuned(name: &str, at_step: u64) -> TunedModel {
    TunedModel {
        name: name.into(),
        project_id: job().0.project_id,
        job_id: Some(job().0.id),
        base_model: "tiny".into(),
        adapter: adapter(at_step),
        owned_by: "luthier".into(),
        created_at: at(0),
    }
}

pub fn finished(attempt: u32) -> JobEvent {
    let (job, _) = job();
    let name = job.tuned_model_name();
    let file = FileId::mint(entropy(7));
    JobEvent::Finished {
        attempt,
        result: JobResult {
            fine_tuned_model: name.clone(),
            trained_tokens: 5_070,
            result_file: file.clone(),
        },
        model: tuned(&name, 6),
        earlier: vec![tuned(&format!("{name}:ckpt-step-4"), 4)],
        result_file: File {
            id: file,
            project_id: job.project_id,
            filename: "step_metrics.csv".into(),
            purpose: Purpose::FineTuneResults,
            size_bytes: 99,
            sha256: "cc".into(),
            object_key: "k".into(),
            created_at: at(0),
            expires_at: None,
        },
        speed: Some(TrainingSpeed {
            device: DeviceKind::Cpu,
            tokens_per_s: 512.5,
        }),
    }
}

pub fn attempt_failed(attempt: u32, class: FailureClass) -> JobEvent {
    JobEvent::AttemptFailed {
        attempt,
        class,
        error: error("server_error"),
        retry_backoff_max_s: BACKOFF_MAX_S,
    }
}

pub fn lease_expired(attempt: u32) -> JobEvent {
    JobEvent::LeaseExpired {
        attempt,
        retry_backoff_max_s: BACKOFF_MAX_S,
    }
}

/// The texts of the events among the effects.
pub fn texts(effects: &[Effect]) -> Vec<String> {
    effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::AppendEvent(event) => Some(event.message.clone()),
            _ => None,
        })
        .collect()
}
