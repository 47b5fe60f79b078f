//! Fine-tuning jobs, their events and checkpoints as clients see them.

use domain::checkpoint::Checkpoint;
use domain::error::JobError;
use domain::event::{Event, EventType, Level};
use domain::hyperparameters::{Auto, Hyperparameters, ResolvedHyperparameters};
use domain::job::{FineTuningJob, JobSpec};
use domain::method::Method;
use domain::metrics::StepMetrics;
use domain::preference::{DEFAULT_BETA, PreferenceLoss};
use domain::queue::Standing;
use serde_json::Value;

use super::list::Listed;
use super::nullable::Nullable;
use super::number_or_auto::NumberOrAuto;
use super::reply::{pairs, reply};
use super::x_training::shown;

reply! {
    /// A fine-tuning job.
    JobObject as "FineTuningJob" {
        id: String,
        /// `fine_tuning.job`.
        object: &'static str,
        /// The base model, or the tuned one that was named to go on from.
        model: String,
        /// Unix seconds.
        created_at: i64,
        /// Unix seconds; set when the job succeeded.
        finished_at: Nullable<i64>,
        /// The tuned model's name; set when the job succeeded.
        fine_tuned_model: Nullable<String>,
        organization_id: String,
        /// Files with purpose `fine-tune-results`: the metrics of every step as CSV.
        result_files: Vec<String>,
        /// `validating_files`, `queued`, `running`, `succeeded`, `failed`, `cancelled`; `paused` only after an explicit
        /// pause.
        status: &'static str,
        validation_file: Nullable<String>,
        training_file: String,
        /// Null for other methods than `supervised`.
        hyperparameters: Nullable<HyperparametersObject>,
        /// Tokens of the dataset times epochs; set when the job succeeded.
        trained_tokens: Nullable<u64>,
        /// Why the job failed.
        error: Nullable<JobErrorObject>,
        user_provided_suffix: Nullable<String>,
        seed: u32,
        /// Unix seconds; known while the job runs.
        estimated_finish: Nullable<i64>,
        /// Always empty.
        integrations: Vec<Value>,
        method: MethodObject,
        metadata: Nullable<Value>,
        /// Where the job stands exactly: `validating`, `queued`, `dispatched`, `running`, `finalizing`, `pausing`,
        /// `paused`, `cancelling`, `succeeded`, `failed`, `cancelled`.
        x_status: &'static str,
        /// Jobs on the same base model, of all projects, whose turn is before this one's; null where it waits for no worker.
        x_queue_position: Nullable<u64>,
        /// Unix seconds, as those that run now will be through and nobody comes between; null where it cannot be known: until the workers
        /// can say when they will be through, and behind as many others that wait as there are workers.
        x_estimated_start: Nullable<i64>,
        /// The options beyond OpenAI's as they were asked for, and under `resolved` what every one became.
        x_training: Option<Value>,
    }

    /// What the job trains with: what was asked for until the files are validated, then numbers.
    HyperparametersObject as "Hyperparameters" {
        n_epochs: NumberOrAuto<u32>,
        batch_size: NumberOrAuto<u32>,
        learning_rate_multiplier: NumberOrAuto<f64>,
    }

    /// How the job trains; the object named like the type is there, the other is not.
    MethodObject as "Method" {
        /// `supervised` or `dpo`.
        r#type: &'static str,
        supervised: Option<SupervisedMethod>,
        dpo: Option<DpoMethod>,
    }

    SupervisedMethod as "SupervisedMethod" {
        hyperparameters: HyperparametersObject,
    }

    DpoMethod as "DpoMethod" {
        hyperparameters: DpoHyperparameters,
    }

    DpoHyperparameters as "DpoHyperparameters" {
        beta: NumberOrAuto<f64>,
        n_epochs: NumberOrAuto<u32>,
        batch_size: NumberOrAuto<u32>,
        learning_rate_multiplier: NumberOrAuto<f64>,
        /// What is minimised, by TRL's name; `sigmoid` is DPO.
        x_loss_type: &'static str,
        x_label_smoothing: f64,
        /// For `simpo` alone.
        x_simpo_gamma: Option<f64>,
        x_pref_ftx: f64,
        /// For `kto` alone.
        x_desirable_weight: Option<f64>,
        /// For `kto` alone.
        x_undesirable_weight: Option<f64>,
    }

    /// Why a job failed.
    JobErrorObject as "FineTuningJobError" {
        code: String,
        message: String,
        /// `training_file` or `validation_file` where one of them is at fault.
        param: Nullable<String>,
    }
}

