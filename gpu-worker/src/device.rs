//! The device: one thread generates and owns the bases, another one trains, on a GPU or on the pool that both share; they are
//! spoken to by commands. It knows no job, no text and no HTTP.

mod gpu;
mod loaded_base;
mod memory;
mod plan;
mod priority;
mod serving;
mod training;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};

use engine::batch::Example;
use engine::cuda::Gpu;
use engine::generate::{FinishReason, GenerateRequest, Limits, StepOutput};
use engine::lora::{Adapter, LoraConfig};
use engine::pool::Pool;
use engine::train::{
    Compared, EvalReport, PreferenceReport, PreferenceStepReport, RunShape, StepReport, TrainConfig,
};
use engine::weights::BaseWeights;
use engine::{MemoryLevel, Precision};
use tokio::sync::{mpsc as tokio_mpsc, oneshot};

pub(crate) use gpu::choose as choose_gpu;
pub(crate) use plan::{PlanAsk, Planned};
use training::Work;

/// Why the device did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DeviceError {
    #[error("the device is out of memory: {0}")]
    OutOfMemory(String),
    /// What was asked makes no sense; asking again changes nothing.
    #[error("{0}")]
    BadInput(String),
    /// No answer can be held to the grammar that was asked for.
    #[error("{0}")]
    Grammar(String),
    /// The training began on a device that computes otherwise.
    #[error("{0}")]
    OtherArithmetic(String),
    /// The base has no such adapter.
    #[error("{0}")]
    BadAdapter(String),
    /// The loss or a gradient is no number any more.
    #[error("{0}")]
    Diverged(String),
    /// Other bases are in use, and there is no room for one more.
    #[error("the device is busy")]
    Busy,
    /// The engine broke a promise; the process ends soon, as its state can no longer be trusted.
    #[error("the engine failed: {0}")]
    Broken(String),
}

impl DeviceError {
    fn ended() -> Self {
        DeviceError::Broken("the device's thread has ended".to_owned())
    }

    /// Nothing this process computes from here on can be trusted.
    pub(crate) fn is_fatal(&self) -> bool {
        matches!(self, DeviceError::Broken(_))
    }
}

type Reply<T> = oneshot::Sender<Result<T, DeviceError>>;

/// A base model's folder on this host, the hash that names it, and how its weights are held: one base held in two ways
/// is two on the device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BaseFolder {
    pub sha256: String,
    pub dir: PathBuf,
    pub weights: BaseWeights,
}

/// A conversation to go on with, `n` times.
#[derive(Clone)]
pub(crate) struct Ask {
    pub base: BaseFolder,
    /// Answer `i` draws with its seed + i.
    pub request: GenerateRequest,
    pub n: u32,
}

impl Ask {
    /// What the model says of the prompt itself.
    pub(crate) fn scoring(&self) -> Self {
        let mut scoring = self.clone();
        scoring.request.max_new_tokens = 0;
        scoring.n = 1;
        scoring
    }
}

/// What an answer's reader gets.
pub(crate) enum Output {
    Token(Token),
    /// No more will come.
    Failed(DeviceError),
}

/// The next token of answer `index`, or of a prompt that is scored.
pub(crate) struct Token {
    pub index: u32,
    pub token: u32,
    pub logprob: f32,
    pub top: Vec<(u32, f32)>,
    /// Tokens of the prompt that had been run before.
    pub n_reused: usize,
    pub finished: Option<FinishReason>,
}

impl Output {
    fn of(index: u32, step: StepOutput) -> Self {
        let StepOutput {
            token,
            logprob,
            top,
            n_reused,
            finished,
            ..
        } = step;
        Output::Token(Token {
            index,
            token,
            logprob,
            top,
            n_reused,
            finished,
        })
    }
}

/// The trainer's whole state, and its adapter, between two steps.
pub(crate) struct Snapshot {
    pub state: Vec<u8>,
    pub adapter: Adapter,
}

/// What begins a training.
pub(crate) struct TrainingStart {
    pub base: BaseFolder,
    pub adapter: FirstAdapter,
    pub run: TrainingRun,
}

