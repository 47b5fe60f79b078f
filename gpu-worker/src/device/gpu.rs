//! The GPU that trainings run on, where there is one: which it is, the base that lies there, and whether a training can be
//! computed there at all.

use std::sync::Arc;
use std::time::Instant;

use engine::cuda::{self, Base, BaseError, CudaError, Gpu, RankRoom};
use engine::lora::{Adapter, Init, LoraConfig};
use engine::train::{TrainConfig, TrainError, Trainer};
use platform::config::WorkerDevice;

use super::{BaseFolder, DeviceError, TrainingRun};

/// Opens the GPU that the configuration asks for; `None`: everything is computed on the CPU.
/// Errors: a GPU that is asked for by name cannot be used; with what to do.
pub(crate) fn choose(asked: WorkerDevice) -> Result<Option<Gpu>, String> {
    match asked {
        WorkerDevice::Cpu => Ok(None),
        WorkerDevice::Auto if Gpu::count() == 0 => {
            if Gpu::has_driver() {
                tracing::warn!(
                    "an NVIDIA driver is installed and sees no GPU, jobs train on the CPU; `nvidia-smi` says why, and worker.device = \"cpu\" \
                     ends this warning"
                );
            }
            Ok(None)
        }
        WorkerDevice::Auto => {
            let unusable =
                |error: &CudaError| tracing::warn!(%error, "the GPU cannot be used, jobs train on the CPU");
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

/// Why a training does not begin on the GPU.
pub(super) enum Declined {
    /// It can be computed on the CPU: what the GPU lacks.
    ForTheCpu(String),
    Failed(DeviceError),
}

/// The GPU, and the one base that lies there from job to job.
pub(super) struct GpuTraining {
    gpu: Gpu,
    kept: Option<Kept>,
}

struct Kept {
    folder: BaseFolder,
    /// The largest rank there is room for: the room around a weight decides how products are computed, so one of another rank would
    /// give other bits than the same job has elsewhere.
    r: usize,
    base: Arc<Base>,
}

impl GpuTraining {
    pub(super) fn new(gpu: Gpu) -> Self {
        Self { gpu, kept: None }
    }

    /// Makes a trainer; no other one may live.
    pub(super) fn begin(
        &mut self,
        folder: &BaseFolder,
        adapter: &Adapter,
        run: &TrainingRun,
    ) -> Result<Trainer, Declined> {
        let mut config = TrainConfig {
            precision: run.precision_on_gpu,
            ..run.config.clone()
        };
        // Told before a base is brought there for nothing.
        cuda::supports(adapter, &config)?;
        let base = self.base(folder, largest_rank(adapter.config()))?;
        let fastest = cuda::memory_level(&base, adapter, &config, run.longest)?;
        config.memory = run.memory.unwrap_or(fastest);
        if config.memory < fastest {
            return Err(Declined::ForTheCpu(format!(
                "{:?}, as gradient_checkpointing asks for, does not fit its memory; {fastest:?} would",
                config.memory
            )));
        }
        tracing::info!(level = ?config.memory, gpu = self.gpu.name(), "a training begins on the GPU");
        let mut trainer = Trainer::on_gpu(base, adapter.clone(), config)?;
        if let Some(state) = &run.state {
            trainer.load_state(state)?;
        }
        Ok(trainer)
    }

    /// The base with room for rank `r` alone, brought there in place of another where it is not there.
    fn base(&mut self, folder: &BaseFolder, r: usize) -> Result<Arc<Base>, Declined> {
        if let Some(kept) = &self.kept
            && kept.folder == *folder
            && kept.r == r
        {
            return Ok(Arc::clone(&kept.base));
        }
        self.kept = None;
        let began = Instant::now();
        let room = RankRoom::of_rank(r);
        let base = Arc::new(Base::load_as(&self.gpu, &folder.dir, folder.weights, room)?);
        tracing::info!(
            sha256 = folder.sha256,
            weights = ?folder.weights,
            size_bytes = base.size_bytes(),
            seconds = began.elapsed().as_secs_f64(),
            "base model brought to the GPU"
        );
        self.kept = Some(Kept {
            folder: folder.clone(),
            r,
            base: Arc::clone(&base),
        });
        Ok(base)
    }
}

/// The rank that every linear gets room for; within a fused one, ranks begin at multiples of four.
fn largest_rank(config: &LoraConfig) -> usize {
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
            TrainError::Gpu(CudaError::Unsupported(_) | CudaError::OutOfMemory { .. })
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
            // The CPU has read the same folder.
            BaseError::Load(error) => Declined::ForTheCpu(error.to_string()),
        }
    }
}
