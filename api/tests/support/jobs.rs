//! A job taken through its life as the scheduler would take it.

use domain::checkpoint::{Checkpoint, StateRef};
use domain::file::{File, Purpose};
use domain::hyperparameters::ResolvedHyperparameters;
use domain::id::{CheckpointId, FileId, JobId, WorkerId};
use domain::job::{FineTuningJob, JobResult};
use domain::job_event::JobEvent;
use domain::metrics::StepMetrics;
use domain::model::{AdapterRef, TunedModel, checkpoint_name};
use domain::object_key;
use domain::speed::{DeviceKind, TrainingSpeed};
use domain::x_training::FrozenWeights;
use serde_json::{Value, json};

use super::{App, now};

/// The adapter's bytes that tests store; longer than a chunk of the export.
pub fn weights() -> Vec<u8> {
    (0..700_000_u32).flat_map(u32::to_le_bytes).collect()
}

impl App {
    /// Creates a job on a new file, with these fields beside `model` and `training_file`; its id.
    pub async fn new_job(&self, fields: Value) -> String {
        let mut body =
            json!({"model": super::BASE_MODEL, "training_file": self.upload(b"{}\n").await});
        for (key, value) in fields.as_object().unwrap() {
            body[key] = value.clone();
        }
        let reply = self.post("/v1/fine_tuning/jobs", body).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        reply.json()["id"].as_str().unwrap().to_owned()
    }

    pub async fn apply(&self, id: &JobId, event: JobEvent) -> FineTuningJob {
        self.store.jobs().apply(id, event, now()).await.unwrap()
    }

    pub async fn validate(&self, id: &JobId) {
        let hyperparameters = ResolvedHyperparameters {
            n_epochs: 2,
            batch_size: 4,
            learning_rate_multiplier: 1.0,
            learning_rate: 1e-3,
        };
        self.apply(
            id,
            JobEvent::Validated {
                hyperparameters,
                total_steps: 6,
                planned_tokens: 5_070,
                details: Vec::new(),
            },
        )
        .await;
    }

    pub async fn claim(&self, id: &JobId) {
        let worker_id = WorkerId::mint([1; 24]);
        let lease_until = now().plus_s(30);
        self.apply(
            id,
            JobEvent::Claimed {
                dispatch_id: None,
                worker_id,
                lease_until,
            },
        )
        .await;
    }

    /// Two epochs of three steps; the tuned model's name.
    pub async fn succeed(&self, id: &JobId) -> String {
        self.validate(id).await;
        self.claim(id).await;
        let metrics = (1..=6).map(step).collect();
        let lease_until = now().plus_s(30);
        self.apply(
            id,
            JobEvent::Beat {
                attempt: 1,
                lease_until,
                metrics,
                estimated_finish: None,
            },
        )
        .await;
        let job = self.store.jobs().get_internal(id).await.unwrap().unwrap();
        let adapter = self.store_adapter(&job).await;
        let earlier = checkpoint_name(
            &job.spec.model,
            &job.organization_slug,
            job.spec.suffix.as_deref(),
            "9uJPavMj",
            3,
        );
        for (step, epoch, name) in [(3, 1, earlier.clone()), (6, 2, job.tuned_model_name())] {
            let checkpoint = checkpoint(&job, step, epoch, name, &adapter);
            self.apply(
                id,
                JobEvent::CheckpointSaved {
                    attempt: 1,
                    checkpoint,
                },
            )
            .await;
        }
        self.apply(id, JobEvent::Finalizing { attempt: 1 }).await;
        let model = |name: String| TunedModel {
            name,
            project_id: job.project_id.clone(),
            job_id: Some(id.clone()),
            base_model: job.spec.model.clone(),
            adapter: adapter.clone(),
            owned_by: job.organization_slug.clone(),
            created_at: now(),
        };
        let result_file = self.store_results(&job).await;
        let result = JobResult {
            fine_tuned_model: job.tuned_model_name(),
            trained_tokens: 5070,
            result_file: result_file.id.clone(),
        };
        let (model, earlier) = (model(job.tuned_model_name()), vec![model(earlier)]);
        self.apply(
            id,
            JobEvent::Finished {
                attempt: 1,
                result,
                model,
                earlier,
                result_file,
                speed: Some(TrainingSpeed {
                    device: DeviceKind::Cpu,
                    tokens_per_s: 100.0,
                }),
            },
        )
        .await;
        job.tuned_model_name()
    }

    async fn store_adapter(&self, job: &FineTuningJob) -> AdapterRef {
        let attempt = object_key::attempt(&job.project_id, &job.id, 1);
        let object_prefix = object_key::checkpoint_adapter(&attempt, 6);
        let put = async |name: &str, bytes: Vec<u8>| {
            self.objects
                .put_bytes(&format!("{object_prefix}/{name}"), bytes.into())
                .await
                .unwrap()
        };
        put("adapter_config.json", ADAPTER_CONFIG.into()).await;
        let stored = put("adapter_model.safetensors", weights()).await;
        AdapterRef {
            object_prefix: object_prefix.clone(),
            sha256: stored.sha256,
            size_bytes: stored.size_bytes,
            frozen_weights: FrozenWeights::Stored,
        }
    }

    async fn store_results(&self, job: &FineTuningJob) -> File {
        let id = FileId::mint(rand::random());
        let object_key = object_key::file(&job.project_id, &id);
        let csv =
            "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy\n1,2.5,0.5,,\n";
        let stored = self
            .objects
            .put_bytes(&object_key, csv.into())
            .await
            .unwrap();
        File {
            id,
            project_id: job.project_id.clone(),
            filename: "step_metrics.csv".to_owned(),
            purpose: Purpose::FineTuneResults,
            size_bytes: stored.size_bytes,
            sha256: stored.sha256,
            object_key,
            created_at: now(),
            expires_at: None,
        }
    }
}

/// What a tuned model's adapter says of itself.
pub const ADAPTER_CONFIG: &str =
    r#"{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}"#;

fn step(step: u64) -> StepMetrics {
    StepMetrics {
        step,
        n_tokens: 100,
        train_loss: 3.0 - step as f64 / 4.0,
        train_mean_token_accuracy: 0.5,
        valid_loss: (step == 6).then_some(1.75),
        valid_mean_token_accuracy: (step == 6).then_some(0.625),
        full_valid_loss: None,
        full_valid_mean_token_accuracy: None,
    }
}

fn checkpoint(
    job: &FineTuningJob,
    step_number: u64,
    epoch: u32,
    name: String,
    adapter: &AdapterRef,
) -> Checkpoint {
    Checkpoint {
        id: CheckpointId::mint(rand::random()),
        job_id: job.id.clone(),
        attempt: 1,
        step: step_number,
        epoch: Some(epoch),
        state: StateRef {
            object_key: "state".to_owned(),
            sha256: "0".repeat(64),
            size_bytes: 1,
        },
        adapter: adapter.clone(),
        name,
        metrics: step(step_number),
        created_at: now(),
    }
}
