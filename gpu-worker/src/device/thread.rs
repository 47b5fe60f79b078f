//! What the device's thread does: take commands, then compute one piece — a step of generation or a piece of
//! training — and look again.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use engine::generate::Limits;
use engine::lora::Adapter;
use engine::pool::Pool;
use engine::train::{RunShape, TrainError, Trainer};

use super::loaded_base::{LoadedBase, Waiting};
use super::{
    BaseFolder, Command, DeviceError, FirstAdapter, Load, MAX_WAITING, Reply, Snapshot,
    TrainingStart, Work, memory,
};

struct Training {
    id: u64,
    base: BaseFolder,
    trainer: Trainer,
}

struct Thread {
    pool: Pool,
    limits: Limits,
    bases: Vec<LoadedBase>,
    training: Option<Training>,
    work: VecDeque<Work>,
    /// How long generation may go on before training has its next turn: as long as training just had.
    owed: Duration,
    load: Arc<Load>,
}

/// Serves commands until every sender is gone. Errors: `Broken` when the engine broke a promise.
pub(super) fn run(
    inbox: Receiver<Command>,
    pool: Pool,
    limits: Limits,
    load: Arc<Load>,
) -> Result<(), DeviceError> {
    let mut thread = Thread {
        pool,
        limits,
        bases: Vec::new(),
        training: None,
        work: VecDeque::new(),
        owed: Duration::ZERO,
        load,
    };
    catch_unwind(AssertUnwindSafe(|| thread.serve(&inbox))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("unknown panic");
        Err(DeviceError::Broken(text.to_owned()))
    })
}

impl Thread {
    fn serve(&mut self, inbox: &Receiver<Command>) -> Result<(), DeviceError> {
        loop {
            if self.is_idle() {
                match inbox.recv() {
                    Ok(command) => self.take(command)?,
                    Err(_) => return Ok(()),
                }
            }
            loop {
                match inbox.try_recv() {
                    Ok(command) => self.take(command)?,
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return Ok(()),
                }
            }
            self.bases.iter_mut().for_each(LoadedBase::make_room);
            self.publish_load();
            self.compute_one()?;
            self.publish_load();
        }
    }

    fn is_idle(&self) -> bool {
        self.work.is_empty() && self.bases.iter().all(LoadedBase::is_idle)
    }

    /// Generation and training by turns of about equal length; whichever is alone has the whole device.
    fn compute_one(&mut self) -> Result<(), DeviceError> {
        let generating = self.bases.iter().any(|base| base.n_live() > 0);
        let began = Instant::now();
        if generating && (self.work.is_empty() || !self.owed.is_zero()) {
            self.bases.iter_mut().try_for_each(LoadedBase::generate)?;
            self.owed = self.owed.saturating_sub(began.elapsed());
            return Ok(());
        }
        if let Some(work) = self.work.pop_front() {
            self.train(work)?;
            self.owed = if generating {
                began.elapsed()
            } else {
                Duration::ZERO
            };
        }
        Ok(())
    }

    fn publish_load(&self) {
        let n_live: usize = self.bases.iter().map(|base| base.n_live()).sum();
        let n_waiting: usize = self.bases.iter().map(|base| base.n_waiting()).sum();
        self.load.n_live.store(n_live as u32, Ordering::Relaxed);
        self.load
            .n_waiting
            .store(n_waiting as u32, Ordering::Relaxed);
    }

    fn take(&mut self, command: Command) -> Result<(), DeviceError> {
        match command {
            Command::Load { base, reply } => answer(reply, self.loaded(&base).map(|_| ())),
            Command::Generate {
                id,
                ask,
                outputs,
                reply,
            } => answer(reply, self.enqueue(Waiting::new(id, ask, outputs))),
            Command::Stop { id, index } => {
                self.bases.iter_mut().for_each(|base| base.stop(id, index));
                Ok(())
            }
            Command::BeginTraining { id, start, reply } => {
                let begun = self.begin_training(id, *start);
                answer(reply, begun)
            }
            Command::EndTraining { id } => {
                if self
                    .training
                    .as_ref()
                    .is_some_and(|training| training.id == id)
                {
                    self.training = None;
                    self.work.clear();
                }
                Ok(())
            }
            Command::Work(work) => {
                self.work.push_back(work);
                Ok(())
            }
        }
    }

    fn enqueue(&mut self, waiting: Waiting) -> Result<(), DeviceError> {
        let n_waiting: usize = self.bases.iter().map(|base| base.n_waiting()).sum();
        if n_waiting >= MAX_WAITING as usize {
            return Err(DeviceError::Busy);
        }
        self.loaded(waiting.base())?.enqueue(waiting);
        Ok(())
    }

    /// The base `folder` names, brought here where it is not.
    fn loaded(&mut self, folder: &BaseFolder) -> Result<&mut LoadedBase, DeviceError> {
        if let Some(at) = self.bases.iter().position(|base| base.folder == *folder) {
            return Ok(&mut self.bases[at]);
        }
        let trained = self.training.as_ref().map(|training| &training.base);
        self.bases
            .retain(|base| !base.is_idle() || Some(&base.folder) == trained);
        // The one that trains and one that is asked: a third would not fit where two barely do.
        if self.bases.len() > 1 {
            return Err(DeviceError::Busy);
        }
        let base = LoadedBase::load(folder, &self.pool, &self.limits)?;
        self.bases.push(base);
        Ok(self
            .bases
            .last_mut()
            .expect("just pushed — a bug in the device"))
    }

    fn begin_training(&mut self, id: u64, start: TrainingStart) -> Result<(), DeviceError> {
        self.training = None;
        self.work.clear();
        let TrainingStart {
            base,
            adapter,
            mut config,
            memory,
            longest,
            state,
        } = start;
        let model = Arc::clone(&self.loaded(&base)?.model);
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
        self.training = Some(Training { id, base, trainer });
        Ok(())
    }

    fn train(&mut self, work: Work) -> Result<(), DeviceError> {
        let Some(training) = self.training.as_mut() else {
            return Ok(());
        };
        let trainer = &mut training.trainer;
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
            Work::Snapshot { reply } => answer(
                reply,
                Ok(Snapshot {
                    state: trainer.save_state(),
                    adapter: trainer.adapter(),
                }),
            ),
            Work::LabelLogprobs { example, reply } => answer(
                reply,
                trainer.label_logprobs(&example).map_err(DeviceError::from),
            ),
            Work::Score {
                tokens,
                adapter,
                reply,
            } => {
                let base = self
                    .bases
                    .iter_mut()
                    .find(|base| base.folder == training.base);
                let base = base.expect("a base that trains stays loaded — a bug in the device");
                answer(reply, base.score(&tokens, &adapter))
            }
        }
    }
}

/// Hands `result` to who asked; what broke the engine ends the thread too.
fn answer<T>(reply: Reply<T>, result: Result<T, DeviceError>) -> Result<(), DeviceError> {
    let fatal = result
        .as_ref()
        .err()
        .filter(|error| error.is_fatal())
        .cloned();
    // Who asked may have left meanwhile: a cancelled job, a closed connection.
    let _ = reply.send(result);
    fatal.map_or(Ok(()), Err)
}

impl From<TrainError> for DeviceError {
    fn from(error: TrainError) -> Self {
        match error {
            TrainError::OutOfMemory(_) => DeviceError::OutOfMemory(error.to_string()),
            TrainError::BadInput(_) => DeviceError::BadInput(error.to_string()),
            TrainError::NotFinite { .. } => DeviceError::Diverged(error.to_string()),
        }
    }
}
