//! The thread that trains: it owns the trainer, and takes one piece of work after the other. Generation beside it goes first,
//! between any two products on the CPU.

use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, mpsc};

use engine::Precision;
use engine::batch::Example;
use engine::config::ModelConfig;
use engine::cuda::{CudaError, Gpu};
use engine::lora::{Adapter, AdapterError, LoraConfig};
use engine::pool::Pool;
use engine::train::{
    Compared, EvalReport, PreferenceReport, PreferenceStepReport, StepReport, TrainError, Trainer,
    training_bytes,
};
use engine::weights::BaseModel;
use tokio::sync::oneshot;

use super::gpu::{self, Declined};
use super::{
    BaseFolder, ComparedBatch, DeviceError, FirstAdapter, Load, Reply, Snapshot, TrainedOn,
    TrainingRun, TrainingStart, answer, memory, serving,
};

pub(super) enum Command {
    Begin {
        id: u64,
        start: Box<TrainingStart>,
        reply: Reply<TrainedOn>,
    },
    End {
        id: u64,
    },
    Work(Work),
}

/// One piece of a training, done whole.
pub(super) enum Work {
    Step {
        batch: Vec<Example>,
        reply: Reply<StepReport>,
    },
    Evaluate {
        examples: Vec<Example>,
        reply: Reply<EvalReport>,
    },
    StepCompared {
        batch: ComparedBatch,
        reply: Reply<PreferenceStepReport>,
    },
    EvaluateCompared {
        batch: ComparedBatch,
        reply: Reply<PreferenceReport>,
    },
    ReferenceLogprobs {
        rows: Compared,
        reply: Reply<Vec<f64>>,
    },
    Snapshot {
        reply: Reply<Snapshot>,
    },
    LabelLogprobs {
        example: Example,
        reply: Reply<Vec<f32>>,
    },
    Score {
        tokens: Vec<u32>,
        adapter: Arc<Adapter>,
        reply: Reply<Vec<f32>>,
    },
    GeneratesIn {
        adapter: Arc<Adapter>,
        reply: Reply<Precision>,
    },
}

struct Running {
    id: u64,
    base: BaseFolder,
    trainer: Trainer,
    on: TrainedOn,
    /// What it holds of the host's memory where it computes there, from above. Bytes.
    on_host: u64,
}

pub(super) struct Training {
    pool: Pool,
    gpu: Option<Gpu>,
    running: Option<Running>,
    /// The thread that has the bases.
    serving: Sender<serving::Command>,
    load: Arc<Load>,
}

impl Training {
    pub(super) fn new(
        pool: Pool,
        gpu: Option<Gpu>,
        serving: Sender<serving::Command>,
        load: Arc<Load>,
    ) -> Self {
        Self {
            pool,
            gpu,
            running: None,
            serving,
            load,
        }
    }

    /// Serves commands until every sender is gone. Errors: `Broken` when the engine broke a promise.
    pub(super) fn serve(&mut self, inbox: &Receiver<Command>) -> Result<(), DeviceError> {
        while let Ok(command) = inbox.recv() {
            let uses_pool = !(self.is_on_gpu() && matches!(command, Command::Work(_)));
            self.load.is_training.store(uses_pool, Ordering::Relaxed);
            let done = self.take(command);
            self.load.is_training.store(false, Ordering::Relaxed);
            self.publish_held();
            done?;
        }
        Ok(())
    }

    /// Tells what would be free without the training that runs.
    fn publish_held(&self) {
        let running = self.running.as_ref();
        let on_gpu = running.map_or(0, |running| running.trainer.gpu_bytes());
        let on_host = running.map_or(0, |running| running.on_host);
        self.load.held_on_gpu.store(on_gpu, Ordering::Relaxed);
        self.load.held_on_host.store(on_host, Ordering::Relaxed);
    }

    fn is_on_gpu(&self) -> bool {
        let running = self.running.as_ref();
        running.is_some_and(|running| running.on == TrainedOn::Gpu)
    }