/// How a training is computed.
pub(crate) struct TrainingRun {
    /// With the precision for a CPU.
    pub config: TrainConfig,
    pub precision_on_gpu: Precision,
    /// `None`: by the memory there is when the training begins.
    pub memory: Option<MemoryLevel>,
    /// Of the longest example. Tokens.
    pub longest: usize,
    /// A saved state to go on from.
    pub state: Option<Vec<u8>>,
}

impl TrainingRun {
    /// What its memory on a CPU depends on.
    fn shape(&self) -> RunShape {
        RunShape {
            precision: self.config.precision,
            longest: self.longest,
            keeps_first: self.config.keeps_first(),
        }
    }
}

/// What a training is computed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TrainedOn {
    /// Its scores are f32, whatever the training's precision.
    Cpu,
    /// All is bf16.
    Gpu,
}

/// The adapter that the first step changes.
pub(crate) enum FirstAdapter {
    /// Made for the base, some of them out of its weights.
    Fresh {
        config: LoraConfig,
        seed: u64,
    },
    Given(Box<Adapter>),
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

/// What anyone may read while the threads compute.
#[derive(Default)]
struct Load {
    /// Sequences being generated.
    n_live: AtomicU32,
    /// Conversations asked for and not yet (wholly) admitted.
    n_waiting: AtomicU32,
    /// Tokens there is room for beside those of live sequences, in the caches of all bases that are loaded.
    n_free_tokens: AtomicU64,
    /// Whether a piece of a training is being computed on the pool.
    is_training: AtomicBool,
    /// What the training that runs holds beside the base's weights. Bytes.
    held_on_gpu: AtomicU64,
    held_on_host: AtomicU64,
}

impl Load {
    fn is_training(&self) -> bool {
        self.is_training.load(Ordering::Relaxed)
    }
}

/// How full the device is.
pub(crate) struct Gauges {
    /// Sequences being generated.
    pub n_live: u32,
    /// Conversations that wait for room.
    pub n_waiting: u32,
    /// Tokens there is room for beside those of live sequences.
    pub n_free_tokens: u64,
}

/// A way to talk to the device; its threads end when the last one is dropped.
#[derive(Clone)]
pub(crate) struct Device {
    serving: mpsc::Sender<serving::Command>,
    training: mpsc::Sender<training::Command>,
    load: Arc<Load>,
    next_id: Arc<AtomicU64>,
    pub(crate) name: String,
    /// Whether most is computed there.
    pub(crate) has_gpu: bool,
    pub(crate) limits: Limits,
}

impl Device {
    /// Starts the threads; with a GPU, bases lie there, generation goes first and trainings run beside it. The receiver yields once,
    /// when they end: an error if the engine broke.
    pub(crate) fn start(
        n_threads: usize,
        gpu: Option<Gpu>,
        limits: Limits,
    ) -> std::io::Result<(Self, oneshot::Receiver<DeviceError>)> {
        let (broken, ended) = oneshot::channel();
        let broken = Arc::new(Mutex::new(Some(broken)));
        let pool = Pool::with_start(n_threads, priority::yield_to_others);
        let load = Arc::<Load>::default();
        let has_gpu = gpu.is_some();
        let (serving, inbox) = mpsc::channel();
        let goes_first = gpu.as_ref().map(Gpu::going_first).transpose();
        let goes_first = goes_first.map_err(std::io::Error::other)?;
        let mut generates =
            serving::Serving::new(goes_first, pool.clone(), limits, Arc::clone(&load));
        spawn("serving", &broken, move || generates.serve(&inbox))?;
        let (training, inbox) = mpsc::channel();
        let on_gpu = gpu.as_ref().map(|gpu| format!("{}, and ", gpu.name()));
        // One that drives a GPU computes little and must not keep it waiting.
        let mut trains = training::Training::new(pool, gpu, serving.clone(), Arc::clone(&load));
        spawn("training", &broken, move || {
            if !has_gpu {
                priority::yield_to_others();
            }
            trains.serve(&inbox)
        })?;
        let name = format!(
            "{}cpu, {n_threads} thread{}",
            on_gpu.unwrap_or_default(),
            if n_threads == 1 { "" } else { "s" }
        );
        let device = Self {
            serving,
            training,
            load,
            next_id: Arc::default(),
            name,
            has_gpu,
            limits,
        };
        Ok((device, ended))
    }

