//! The thread that generates: it owns the bases and everything generated from them. It takes commands, then computes one
//! step for all, and looks again. A training runs on the same pool whenever no step does, and beside those that are small.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use engine::Precision;
use engine::cuda::{self, Gpu};
use engine::generate::Limits;
use engine::lora::Adapter;
use engine::pool::Pool;
use engine::weights::BaseModel;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

use super::gpu::Declined;
use super::loaded_base::{LoadedBase, Waiting};
use super::plan::{Copies, PlanAsk, Planned, Room};
use super::{Ask, BaseFolder, DeviceError, Load, Output, Reply, answer};

/// Of the time that generation and a training both want of the pool, what the training gets at least.
const TRAINING_SHARE: f64 = 0.25;
/// How far a training may fall behind its share before generation waits for it: a conversation now and then is never
/// slowed by it.
const MAX_OWED: Duration = Duration::from_secs(2);

pub(super) enum Command {
    Load {
        base: BaseFolder,
        reply: Reply<()>,
    },
    Generate {
        id: u64,
        ask: Ask,
        outputs: UnboundedSender<Output>,
        reply: Reply<()>,
    },
    Stop {
        id: u64,
        index: u32,
    },
    /// A training wants the base on the CPU; it stays loaded until the next such command or `Return`.
    Lend {
        base: BaseFolder,
        reply: Reply<Arc<BaseModel>>,
    },
    /// A training whose adapter has at most `rank` wants the base on the GPU, and the same.
    LendOnGpu {
        base: BaseFolder,
        rank: usize,
        reply: oneshot::Sender<Result<Arc<cuda::Base>, Declined>>,
    },
    Return,
    /// What an adapter's answers are computed in.
    GeneratesIn {
        base: BaseFolder,
        adapter: Arc<Adapter>,
        reply: Reply<Precision>,
    },
    Embed {
        base: BaseFolder,
        adapter: Option<Arc<Adapter>>,
        tokens: Vec<u32>,
        reply: Reply<Vec<f32>>,
    },
    Score {
        base: BaseFolder,
        tokens: Vec<u32>,
        adapter: Arc<Adapter>,
        reply: Reply<Vec<f32>>,
    },
    Plan {
        ask: Box<PlanAsk>,
        reply: Reply<Planned>,
    },
}

pub(super) struct Serving {
    gpu: Option<Gpu>,
    pool: Pool,
    limits: Limits,
    bases: Vec<LoadedBase>,
    /// The base that a training uses.
    lent: Option<BaseFolder>,
    /// A training that waits until what is generated from its base on the GPU has ended.
    borrower: Option<Borrower>,
    owed: Owed,
    load: Arc<Load>,
}

/// Who wants a base on the GPU.
struct Borrower {
    base: BaseFolder,
    rank: usize,
    reply: oneshot::Sender<Result<Arc<cuda::Base>, Declined>>,
}

impl Serving {
    pub(super) fn new(gpu: Option<Gpu>, pool: Pool, limits: Limits, load: Arc<Load>) -> Self {
        Self {
            gpu,
            pool,
            limits,
            bases: Vec::new(),
            lent: None,
            borrower: None,
            owed: Owed::default(),
            load,
        }
    }

