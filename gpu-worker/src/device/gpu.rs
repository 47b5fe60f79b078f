//! The GPU, where there is one: which it is, the bases that lie there, and whether a training can be computed there at all.

use std::sync::Arc;
use std::time::Instant;

use engine::MemoryLevel;
use engine::cuda::{self, Base, BaseError, CudaError, Gpu, Need, RankRoom};
use engine::lora::{Adapter, AdapterShape, Init, LoraConfig};
use engine::train::{TrainConfig, TrainError, Trainer};
use platform::config::WorkerDevice;

use super::{BaseFolder, DeviceError, TrainingRun, memory};

/// Opens the GPU that the configuration asks for; `None`: everything is computed on the CPU.
/// Errors: a GPU that is asked for by name cannot be used; with what to do.
pub(crate) fn choose(asked: WorkerDevice) -> Result<Option<Gpu>, String> {
    match asked {
        WorkerDevice::Cpu => Ok(None),
        WorkerDevice::Auto if Gpu::count() == 0 => {
            if Gpu::has_driver() {
                tracing::warn!(
                    "an NVIDIA driver is installed and sees no GPU, everything is computed on the CPU; `nvidia-smi` says why, and worker.device = \"cpu\" \
                     ends this warning"
                );
            }
            Ok(None)
        }
        WorkerDevice::Auto => {
            let unusable =
                |error: &CudaError| tracing::warn!(%error, "the GPU cannot be used, everything is computed on the CPU");
            Ok(Gpu::open(0).inspect_err(unusable).ok())
        }
        WorkerDevice::Cuda { ordinal } => Gpu::open(ordinal).map(Some).map_err(|error| {
            format!(
                "worker.device is \"cuda:{ordinal}\", and of {} GPUs that one cannot be used: {error}. Mend that (`nvidia-smi` \
                 shows what the driver sees), or set worker.device to \"cpu\", or to \"auto\", which takes a GPU where there is one",
                Gpu::count()
            )
        }),
    }
}

/// Why the GPU is not used for something.
pub(super) enum Declined {
    /// It can be computed on the CPU: what the GPU lacks.
    ForTheCpu(String),
    Failed(DeviceError),
}

/// The rank that every base has room for at least: jobs of most ranks find it as chats left it.
const LEAST_RANK: usize = 32;

/// A base model on the GPU: one copy for what is generated from it and for a training.
pub(super) struct GpuBase {
    pub base: Arc<Base>,
    /// The largest rank there is room for: the room around a weight decides how products are computed, so one of another rank would
    /// give other bits than the same job has elsewhere.
    pub rank: usize,
}

impl GpuBase {
    /// Brings a base to `gpu` with room for `rank` alone, or for [`LEAST_RANK`].
    pub(super) fn load(gpu: &Gpu, folder: &BaseFolder, rank: usize) -> Result<Self, Declined> {
        let began = Instant::now();
        let rank = rank.max(LEAST_RANK);
        let room = room_for(rank);
        let base = Base::load_as(gpu, &folder.dir, folder.weights, room)?;
        tracing::info!(
            sha256 = folder.sha256,
            weights = ?folder.weights,
            rank,
            size_bytes = base.size_bytes(),
            seconds = began.elapsed().as_secs_f64(),
            "base model brought to the GPU"
        );
        Ok(Self {
            base: Arc::new(base),
            rank,
        })
    }

    /// Whether a training whose adapter has at most `rank` computes on it what it computes anywhere.
    pub(super) fn has_room_for(&self, rank: usize) -> bool {
        self.rank == rank.max(LEAST_RANK)
    }
}

/// The room that a copy of a base has for a training whose adapter has at most `rank`.
pub(super) fn room_for(rank: usize) -> RankRoom {
    RankRoom::of_rank(rank.max(LEAST_RANK))
}

/// What `plan` makes of the level that is asked for.
pub(super) fn planned(
    asked: Option<MemoryLevel>,
    plan: impl Fn(Option<MemoryLevel>) -> Result<Need, CudaError>,
) -> Result<Need, Declined> {
    match (plan(asked), asked) {
        (Err(CudaError::OutOfMemory { .. }), Some(asked)) => {
            let fastest = plan(None)?.memory.level;
            Err(Declined::ForTheCpu(format!(
                "{asked:?}, as gradient_checkpointing asks for, does not fit its memory; {fastest:?} would"
            )))
        }
        (need, _) => Ok(need?),
    }
}

/// Makes a trainer on `base`; no other one may live.
pub(super) fn begin(
    gpu: &Gpu,
    base: Arc<Base>,
    adapter: &Adapter,
    run: &TrainingRun,
) -> Result<Trainer, Declined> {
    let config = config(run);
    // Where the system does not say, as if there were plenty.
    let host_bytes = memory::available_bytes().unwrap_or(u64::MAX);
    let plan = |asked| {
        let longest = run.longest;
        cuda::plan_memory(gpu, &base, adapter, &config, longest, asked, host_bytes)
    };
    let memory = planned(run.memory, plan)?.memory;
    tracing::info!(?memory, gpu = gpu.name(), "a training begins on the GPU");
    let mut trainer = Trainer::on_gpu(gpu, base, adapter.clone(), config, memory)?;
    if let Some(state) = &run.state {
        trainer.load_state(state)?;
    }
    Ok(trainer)
}

/// Whether a GPU can compute such a training, whatever the base.
pub(super) fn supports(adapter: &AdapterShape, run: &TrainingRun) -> Result<(), Declined> {
    Ok(cuda::supports(adapter, &config(run))?)
}

/// With the precision for a GPU.
pub(super) fn config(run: &TrainingRun) -> TrainConfig {
    TrainConfig {
        precision: run.precision_on_gpu,
        ..run.config.clone()
    }
}

/// The rank that every linear gets room for; within a fused one, ranks begin at multiples of four.
pub(super) fn largest_rank(config: &LoraConfig) -> usize {
    let patterns = config.rank_pattern.iter().map(|(_, r)| *r);
    let largest = patterns.fold(config.r, usize::max).next_multiple_of(4);
    match config.init_lora_weights {
        // What it began with is taken away from the weights beside it.
        Init::Pissa => 2 * largest,
        Init::Default | Init::Gaussian => largest,
    }
}

impl From<CudaError> for Declined {
    fn from(error: CudaError) -> Self {
        TrainError::from(error).into()
    }
}

impl From<TrainError> for Declined {
    fn from(error: TrainError) -> Self {
        match error {
            TrainError::Gpu(
                CudaError::Unsupported(_)
                | CudaError::OutOfMemory { .. }
                | CudaError::OutOfHostMemory { .. },
            )
            // It began on the CPU perhaps.
            | TrainError::OtherArithmetic { .. } => Declined::ForTheCpu(error.to_string()),
            error => Declined::Failed(error.into()),
        }
    }
}

impl From<BaseError> for Declined {
    fn from(error: BaseError) -> Self {
        match error {
            BaseError::Cuda(error) => error.into(),
            // The CPU says what is wrong with the folder, or can read it.
            BaseError::Load(error) => Declined::ForTheCpu(error.to_string()),
        }
    }
}
