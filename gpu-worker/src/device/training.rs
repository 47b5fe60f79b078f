//! The thread that trains: it owns the trainer, and takes one piece of work after the other. Generation beside it goes first,
//! between any two products.

use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, mpsc};

use engine::batch::Example;
use engine::cuda::CudaError;
use engine::lora::Adapter;
use engine::pool::Pool;
use engine::train::{EvalReport, RunShape, StepReport, TrainError, Trainer};
use engine::weights::BaseModel;
use tokio::sync::oneshot;

use super::{
    BaseFolder, DeviceError, FirstAdapter, Load, Reply, Snapshot, TrainingStart, answer, memory,
    serving,
};

pub(super) enum Command {
    Begin {
        id: u64,
        start: Box<TrainingStart>,
        reply: Reply<()>,
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
}

struct Running {
    id: u64,
    base: BaseFolder,
    trainer: Trainer,
}

pub(super) struct Training {
    pool: Pool,
    running: Option<Running>,
    /// The thread that has the bases.
    serving: Sender<serving::Command>,
    load: Arc<Load>,
}

impl Training {
    pub(super) fn new(pool: Pool, serving: Sender<serving::Command>, load: Arc<Load>) -> Self {
        Self {
            pool,
            running: None,
            serving,
            load,
        }
    }

    /// Serves commands until every sender is gone. Errors: `Broken` when the engine broke a promise.
    pub(super) fn serve(&mut self, inbox: &Receiver<Command>) -> Result<(), DeviceError> {
        while let Ok(command) = inbox.recv() {
            self.load.is_training.store(true, Ordering::Relaxed);
            let done = self.take(command);
            self.load.is_training.store(false, Ordering::Relaxed);
            done?;
        }
        Ok(())
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

    fn begin(&mut self, id: u64, start: TrainingStart) -> Result<(), DeviceError> {
        self.running = None;
        let TrainingStart {
            base,
            adapter,
            mut config,
            memory,
            longest,
            state,
        } = start;
        let model = self.borrow(&base)?;
        let adapter = match adapter {
            FirstAdapter::Given(adapter) => adapter,
            FirstAdapter::Fresh { config, seed } => {
                Adapter::init_from(&model, &config, seed, &self.pool)
                    .map_err(|error| DeviceError::BadAdapter(error.to_string()))?
            }
        };
        let shape = RunShape {
            precision: config.precision,
            longest,
        };
        config.memory = memory.unwrap_or_else(|| memory::level(&model, &adapter, shape));
        let mut trainer = Trainer::new(model, adapter, config, self.pool.clone());
        if let Some(state) = state {
            trainer.load_state(&state)?;
        }
        self.running = Some(Running { id, base, trainer });
        Ok(())
    }

    /// The base model, brought to the device where it is not there.
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
            TrainError::NotFinite { .. } => DeviceError::Diverged(error.to_string()),
            TrainError::Gpu(CudaError::OutOfMemory { .. }) => {
                DeviceError::OutOfMemory(error.to_string())
            }
            TrainError::Gpu(CudaError::Unsupported(_)) => DeviceError::BadInput(error.to_string()),
            TrainError::Gpu(_) => DeviceError::Broken(error.to_string()),
        }
    }
}