    fn take(&mut self, command: Command) -> Result<(), DeviceError> {
        match command {
            Command::Begin { id, start, reply } => {
                let begun = self.begin(id, *start);
                answer(reply, begun)
            }
            Command::End { id } => {
                // One that began too late is not the one that ended; one that never began has borrowed perhaps.
                if self.running.as_ref().is_none_or(|running| running.id == id) {
                    self.running = None;
                    // A thread that has ended keeps no base.
                    let _ = self.serving.send(serving::Command::Return);
                }
                Ok(())
            }
            Command::Work(work) => self.work(work),
        }
    }

    fn begin(&mut self, id: u64, start: TrainingStart) -> Result<TrainedOn, DeviceError> {
        self.running = None;
        let TrainingStart { base, adapter, run } = start;
        let adapter = match adapter {
            FirstAdapter::Given(adapter) => *adapter,
            FirstAdapter::Fresh { config, seed } => self.fresh(&base, &config, seed)?,
        };
        let gpu = self.gpu.as_ref();
        let on_gpu = gpu.map(|gpu| self.begin_on_gpu(gpu, &base, &adapter, &run));
        let ((trainer, on_host), on) = match on_gpu {
            Some(Ok(trainer)) => ((trainer, 0), TrainedOn::Gpu),
            Some(Err(Declined::Failed(error))) => return Err(error),
            Some(Err(Declined::ForTheCpu(reason))) => {
                tracing::warn!(reason, "the GPU is not used, the job trains on the CPU");
                let begun = self.begin_on_cpu(&base, adapter, run);
                let trainer = begun.map_err(|error| match error {
                    DeviceError::OtherArithmetic(other) => {
                        DeviceError::OtherArithmetic(format!("{other}; on the GPU: {reason}"))
                    }
                    error => error,
                });
                (trainer?, TrainedOn::Cpu)
            }
            None => (self.begin_on_cpu(&base, adapter, run)?, TrainedOn::Cpu),
        };
        self.running = Some(Running {
            id,
            base,
            trainer,
            on,
            on_host,
        });
        Ok(on)
    }

    /// An adapter as the first step finds it.
    fn fresh(
        &self,
        base: &BaseFolder,
        config: &LoraConfig,
        seed: u64,
    ) -> Result<Adapter, DeviceError> {
        let shape = ModelConfig::from_dir(&base.dir);
        let shape = shape.map_err(|error| DeviceError::BadInput(error.to_string()))?;
        let fresh = match Adapter::init(&shape, config, seed) {
            Err(AdapterError::NeedsBase { .. }) => {
                Adapter::init_from(&*self.borrow(base)?, config, seed, &self.pool)
            }
            fresh => fresh,
        };
        fresh.map_err(|error| DeviceError::BadAdapter(error.to_string()))
    }

    fn begin_on_gpu(
        &self,
        gpu: &Gpu,
        base: &BaseFolder,
        adapter: &Adapter,
        run: &TrainingRun,
    ) -> Result<Trainer, Declined> {
        // Told before a base is brought there for nothing.
        gpu::supports(&adapter.shape(), run)?;
        let rank = gpu::largest_rank(adapter.config());
        let (reply, answer) = oneshot::channel();
        let lend = serving::Command::LendOnGpu {
            base: base.clone(),
            rank,
            reply,
        };
        let ended = |()| Declined::Failed(DeviceError::ended());
        self.serving.send(lend).map_err(|_| ended(()))?;
        let lies = answer.blocking_recv().map_err(|_| ended(()))??;
        gpu::begin(gpu, lies, adapter, run)
    }

    /// The trainer, and what it takes of the host's memory. Bytes.
    fn begin_on_cpu(
        &self,
        base: &BaseFolder,
        adapter: Adapter,
        run: TrainingRun,
    ) -> Result<(Trainer, u64), DeviceError> {
        let model = self.borrow(base)?;
        let (adapter_shape, shape) = (adapter.shape(), run.shape());
        let mut config = run.config;
        config.memory = run.memory.unwrap_or_else(|| {
            let available = memory::available_bytes();
            let (level, too_large) =
                memory::level(model.config(), &adapter_shape, shape, available);
            if let Some(too_large) = too_large {
                tracing::warn!(%too_large, "a training may not fit");
            }
            tracing::info!(?level, available, "memory planned");
            level
        });
        let needed = training_bytes(model.config(), &adapter_shape, shape, config.memory);
        let mut trainer = Trainer::new(model, adapter, config, self.pool.clone());
        if let Some(state) = run.state {
            trainer.load_state(&state)?;
        }
        Ok((trainer, needed.total()))
    }

