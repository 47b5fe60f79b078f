//! `POST /v1/plan`: what a training would take of this worker's memory. Nothing is trained.

use std::sync::Arc;

use domain::dry_run::MemoryPlan;
use domain::message::{GenerateError, PlanRequest};
use domain::speed::DeviceKind;
use domain::x_training::GradientCheckpointing;
use engine::MemoryLevel;
use engine::config::ModelConfig;
use engine::cuda::Streams;
use engine::lora::AdapterShape;
use platform::service_token::ServiceKey;
use poem::web::{Data, Json};
use poem::{Body, IntoResponse, Request, Response, handler};

use crate::device::{PlanAsk, Planned, TrainedOn, TrainingRun};
use crate::generate::{base_of, internal, refusal, status_of};
use crate::request::asked;
use crate::train::config;
use crate::worker::Worker;

/// Bytes.
const MAX_BODY_BYTES: usize = 1 << 20;

#[handler]
pub(crate) async fn plan(
    request: &Request,
    body: Body,
    worker: Data<&Arc<Worker>>,
    key: Data<&ServiceKey>,
) -> Response {
    let asked: PlanRequest = match asked(request, body, key.0, MAX_BODY_BYTES).await {
        Ok(asked) => asked,
        Err(refusal) => return refusal,
    };
    // Whoever asks may leave while a base is fetched: the next one finds it.
    let planned = tokio::spawn(planned(Arc::clone(worker.0), asked));
    let planned = planned.await.unwrap_or_else(|panic| Err(internal(&panic)));
    match planned {
        Ok(plan) => Json(&plan).into_response(),
        Err(error) => Json(&error).with_status(status_of(&error)).into_response(),
    }
}

async fn planned(worker: Arc<Worker>, asked: PlanRequest) -> Result<MemoryPlan, GenerateError> {
    let base = base_of(&worker, &asked.base_model).await?;
    let training = &asked.training;
    let adapter = AdapterShape::new(&base.config, &config::lora_config(&training.adapter));
    let adapter = adapter.map_err(|error| GenerateError::Unanswerable {
        param: "x_training.adapter".to_owned(),
        reason: error.to_string(),
    })?;
    let ask = PlanAsk {
        base: base.folder_as(base.held(training.precision.frozen_weights())),
        model: base.config.clone(),
        adapter,
        run: TrainingRun {
            config: config::passes_config(training, asked.preference.as_ref()),
            precision_on_gpu: config::precision_on_gpu(training),
            memory: config::memory_level(training),
            // Both answers of a pair share a pass.
            longest: (asked.longest as usize).min(2 * base.context_length()),
            state: None,
        },
    };
    let planned = worker.device.plan(ask).await.map_err(refusal)?;
    Ok(told(planned, &base.config))
}

fn told(planned: Planned, model: &ModelConfig) -> MemoryPlan {
    let n_layers = model.num_hidden_layers;
    let n_recomputed = match planned.memory.level {
        MemoryLevel::KeepAll => 0,
        MemoryLevel::DropGateUp => n_layers - planned.memory.n_gate_up,
        MemoryLevel::LayerInputs => n_layers,
    };
    MemoryPlan {
        device: match planned.on {
            TrainedOn::Cpu => DeviceKind::Cpu,
            TrainedOn::Gpu => DeviceKind::Gpu,
        },
        gpu_declined: planned.gpu_declined,
        weights: planned.weights,
        adapter: planned.adapter,
        activations: planned.activations,
        on_host: planned.on_host,
        available: planned.available,
        fits: planned.fits,
        pass_tokens: planned.pass_tokens as u64,
        gradient_checkpointing: match planned.memory.level {
            MemoryLevel::KeepAll => GradientCheckpointing::None,
            MemoryLevel::DropGateUp => GradientCheckpointing::Selective,
            MemoryLevel::LayerInputs => GradientCheckpointing::Full,
        },
        n_recomputed_layers: n_recomputed as u64,
        streams_on_host: planned.memory.streams == Streams::OnHost,
    }
}
