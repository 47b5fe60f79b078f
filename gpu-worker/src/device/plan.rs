//! What a training would take of the device's memory and what there is for it: what begins one decides it in the same way, here nothing begins.

use engine::config::ModelConfig;
use engine::cuda::{Base, CudaError, Gpu, MemoryPlan, TrainingShape, available_bytes};
use engine::generate::{Batcher, Limits};
use engine::lora::AdapterShape;
use engine::train::training_bytes;
use engine::weights;

use super::gpu::{self, Declined};
use super::{BaseFolder, DeviceError, TrainedOn, TrainingRun, memory};

/// A training that might begin.
pub(crate) struct PlanAsk {
    pub base: BaseFolder,
    /// The base's shape.
    pub model: ModelConfig,
    pub adapter: AdapterShape,
    pub run: TrainingRun,
}

impl PlanAsk {
    /// The largest rank that it needs room for.
    pub(super) fn rank(&self) -> usize {
        gpu::largest_rank(self.adapter.config())
    }
}

/// What it would take, from above, and what there is. Bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Planned {
    pub on: TrainedOn,
    /// Why it would not train on the GPU that there is.
    pub gpu_declined: Option<String>,
    pub weights: u64,
    pub adapter: u64,
    pub activations: u64,
    /// Of the host's memory, where it trains on a GPU.
    pub on_host: u64,
    /// `None`: the system does not say.
    pub available: Option<u64>,
    pub fits: bool,
    pub pass_tokens: usize,
    pub memory: MemoryPlan,
}

/// What of a base's copies it would find. Bytes.
#[derive(Default)]
pub(super) struct Copies {
    /// The one on the GPU that it can train on.
    pub on_gpu: Option<u64>,
    pub on_host: Option<u64>,
    /// Of those that leave once it begins.
    pub leave_gpu: u64,
    pub leave_host: u64,
}

/// What there is for it.
pub(super) struct Room<'a> {
    pub gpu: Option<&'a Gpu>,
    pub limits: Limits,
    pub copies: Copies,
    /// What the training that runs will give back. Bytes.
    pub held_on_gpu: u64,
    pub held_on_host: u64,
}

impl Room<'_> {
    /// Errors: as when it began, for what is wrong with the base's folder.
    pub(super) fn plan(&self, ask: &PlanAsk) -> Result<Planned, DeviceError> {
        let gpu_declined = match self.gpu.map(|gpu| self.on_gpu(gpu, ask)) {
            None => None,
            Some(Ok(planned)) => return Ok(planned),
            Some(Err(Declined::ForTheCpu(reason))) => Some(reason),
            Some(Err(Declined::Failed(error))) => return Err(error),
        };
        self.on_cpu(ask, gpu_declined)
    }

    fn on_gpu(&self, gpu: &Gpu, ask: &PlanAsk) -> Result<Planned, Declined> {
        gpu::supports(&ask.adapter, &ask.run)?;
        let free = available_bytes(gpu)? + self.held_on_gpu;
        let (weights, table, available) = match self.copies.on_gpu {
            Some(weights) => (weights, 0, free + weights),
            None => {
                let room = gpu::room_for(ask.rank());
                let (weights, table) = Base::bytes_of(&ask.model, ask.base.weights, room)?;
                let free = free + self.copies.leave_gpu;
                let serving = Batcher::gpu_bytes(&ask.model, ask.base.weights, self.limits);
                // Where answers have no room beside the base, the training has the GPU alone.
                let left = free.checked_sub(serving).filter(|left| *left >= weights);
                (weights, table, left.unwrap_or(free))
            }
        };
        let Some(left) = available.checked_sub(weights) else {
            let error = CudaError::OutOfMemory {
                needed: weights,
                free: available,
            };
            return Err(error.into());
        };
        let host_bytes = memory::available_bytes().unwrap_or(u64::MAX);
        let config = gpu::config(&ask.run);
        let need = gpu::planned(ask.run.memory, |level| {
            let shape = TrainingShape {
                model: &ask.model,
                adapter: &ask.adapter,
                config: &config,
                longest: ask.run.longest,
                level,
            };
            shape.plan(gpu, left, host_bytes)
        })?;
        Ok(Planned {
            on: TrainedOn::Gpu,
            gpu_declined: None,
            weights,
            adapter: need.adapter,
            activations: need.activations,
            on_host: table + need.on_host,
            available: Some(available),
            fits: true,
            pass_tokens: need.n_rows,
            memory: need.memory,
        })
    }

    fn on_cpu(&self, ask: &PlanAsk, gpu_declined: Option<String>) -> Result<Planned, DeviceError> {
        let free = memory::available_bytes();
        let free = free.map(|free| free + self.held_on_host + self.copies.leave_host);
        let (weights, available) = match self.copies.on_host {
            Some(weights) => (weights, free.map(|free| free + weights)),
            None => {
                let weights = weights::size_bytes(&ask.base.dir, ask.base.weights);
                let weights = weights.map_err(|error| DeviceError::BadInput(error.to_string()))?;
                (weights, free)
            }
        };
        let (model, adapter, shape) = (&ask.model, &ask.adapter, ask.run.shape());
        let level = ask.run.memory.unwrap_or_else(|| {
            let left = available.map(|available| available.saturating_sub(weights));
            memory::level(model, adapter, shape, left).0
        });
        let bytes = training_bytes(model, adapter, shape, level);
        Ok(Planned {
            on: TrainedOn::Cpu,
            gpu_declined,
            weights,
            adapter: bytes.adapter,
            activations: bytes.activations,
            on_host: 0,
            available,
            fits: available.is_none_or(|available| weights + bytes.total() <= available),
            pass_tokens: shape.pass_tokens(),
            memory: level.into(),
        })
    }
}