    /// Serves commands until every sender is gone. Errors: `Broken` when the engine broke a promise.
    pub(super) fn serve(&mut self, inbox: &Receiver<Command>) -> Result<(), DeviceError> {
        loop {
            if self.borrower.is_none() && self.bases.iter().all(LoadedBase::is_idle) {
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
            self.lend_on_gpu()?;
            self.bases.iter_mut().for_each(LoadedBase::make_room);
            self.publish_load();
            let wait = self.owed.wait(Instant::now(), self.load.is_training());
            let is_live_on_gpu = self.bases.iter().any(LoadedBase::is_live_on_gpu);
            if let Some(wait) = wait.filter(|_| !is_live_on_gpu) {
                match inbox.recv_timeout(wait) {
                    Ok(command) => self.take(command)?,
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return Ok(()),
                }
                continue;
            }
            self.generate(wait.is_none())?;
            self.publish_load();
        }
    }

    /// One step of every base; those on the CPU only where it is generation's turn there.
    fn generate(&mut self, on_cpu: bool) -> Result<(), DeviceError> {
        for base in &mut self.bases {
            base.generate_on_gpu()?;
            if !on_cpu || !(base.is_live_on_cpu() || base.is_reading()) {
                continue;
            }
            let began = Instant::now();
            let beside =
                self.load.is_training() && base.can_generate_beside() && !base.is_reading();
            base.generate_on_cpu(beside)?;
            base.read()?;
            let left = match (self.load.is_training(), beside) {
                (false, _) => 1.0,
                (true, true) => 0.5,
                (true, false) => 0.0,
            };
            self.owed.generated(began, Instant::now(), left);
        }
        Ok(())
    }

    fn publish_load(&self) {
        let n_live: usize = self.bases.iter().map(|base| base.n_live()).sum();
        self.load.n_live.store(n_live as u32, Ordering::Relaxed);
        let n_waiting = self.n_waiting() as u32;
        self.load.n_waiting.store(n_waiting, Ordering::Relaxed);
        let n_free: usize = self.bases.iter().map(LoadedBase::n_free_tokens).sum();
        self.load
            .n_free_tokens
            .store(n_free as u64, Ordering::Relaxed);
    }

    fn n_waiting(&self) -> usize {
        self.bases.iter().map(|base| base.n_waiting()).sum()
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
            Command::Lend { base, reply } => {
                self.lent = None;
                let model = self.known(&base).and_then(LoadedBase::model);
                self.lent = model.is_ok().then_some(base);
                answer(reply, model)
            }
            Command::LendOnGpu { base, rank, reply } => {
                self.lent = None;
                self.borrower = Some(Borrower { base, rank, reply });
                self.lend_on_gpu()
            }
            Command::Return => {
                self.lent = None;
                self.bases.iter_mut().for_each(LoadedBase::may_try_gpu);
                Ok(())
            }
            Command::GeneratesIn {
                base,
                adapter,
                reply,
            } => {
                let found = self.loaded(&base);
                answer(reply, found.and_then(|base| base.generates_in(&adapter)))
            }
            Command::Embed {
                base,
                adapter,
                tokens,
                reply,
            } => match self.known(&base) {
                Ok(base) => {
                    base.embed(adapter, tokens, reply);
                    Ok(())
                }
                Err(error) => answer(reply, Err(error)),
            },
            Command::Score {
                base,
                tokens,
                adapter,
                reply,
            } => {
                let scored = self.loaded(&base);
                answer(reply, scored.and_then(|base| base.score(&tokens, &adapter)))
            }
            Command::Plan { ask, reply } => answer(reply, self.room(&ask).plan(&ask)),
        }
    }

    /// What a training would find here, once the one that runs has ended.
    fn room(&self, ask: &PlanAsk) -> Room<'_> {
        let known = self.bases.iter().find(|base| base.folder == ask.base);
        let copies = known.map(|base| base.copies(ask.rank()));
        // A base that is not known yet takes the place of those that nobody uses.
        let copies = copies.unwrap_or_else(|| {
            let idle = self.bases.iter().filter(|base| base.is_idle());
            let leaving = idle.map(LoadedBase::all_bytes);
            let (leave_gpu, leave_host) =
                leaving.fold((0u64, 0u64), |(a, b), (x, y)| (a + x, b + y));
            Copies {
                leave_gpu,
                leave_host,
                ..Copies::default()
            }
        });
        Room {
            gpu: self.gpu.as_ref(),
            limits: self.limits,
            copies,
            held_on_gpu: self.load.held_on_gpu.load(Ordering::Relaxed),
            held_on_host: self.load.held_on_host.load(Ordering::Relaxed),
        }
    }

    fn enqueue(&mut self, waiting: Waiting) -> Result<(), DeviceError> {
        self.loaded(waiting.base())?.enqueue(waiting);
        Ok(())
    }

    /// Hands the base on the GPU to the training that waits for it, if that can be now.
    fn lend_on_gpu(&mut self) -> Result<(), DeviceError> {
        let Some(Borrower { base, rank, reply }) = self.borrower.take() else {
            return Ok(());
        };
        let lent = match (self.gpu.clone(), self.known(&base)) {
            (Some(gpu), Ok(known)) => known.lend_on_gpu(&gpu, rank),
            (None, _) => Some(Err(Declined::ForTheCpu("there is none".to_owned()))),
            (_, Err(error)) => Some(Err(Declined::Failed(error))),
        };
        let Some(lent) = lent else {
            self.borrower = Some(Borrower { base, rank, reply });
            return Ok(());
        };
        self.lent = lent.is_ok().then_some(base);
        let broken = match &lent {
            Err(Declined::Failed(error)) if error.is_fatal() => Some(error.clone()),
            _ => None,
        };
        // A job that was cancelled meanwhile needs no base.
        let _ = reply.send(lent);
        broken.map_or(Ok(()), Err)
    }

    /// The base `folder` names, where answers come from.
    fn loaded(&mut self, folder: &BaseFolder) -> Result<&mut LoadedBase, DeviceError> {
        let gpu = self.gpu.clone();
        if let Err(error) = self.known(folder)?.be_ready(gpu.as_ref()) {
            // A folder that cannot be read may be mended.
            self.bases
                .retain(|base| base.folder != *folder || !base.is_idle());
            return Err(error);
        }
        self.known(folder)
    }

    /// The base `folder` names, loaded or not.
    fn known(&mut self, folder: &BaseFolder) -> Result<&mut LoadedBase, DeviceError> {
        let at = match self.bases.iter().position(|base| base.folder == *folder) {
            Some(at) => at,
            None => {
                self.make_place()?;
                let base = LoadedBase::new(folder, &self.pool, &self.limits);
                self.bases.push(base);
                self.bases.len() - 1
            }
        };
        Ok(&mut self.bases[at])
    }

    /// Drops bases that nobody uses where one more is to come. Errors: `Busy`.
    fn make_place(&mut self) -> Result<(), DeviceError> {
        let lent = self.lent.as_ref();
        self.bases
            .retain(|base| !base.is_idle() || Some(&base.folder) == lent);
        // The one that trains and one that is asked: a third would not fit where two barely do.
        if self.bases.len() > 1 {
            return Err(DeviceError::Busy);
        }
        Ok(())
    }
}

