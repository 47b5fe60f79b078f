//! What the device's thread does: take commands, then compute one piece — a step of generation or a piece of
//! training — and look again.

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use engine::generate::{
    AdmitError, Batcher, GenerateError, GenerateRequest, Limits, Sampling, SequenceId,
};
use engine::pool::Pool;
use engine::train::{TrainError, Trainer};
use engine::weights::BaseModel;
use tokio::sync::mpsc::UnboundedSender;

use super::{
    Ask, BaseFolder, Command, DeviceError, Load, MAX_WAITING, Output, Reply, Snapshot,
    TrainingStart, Work,
};

/// A base model on the device, with everything generated from it.
struct LoadedBase {
    sha256: String,
    model: Arc<BaseModel>,
    batcher: Batcher,
    live: HashMap<SequenceId, Live>,
    waiting: VecDeque<Waiting>,
}

/// A sequence being generated.
struct Live {
    id: u64,
    index: u32,
    outputs: UnboundedSender<Output>,
}

/// A conversation of which some answers have no room yet.
struct Waiting {
    id: u64,
    ask: Ask,
    /// The next answer to admit.
    next: u32,
    outputs: UnboundedSender<Output>,
    /// Answers that are not wanted any more.
    stopped: Vec<u32>,
}

struct Training {
    id: u64,
    base: String,
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
        let generating = self.bases.iter().any(|base| !base.live.is_empty());
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
        let n_live: usize = self.bases.iter().map(|base| base.live.len()).sum();
        let n_waiting: usize = self.bases.iter().map(|base| base.waiting.len()).sum();
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
            } => answer(
                reply,
                self.enqueue(Waiting {
                    id,
                    ask,
                    next: 0,
                    outputs,
                    stopped: Vec::new(),
                }),
            ),
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
        let n_waiting: usize = self.bases.iter().map(|base| base.waiting.len()).sum();
        if n_waiting >= MAX_WAITING as usize {
            return Err(DeviceError::Busy);
        }
        self.loaded(&waiting.ask.base)?.waiting.push_back(waiting);
        Ok(())
    }

    /// The base `folder` names, brought here where it is not.
    fn loaded(&mut self, folder: &BaseFolder) -> Result<&mut LoadedBase, DeviceError> {
        if let Some(at) = self
            .bases
            .iter()
            .position(|base| base.sha256 == folder.sha256)
        {
            return Ok(&mut self.bases[at]);
        }
        let trained = self
            .training
            .as_ref()
            .map(|training| training.base.as_str());
        self.bases
            .retain(|base| !base.is_idle() || Some(base.sha256.as_str()) == trained);
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
            config,
            state,
        } = start;
        let model = Arc::clone(&self.loaded(&base)?.model);
        let mut trainer = Trainer::new(model, adapter, config, self.pool.clone());
        if let Some(state) = state {
            trainer.load_state(&state)?;
        }
        self.training = Some(Training {
            id,
            base: base.sha256,
            trainer,
        });
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
                    .find(|base| base.sha256 == training.base);
                let base = base.expect("a base that trains stays loaded — a bug in the device");
                answer(
                    reply,
                    base.batcher
                        .score(&tokens, Some(&adapter))
                        .map_err(DeviceError::from),
                )
            }
        }
    }
}

impl LoadedBase {
    fn load(folder: &BaseFolder, pool: &Pool, limits: &Limits) -> Result<Self, DeviceError> {
        let began = Instant::now();
        let model = BaseModel::load(&folder.dir, pool)
            .map_err(|error| DeviceError::BadInput(error.to_string()))?;
        let model = Arc::new(model);
        let batcher = Batcher::new(Arc::clone(&model), pool.clone(), *limits);
        let seconds = began.elapsed().as_secs_f64();
        let sha256 = folder.sha256.clone();
        tracing::info!(
            sha256,
            n_parameters = model.n_parameters(),
            seconds,
            "base model loaded"
        );
        Ok(Self {
            sha256,
            model,
            batcher,
            live: HashMap::new(),
            waiting: VecDeque::new(),
        })
    }

    fn is_idle(&self) -> bool {
        self.live.is_empty() && self.waiting.is_empty()
    }