    /// Sequences being generated or waiting for room.
    pub(crate) fn n_live(&self) -> u32 {
        let gauges = self.gauges();
        gauges.n_live + gauges.n_waiting
    }

    pub(crate) fn gauges(&self) -> Gauges {
        Gauges {
            n_live: self.load.n_live.load(Ordering::Relaxed),
            n_waiting: self.load.n_waiting.load(Ordering::Relaxed),
            n_free_tokens: self.load.n_free_tokens.load(Ordering::Relaxed),
        }
    }

    /// Puts a base model onto the device if it is not there; another one that nobody uses makes room.
    pub(crate) async fn load(&self, base: BaseFolder) -> Result<(), DeviceError> {
        let load = |reply| serving::Command::Load { base, reply };
        ask(&self.serving, load).await
    }

    /// Begins to generate, loading the base first where needed. Dropping the returned reader frees every slot
    /// within one step. Errors: `Busy`, `BadInput` where the base cannot be loaded.
    pub(crate) async fn generate(&self, asked: Ask) -> Result<Generation, DeviceError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (outputs, reader) = tokio_mpsc::unbounded_channel();
        let generate = |reply| serving::Command::Generate {
            id,
            ask: asked,
            outputs,
            reply,
        };
        ask(&self.serving, generate).await?;
        Ok(Generation {
            id,
            reader,
            serving: self.serving.clone(),
        })
    }

    /// What the base, perhaps with an adapter, makes of a text as a whole: [`engine::generate::Embedding`], on the CPU. Dropping the
    /// future ends it within one step.
    pub(crate) async fn embed(
        &self,
        base: BaseFolder,
        adapter: Option<Arc<Adapter>>,
        tokens: Vec<u32>,
    ) -> Result<Vec<f32>, DeviceError> {
        let embed = |reply| serving::Command::Embed {
            base,
            adapter,
            tokens,
            reply,
        };
        ask(&self.serving, embed).await
    }

    /// What a training would take of the memory here, and what there is for it, the one that runs aside. Begins nothing.
    pub(crate) async fn plan(&self, asked: PlanAsk) -> Result<Planned, DeviceError> {
        let ask_for = Box::new(asked);
        let plan = |reply| serving::Command::Plan {
            ask: ask_for,
            reply,
        };
        ask(&self.serving, plan).await
    }

    /// Makes a trainer, loading the base first where needed; it lives until the returned guard is dropped. One at a time: a second one replaces the first.
    pub(crate) async fn begin_training(
        &self,
        start: TrainingStart,
    ) -> Result<Training, DeviceError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let mut training = Training {
            id,
            on: TrainedOn::Cpu,
            device: self.clone(),
        };
        let start = Box::new(start);
        let begin = |reply| training::Command::Begin { id, start, reply };
        training.on = ask(&self.training, begin).await?;
        Ok(training)
    }
}

/// Runs `serve` on a thread of its own; the first thread that breaks says so.
fn spawn(
    name: &str,
    broken: &Arc<Mutex<Option<oneshot::Sender<DeviceError>>>>,
    mut serve: impl FnMut() -> Result<(), DeviceError> + Send + 'static,
) -> std::io::Result<()> {
    let broken = Arc::clone(broken);
    let run = move || {
        let ended = catch_unwind(AssertUnwindSafe(&mut serve)).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            Err(DeviceError::Broken(
                text.unwrap_or("unknown panic").to_owned(),
            ))
        });
        if let (Err(error), Ok(mut broken)) = (ended, broken.lock()) {
            // Nobody listens any more when the worker is going down already.
            let _ = broken.take().map(|broken| broken.send(error));
        }
    };
    let thread = std::thread::Builder::new().name(name.to_owned());
    thread.spawn(run).map(|_| ())
}