    /// The base model on the CPU, brought there where it is not.
    fn borrow(&self, base: &BaseFolder) -> Result<Arc<BaseModel>, DeviceError> {
        let (reply, answer) = oneshot::channel();
        let base = base.clone();
        let asked = self.serving.send(serving::Command::Lend { base, reply });
        asked.map_err(|mpsc::SendError(_)| DeviceError::ended())?;
        answer.blocking_recv().map_err(|_| DeviceError::ended())?
    }

    fn work(&mut self, work: Work) -> Result<(), DeviceError> {
        let Some(Running { base, trainer, .. }) = self.running.as_mut() else {
            return Ok(());
        };
        match work {
            Work::Step { reply, .. } if reply.is_closed() => Ok(()),
            Work::Step { batch, reply } => {
                answer(reply, trainer.step(&batch).map_err(DeviceError::from))
            }
            Work::Evaluate { reply, .. } if reply.is_closed() => Ok(()),
            Work::Evaluate { examples, reply } => answer(
                reply,
                trainer.evaluate(&examples).map_err(DeviceError::from),
            ),
            Work::StepCompared { reply, .. } if reply.is_closed() => Ok(()),
            Work::StepCompared { batch, reply } => {
                let stepped = trainer.step_compared(&batch.rows, &batch.references);
                answer(reply, stepped.map_err(DeviceError::from))
            }
            Work::EvaluateCompared { batch, reply } => {
                let scored = trainer.evaluate_compared(&batch.rows, &batch.references);
                answer(reply, scored.map_err(DeviceError::from))
            }
            Work::ReferenceLogprobs { rows, reply } => {
                let scored = trainer.reference_logprobs(&rows);
                answer(reply, scored.map_err(DeviceError::from))
            }
            Work::Snapshot { reply } => answer(reply, snapshot(trainer)),
            Work::LabelLogprobs { example, reply } => answer(
                reply,
                trainer.label_logprobs(&example).map_err(DeviceError::from),
            ),
            Work::Score {
                tokens,
                adapter,
                reply,
            } => {
                let score = serving::Command::Score {
                    base: base.clone(),
                    tokens,
                    adapter,
                    reply,
                };
                // Who asked hears of a thread that has ended by the reply that is dropped.
                let _ = self.serving.send(score);
                Ok(())
            }
            Work::GeneratesIn { adapter, reply } => {
                let asked = serving::Command::GeneratesIn {
                    base: base.clone(),
                    adapter,
                    reply,
                };
                let _ = self.serving.send(asked);
                Ok(())
            }
        }
    }
}

fn snapshot(trainer: &Trainer) -> Result<Snapshot, DeviceError> {
    Ok(Snapshot {
        state: trainer.save_state()?,
        adapter: trainer.adapter()?,
    })
}

impl From<TrainError> for DeviceError {
    fn from(error: TrainError) -> Self {
        match error {
            TrainError::OutOfMemory(_) => DeviceError::OutOfMemory(error.to_string()),
            TrainError::BadInput(_) => DeviceError::BadInput(error.to_string()),
            TrainError::OtherArithmetic { .. } => DeviceError::OtherArithmetic(error.to_string()),
            TrainError::NotFinite { .. } => DeviceError::Diverged(error.to_string()),
            TrainError::Gpu(CudaError::OutOfMemory { .. } | CudaError::OutOfHostMemory { .. }) => {
                DeviceError::OutOfMemory(error.to_string())
            }
            TrainError::Gpu(CudaError::Unsupported(_)) => DeviceError::BadInput(error.to_string()),
            TrainError::Gpu(_) => DeviceError::Broken(error.to_string()),
        }
    }
}