/// A job that waits for no worker.
impl From<FineTuningJob> for JobObject {
    fn from(job: FineTuningJob) -> Self {
        Self::new(job, Standing::default())
    }
}

impl JobObject {
    pub fn new(job: FineTuningJob, standing: Standing) -> Self {
        let p = job.progress();
        let result = p.result.as_ref();
        let hyperparameters =
            hyperparameters(&job.spec.method.hyperparameters(), &p.hyperparameters);
        let method = method_object(
            &job.spec.method,
            &hyperparameters,
            p.hyperparameters.is_some(),
        );
        Self {
            id: job.id.to_string(),
            object: "fine_tuning.job",
            model: named_model(&job.spec),
            created_at: job.created_at.unix_s(),
            finished_at: Nullable(p.finished_at.map(|at| at.unix_s())),
            fine_tuned_model: Nullable(result.map(|r| r.fine_tuned_model.clone())),
            organization_id: job.organization_id.to_string(),
            result_files: result
                .map(|r| r.result_file.to_string())
                .into_iter()
                .collect(),
            status: p.state.public_status(),
            validation_file: Nullable(job.spec.validation_file.as_ref().map(ToString::to_string)),
            training_file: job.spec.training_file.to_string(),
            hyperparameters: Nullable(method.supervised.is_some().then_some(hyperparameters)),
            trained_tokens: Nullable(result.map(|r| r.trained_tokens)),
            error: Nullable(p.error.clone().map(JobErrorObject::from)),
            user_provided_suffix: Nullable(job.spec.suffix.clone()),
            seed: job.spec.seed,
            estimated_finish: Nullable(p.estimated_finish.map(|at| at.unix_s())),
            integrations: Vec::new(),
            method,
            metadata: Nullable(job.spec.metadata.clone().map(pairs)),
            x_status: p.state.as_str(),
            x_queue_position: Nullable(standing.n_before),
            x_estimated_start: Nullable(standing.start.map(|at| at.unix_s())),
            x_training: job.spec.x_training.as_ref().map(shown),
        }
    }
}

pub(super) fn named_model(spec: &JobSpec) -> String {
    let tuned = spec
        .x_training
        .as_ref()
        .and_then(|x| x.named_model.as_ref());
    tuned.unwrap_or(&spec.model).clone()
}

impl Listed for JobObject {
    fn id(&self) -> &str {
        &self.id
    }
}

impl From<JobError> for JobErrorObject {
    fn from(error: JobError) -> Self {
        Self {
            code: error.code,
            message: error.message,
            param: Nullable(error.param),
        }
    }
}

pub(super) fn hyperparameters(
    asked: &Hyperparameters,
    resolved: &Option<ResolvedHyperparameters>,
) -> HyperparametersObject {
    match resolved {
        Some(r) => HyperparametersObject {
            n_epochs: NumberOrAuto(Auto::Given(r.n_epochs)),
            batch_size: NumberOrAuto(Auto::Given(r.batch_size)),
            learning_rate_multiplier: NumberOrAuto(Auto::Given(r.learning_rate_multiplier)),
        },
        None => HyperparametersObject {
            n_epochs: NumberOrAuto(asked.n_epochs),
            batch_size: NumberOrAuto(asked.batch_size),
            learning_rate_multiplier: NumberOrAuto(asked.learning_rate_multiplier),
        },
    }
}