/// What generation has taken of a training's share.
#[derive(Default)]
struct Owed {
    time: Duration,
    /// When the last step of generation ended.
    last: Option<Instant>,
}

impl Owed {
    /// How long to leave the pool to a training, if at all.
    fn wait(&self, now: Instant, is_training: bool) -> Option<Duration> {
        let left_alone = now - self.last?;
        let behind = self.time.checked_sub(left_alone + MAX_OWED)?;
        (is_training && !behind.is_zero()).then_some(behind)
    }

    /// A step of generation took from `began` to `ended` and left so much of the pool to a training.
    fn generated(&mut self, began: Instant, ended: Instant, left: f64) {
        let left_alone = self.last.map_or(Duration::ZERO, |last| began - last);
        let taken = (TRAINING_SHARE - left) / (1.0 - TRAINING_SHARE);
        let owed = (ended - began).as_secs_f64() * taken - left_alone.as_secs_f64();
        self.time = Duration::from_secs_f64((self.time.as_secs_f64() + owed).max(0.0));
        self.last = Some(ended);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_millis(20);
    const MINUTE: Duration = Duration::from_secs(60);

    /// What waits for a training come to in a minute in which a step of generation, which leaves `left` of the pool to it, follows `pause` after the last.
    fn left_to_training(pause: Duration, left: f64) -> Duration {
        let (start, mut owed, mut waited) = (Instant::now(), Owed::default(), Duration::ZERO);
        let mut now = start;
        while now < start + MINUTE {
            if let Some(wait) = owed.wait(now, left < 1.0) {
                (now, waited) = (now + wait, waited + wait);
                continue;
            }
            owed.generated(now, now + STEP, left);
            now += STEP + pause;
        }
        waited
    }

    #[test]
    fn a_training_beside_generation_without_end_gets_its_share() {
        let share = left_to_training(Duration::ZERO, 0.0).as_secs_f64() / MINUTE.as_secs_f64();
        // All of it but what it may fall behind.
        let least = TRAINING_SHARE - 1.01 * MAX_OWED.as_secs_f64() / MINUTE.as_secs_f64();
        assert!((least..=TRAINING_SHARE).contains(&share), "{share}");
    }

    #[test]
    fn generation_that_leaves_enough_of_the_device_never_waits() {
        assert_eq!(left_to_training(STEP, 0.0), Duration::ZERO);
        assert_eq!(left_to_training(Duration::ZERO, 0.5), Duration::ZERO);
        assert_eq!(left_to_training(Duration::ZERO, 1.0), Duration::ZERO);
    }
}