async fn ask<C, T>(
    thread: &mpsc::Sender<C>,
    command: impl FnOnce(Reply<T>) -> C,
) -> Result<T, DeviceError> {
    let (reply, answer) = oneshot::channel();
    let sent = thread.send(command(reply));
    sent.map_err(|mpsc::SendError(_)| DeviceError::ended())?;
    answer.await.map_err(|_| DeviceError::ended())?
}

/// The reader's end of a conversation being generated.
pub(crate) struct Generation {
    id: u64,
    reader: tokio_mpsc::UnboundedReceiver<Output>,
    serving: mpsc::Sender<serving::Command>,
}

impl Generation {
    /// The next token of any answer; `None` after the last.
    pub(crate) async fn next(&mut self) -> Option<Output> {
        self.reader.recv().await
    }

    /// Answer `index` needs no more tokens.
    pub(crate) fn stop(&self, index: u32) {
        // A device that has ended generates nothing any more.
        let _ = self
            .serving
            .send(serving::Command::Stop { id: self.id, index });
    }
}

/// Rows to train or score on, with what the reference says of each answer (of none, for a loss without one).
pub(crate) struct ComparedBatch {
    pub rows: Compared,
    pub references: Vec<f64>,
}

/// A trainer on the device.
pub(crate) struct Training {
    id: u64,
    pub(crate) on: TrainedOn,
    device: Device,
}

impl Training {
    /// What [`Self::label_logprobs`] or [`Self::score`] rounds to, where one of them does.
    pub(crate) async fn scored_in(&self, adapter: &Arc<Adapter>) -> Result<Precision, DeviceError> {
        let adapter = Arc::clone(adapter);
        match self.on {
            TrainedOn::Cpu => {
                self.work(|reply| Work::GeneratesIn { adapter, reply })
                    .await
            }
            TrainedOn::Gpu => Ok(Precision::Bf16),
        }
    }

    /// One optimizer step.
    pub(crate) async fn step(&self, batch: Vec<Example>) -> Result<StepReport, DeviceError> {
        self.work(|reply| Work::Step { batch, reply }).await
    }

    /// One optimizer step by preference.
    pub(crate) async fn step_compared(
        &self,
        batch: ComparedBatch,
    ) -> Result<PreferenceStepReport, DeviceError> {
        self.work(|reply| Work::StepCompared { batch, reply }).await
    }

    /// log p of each answer by the adapter that the training began with.
    pub(crate) async fn reference_logprobs(&self, rows: Compared) -> Result<Vec<f64>, DeviceError> {
        self.work(|reply| Work::ReferenceLogprobs { rows, reply })
            .await
    }

    /// Losses of rows as of one step, without learning.
    pub(crate) async fn evaluate_compared(
        &self,
        batch: ComparedBatch,
    ) -> Result<PreferenceReport, DeviceError> {
        self.work(|reply| Work::EvaluateCompared { batch, reply })
            .await
    }

    /// Losses without learning.
    pub(crate) async fn evaluate(&self, examples: Vec<Example>) -> Result<EvalReport, DeviceError> {
        self.work(|reply| Work::Evaluate { examples, reply }).await
    }

    pub(crate) async fn snapshot(&self) -> Result<Snapshot, DeviceError> {
        self.work(|reply| Work::Snapshot { reply }).await
    }

    /// The trainer's log-probability of every label of `example`.
    pub(crate) async fn label_logprobs(&self, example: Example) -> Result<Vec<f32>, DeviceError> {
        self.work(|reply| Work::LabelLogprobs { example, reply })
            .await
    }

    /// The serving path's log-probability of every token after the first.
    pub(crate) async fn score(
        &self,
        tokens: Vec<u32>,
        adapter: Arc<Adapter>,
    ) -> Result<Vec<f32>, DeviceError> {
        self.work(|reply| Work::Score {
            tokens,
            adapter,
            reply,
        })
        .await
    }

    async fn work<T>(&self, work: impl FnOnce(Reply<T>) -> Work) -> Result<T, DeviceError> {
        let work = |reply| training::Command::Work(work(reply));
        ask(&self.device.training, work).await
    }
}

impl Drop for Training {
    fn drop(&mut self) {
        // A device that has ended trains nothing any more.
        let end = training::Command::End { id: self.id };
        let _ = self.device.training.send(end);
    }
}