pub(super) fn method_object(
    method: &Method,
    shown: &HyperparametersObject,
    is_resolved: bool,
) -> MethodObject {
    let mut object = MethodObject {
        r#type: method.name(),
        supervised: None,
        dpo: None,
    };
    match method {
        Method::Supervised { .. } => {
            object.supervised = Some(SupervisedMethod {
                hyperparameters: shown.clone(),
            });
        }
        Method::Dpo { preference, .. } => {
            let beta = match is_resolved {
                true => Auto::Given(preference.beta.unwrap_or(DEFAULT_BETA)),
                false => preference.beta,
            };
            let is_simpo = preference.loss_type == PreferenceLoss::Simpo;
            let is_kto = preference.loss_type == PreferenceLoss::Kto;
            object.dpo = Some(DpoMethod {
                hyperparameters: DpoHyperparameters {
                    beta: NumberOrAuto(beta),
                    n_epochs: shown.n_epochs,
                    batch_size: shown.batch_size,
                    learning_rate_multiplier: shown.learning_rate_multiplier,
                    x_loss_type: preference.loss_type.name(),
                    x_label_smoothing: preference.label_smoothing,
                    x_simpo_gamma: is_simpo.then_some(preference.simpo_gamma),
                    x_pref_ftx: preference.pref_ftx,
                    x_desirable_weight: is_kto.then_some(preference.desirable_weight),
                    x_undesirable_weight: is_kto.then_some(preference.undesirable_weight),
                },
            });
        }
    }
    object
}

reply! {
    /// One line of a job's story.
    EventObject as "FineTuningJobEvent" {
        id: String,
        /// `fine_tuning.job.event`.
        object: &'static str,
        /// Unix seconds.
        created_at: i64,
        /// `info`, `warn` or `error`.
        level: &'static str,
        message: String,
        /// `message` or `metrics`.
        r#type: &'static str,
        /// The step's numbers for `metrics`, else empty.
        data: Value,
    }
}

impl From<Event> for EventObject {
    fn from(event: Event) -> Self {
        Self {
            id: event.id.to_string(),
            object: "fine_tuning.job.event",
            created_at: event.created_at.unix_s(),
            level: match event.level {
                Level::Info => "info",
                Level::Warn => "warn",
                Level::Error => "error",
            },
            message: event.message,
            r#type: match event.event_type {
                EventType::Message => "message",
                EventType::Metrics => "metrics",
            },
            data: event.data,
        }
    }
}

impl Listed for EventObject {
    fn id(&self) -> &str {
        &self.id
    }
}

reply! {
    /// A checkpoint that can be talked to, once its job succeeded.
    CheckpointObject as "FineTuningJobCheckpoint" {
        id: String,
        /// `fine_tuning.job.checkpoint`.
        object: &'static str,
        /// Unix seconds.
        created_at: i64,
        /// The name to chat with; the last one's equals the job's `fine_tuned_model`.
        fine_tuned_model_checkpoint: String,
        /// Optimizer steps since the start.
        step_number: u64,
        metrics: MetricsObject,
        fine_tuning_job_id: String,
    }

    /// What was measured at the step; validation only where it was measured.
    MetricsObject as "StepMetrics" {
        step: u64,
        train_loss: f64,
        train_mean_token_accuracy: f64,
        valid_loss: Option<f64>,
        valid_mean_token_accuracy: Option<f64>,
        full_valid_loss: Option<f64>,
        full_valid_mean_token_accuracy: Option<f64>,
    }
}

impl From<StepMetrics> for MetricsObject {
    fn from(m: StepMetrics) -> Self {
        Self {
            step: m.step,
            train_loss: m.train_loss,
            train_mean_token_accuracy: m.train_mean_token_accuracy,
            valid_loss: m.valid_loss,
            valid_mean_token_accuracy: m.valid_mean_token_accuracy,
            full_valid_loss: m.full_valid_loss,
            full_valid_mean_token_accuracy: m.full_valid_mean_token_accuracy,
        }
    }
}

impl From<Checkpoint> for CheckpointObject {
    fn from(checkpoint: Checkpoint) -> Self {
        Self {
            id: checkpoint.id.to_string(),
            object: "fine_tuning.job.checkpoint",
            created_at: checkpoint.created_at.unix_s(),
            fine_tuned_model_checkpoint: checkpoint.name,
            step_number: checkpoint.step,
            metrics: checkpoint.metrics.into(),
            fine_tuning_job_id: checkpoint.job_id.to_string(),
        }
    }
}

impl Listed for CheckpointObject {
    fn id(&self) -> &str {
        &self.id
    }
}