    /// Frees what nobody reads any more, then admits in order of arrival.
    fn make_room(&mut self) {
        let left: Vec<SequenceId> = self
            .live
            .iter()
            .filter(|(_, live)| live.outputs.is_closed())
            .map(|(id, _)| *id)
            .collect();
        left.into_iter().for_each(|sequence| self.cancel(sequence));
        self.waiting.retain(|waiting| !waiting.outputs.is_closed());
        while let Some(waiting) = self.waiting.front_mut() {
            if waiting.next >= waiting.ask.n {
                self.waiting.pop_front();
                continue;
            }
            let index = waiting.next;
            if waiting.stopped.contains(&index) {
                waiting.next += 1;
                continue;
            }
            match self.batcher.admit(waiting.ask.request(index)) {
                Ok(sequence) => {
                    waiting.next += 1;
                    let live = Live {
                        id: waiting.id,
                        index,
                        outputs: waiting.outputs.clone(),
                    };
                    self.live.insert(sequence, live);
                }
                Err(AdmitError::Full) if !self.live.is_empty() => return,
                Err(error) => {
                    let _ = waiting
                        .outputs
                        .send(Output::Failed(DeviceError::BadInput(error.to_string())));
                    self.waiting.pop_front();
                }
            }
        }
    }

    /// One forward for all live sequences.
    fn generate(&mut self) -> Result<(), DeviceError> {
        if self.live.is_empty() {
            return Ok(());
        }
        let outputs = match self.batcher.step() {
            Ok(outputs) => outputs,
            Err(GenerateError::NotFinite(sequence)) => {
                self.fail(sequence);
                return Ok(());
            }
            Err(error) => return self.fail_all(error.into()),
        };
        for output in outputs {
            let sequence = output.id;
            let finished = output.finished.is_some();
            let Some(live) = self.live.get(&sequence) else {
                continue;
            };
            let read = live.outputs.send(Output::of(live.index, output)).is_ok();
            if finished {
                self.live.remove(&sequence);
            } else if !read {
                self.cancel(sequence);
            }
        }
        Ok(())
    }

    /// One sequence computed nonsense (an adapter with damaged values); the others go on.
    fn fail(&mut self, sequence: SequenceId) {
        self.batcher.cancel(sequence);
        if let Some(live) = self.live.remove(&sequence) {
            let error = DeviceError::BadInput(GenerateError::NotFinite(sequence).to_string());
            // A reader that left needs no error.
            let _ = live.outputs.send(Output::Failed(error));
        }
    }

    fn fail_all(&mut self, error: DeviceError) -> Result<(), DeviceError> {
        for (sequence, live) in std::mem::take(&mut self.live) {
            self.batcher.cancel(sequence);
            // A reader that left needs no error.
            let _ = live.outputs.send(Output::Failed(error.clone()));
        }
        if error.is_fatal() { Err(error) } else { Ok(()) }
    }

    fn cancel(&mut self, sequence: SequenceId) {
        self.batcher.cancel(sequence);
        self.live.remove(&sequence);
    }

    fn stop(&mut self, id: u64, index: u32) {
        let found = self
            .live
            .iter()
            .find(|(_, live)| live.id == id && live.index == index);
        if let Some(sequence) = found.map(|(sequence, _)| *sequence) {
            self.cancel(sequence);
        } else if let Some(waiting) = self.waiting.iter_mut().find(|waiting| waiting.id == id) {
            waiting.stopped.push(index);
        }
    }
}

impl Ask {
    fn request(&self, index: u32) -> GenerateRequest {
        let seed = self.sampling.seed.wrapping_add(index.into());
        GenerateRequest {
            prompt: self.prompt.clone(),
            adapter: self.adapter.clone(),
            sampling: Sampling {
                seed,
                ..self.sampling.clone()
            },
            max_new_tokens: self.max_new_tokens,
            stop_token_ids: self.stop_token_ids.clone(),
            top_logprobs: self.top_logprobs,
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

impl From<GenerateError> for DeviceError {
    fn from(error: GenerateError) -> Self {
        match error {
            GenerateError::OutOfMemory(_) => DeviceError::OutOfMemory(error.to_string()),
            GenerateError::BadInput(_) | GenerateError::NotFinite(_) => {
                DeviceError::BadInput(error.to_string())
            }
        }
    }
}
