//! A worker that computes nothing and says what a real one would say.

use std::net::SocketAddr;

use bytes::Bytes;
use domain::checkpoint::StateRef;
use domain::error::{FailureClass, JobError};
use domain::id::WorkerId;
use domain::message::{
    Assignment, AttemptReply, BeatRequest, CheckpointRequest, ClaimReply, ClaimRequest, Desired,
    FailRequest, FinishRequest, HelloReply, HelloRequest, OfferMessage,
};
use domain::metrics::StepMetrics;
use domain::model::AdapterRef;
use domain::object_key;
use domain::worker::WorkerStatus;
use domain::x_training::FrozenWeights;
use platform::objects::Objects;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::house::BASE;

/// Steps in an epoch of the jobs these tests train.
pub const STEPS_PER_EPOCH: u64 = 3;

pub struct ScriptedWorker {
    pub status: WorkerStatus,
    address: SocketAddr,
    objects: Objects,
    token: String,
    http: reqwest::Client,
}

/// A status code, and the body where the call was accepted.
pub type Answer = Result<Desired, u16>;

impl ScriptedWorker {
    pub fn new(name: &str, address: SocketAddr, objects: Objects, token: String) -> Self {
        let status = WorkerStatus {
            worker_id: WorkerId::parse(&format!("worker_{name}")).unwrap(),
            address: format!("http://{name}.example"),
            base_models: vec![BASE.to_owned()],
            adapters: Vec::new(),
            n_live: 0,
            max_live: 4,
            device: "none".to_owned(),
        };
        Self {
            status,
            address,
            objects,
            token,
            http: reqwest::Client::new(),
        }
    }

    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, u16> {
        let url = format!("http://{}/door/v1/{path}", self.address);
        let request = self.http.post(url).bearer_auth(&self.token).json(body);
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        if status != 200 {
            let body: serde_json::Value = response.json().await.unwrap();
            assert!(body["error"]["message"].is_string(), "{body}");
            return Err(status);
        }
        Ok(response.json().await.unwrap())
    }

    pub async fn hello(&self) -> HelloReply {
        self.post(
            "hello",
            &HelloRequest {
                status: self.status.clone(),
            },
        )
        .await
        .unwrap()
    }

    pub async fn claim(&self, offer: Option<OfferMessage>, wait_s: u32) -> Option<Assignment> {
        let request = ClaimRequest {
            worker_id: self.status.worker_id.clone(),
            base_models: self.status.base_models.clone(),
            offer,
            wait_s,
        };
        self.post::<ClaimReply>("claim", &request)
            .await
            .unwrap()
            .assignment
    }

    /// As `claim` without an offer; `None` where the door does not answer at all.
    pub async fn try_claim(&self, wait_s: u32) -> Option<Option<Assignment>> {
        let request = ClaimRequest {
            worker_id: self.status.worker_id.clone(),
            base_models: self.status.base_models.clone(),
            offer: None,
            wait_s,
        };
        let url = format!("http://{}/door/v1/claim", self.address);
        let request = self.http.post(url).bearer_auth(&self.token).json(&request);
        let reply: ClaimReply = request.send().await.ok()?.json().await.ok()?;
        Some(reply.assignment)
    }

    async fn act(&self, a: &Assignment, call: &str, body: &impl Serialize) -> Answer {
        let path = format!("jobs/{}/attempts/{}/{call}", a.job_id, a.attempt);
        self.post::<AttemptReply>(&path, body)
            .await
            .map(|reply| reply.desired)
    }

    pub async fn beat(&self, a: &Assignment, steps: std::ops::RangeInclusive<u64>) -> Answer {
        let metrics = steps.map(metrics).collect();
        let status = self.status.clone();
        self.act(
            a,
            "beat",
            &BeatRequest {
                status,
                metrics,
                estimated_finish: None,
            },
        )
        .await
    }

    /// Writes the objects of a step, then asks for its row.
    pub async fn checkpoint(&self, a: &Assignment, step: u64) -> Answer {
        let request = self.put_checkpoint(a, step).await;
        self.act(a, "checkpoint", &request).await
    }

    pub async fn ask_checkpoint(&self, a: &Assignment, request: &CheckpointRequest) -> Answer {
        self.act(a, "checkpoint", request).await
    }

    pub async fn put_checkpoint(&self, a: &Assignment, step: u64) -> CheckpointRequest {
        let object_key = object_key::checkpoint_state(&a.object_prefix, step);
        let content = Bytes::from(format!("state after step {step}"));
        let stored = self.objects.put_bytes(&object_key, content).await.unwrap();
        let state = StateRef {
            object_key,
            sha256: stored.sha256,
            size_bytes: stored.size_bytes,
        };
        let adapter = self.put_adapter(a, step).await;
        let epoch = step
            .is_multiple_of(STEPS_PER_EPOCH)
            .then_some((step / STEPS_PER_EPOCH) as u32);
        CheckpointRequest {
            step,
            epoch,
            state,
            adapter,
            metrics: metrics(step),
        }
    }

    async fn put_adapter(&self, a: &Assignment, step: u64) -> AdapterRef {
        let object_prefix = object_key::checkpoint_adapter(&a.object_prefix, step);
        let put = async |name: &str, content: String| {
            let key = format!("{object_prefix}/{name}");
            self.objects
                .put_bytes(&key, Bytes::from(content))
                .await
                .unwrap()
        };
        put("adapter_config.json", "{}".to_owned()).await;
        let stored = put("adapter_model.safetensors", format!("adapter {step}")).await;
        AdapterRef {
            object_prefix,
            sha256: stored.sha256,
            size_bytes: stored.size_bytes,
            frozen_weights: FrozenWeights::Stored,
        }
    }

    pub async fn finalizing(&self, a: &Assignment) -> Answer {
        self.act(a, "finalizing", &serde_json::json!({})).await
    }

    pub async fn finish(&self, a: &Assignment) -> Answer {
        let adapter = self.put_adapter(a, a.total_steps).await;
        self.act(
            a,
            "finish",
            &FinishRequest {
                trained_tokens: 1_234,
                adapter,
                speed: None,
            },
        )
        .await
    }

    pub async fn fail(&self, a: &Assignment, class: FailureClass) -> Answer {
        let error = JobError {
            code: "server_error".to_owned(),
            message: "the device is gone".to_owned(),
            param: None,
        };
        self.act(a, "fail", &FailRequest { class, error }).await
    }

    pub async fn stopped(&self, a: &Assignment) -> Answer {
        self.act(a, "stopped", &serde_json::json!({})).await
    }

    /// From the resume point to the end, as far as the door lets it.
    pub async fn train(&self, a: &Assignment) -> Answer {
        let first = a.resume.as_ref().map_or(1, |resume| resume.step + 1);
        for step in first..=a.total_steps {
            self.beat(a, step..=step).await?;
            if step.is_multiple_of(STEPS_PER_EPOCH) {
                self.checkpoint(a, step).await?;
            }
        }
        self.finalizing(a).await?;
        self.finish(a).await
    }
}

/// Losses that are exact in binary, so that texts are too.
pub fn metrics(step: u64) -> StepMetrics {
    StepMetrics {
        step,
        train_loss: 4.0 / step as f64,
        train_mean_token_accuracy: 0.5,
        n_tokens: 100,
        valid_loss: (step == 3).then_some(0.25),
        valid_mean_token_accuracy: (step == 3).then_some(0.75),
        ..Default::default()
    }
}
