//! A base model on the device and everything generated from it: who waits, who has a place, who reads.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use engine::generate::{
    AdmitError, Batcher, Failed, GenerateError, GenerateRequest, Limits, SequenceId,
};
use engine::lora::Adapter;
use engine::pool::Pool;
use engine::weights::BaseModel;
use tokio::sync::mpsc::UnboundedSender;

use super::{Ask, BaseFolder, DeviceError, Output};

/// A base model on the device, with everything generated from it.
pub(super) struct LoadedBase {
    pub folder: BaseFolder,
    pub model: Arc<BaseModel>,
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
pub(super) struct Waiting {
    id: u64,
    ask: Ask,
    /// The next answer to admit.
    next: u32,
    outputs: UnboundedSender<Output>,
    /// Answers that are not wanted any more.
    stopped: Vec<u32>,
}

impl Waiting {
    pub(super) fn new(id: u64, ask: Ask, outputs: UnboundedSender<Output>) -> Self {
        Self {
            id,
            ask,
            next: 0,
            outputs,
            stopped: Vec::new(),
        }
    }

    pub(super) fn base(&self) -> &BaseFolder {
        &self.ask.base
    }
}

impl LoadedBase {
    pub(super) fn load(
        folder: &BaseFolder,
        pool: &Pool,
        limits: &Limits,
    ) -> Result<Self, DeviceError> {
        let began = Instant::now();
        let model = BaseModel::load_as(&folder.dir, folder.weights, pool)
            .map_err(|error| DeviceError::BadInput(error.to_string()))?;
        let model = Arc::new(model);
        let precision = model.generation_precision();
        let batcher = Batcher::in_precision(Arc::clone(&model), pool.clone(), *limits, precision);
        let seconds = began.elapsed().as_secs_f64();
        tracing::info!(
            sha256 = folder.sha256,
            weights = ?folder.weights,
            generates_in = precision.name(),
            n_parameters = model.n_parameters(),
            seconds,
            "base model loaded"
        );
        Ok(Self {
            folder: folder.clone(),
            model,
            batcher,
            live: HashMap::new(),
            waiting: VecDeque::new(),
        })
    }

    pub(super) fn is_idle(&self) -> bool {
        self.live.is_empty() && self.waiting.is_empty()
    }

    /// Sequences being generated.
    pub(super) fn n_live(&self) -> usize {
        self.live.len()
    }

    /// Conversations that are not wholly admitted.
    pub(super) fn n_waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Tokens there is room for beside the live sequences.
    pub(super) fn n_free_tokens(&self) -> usize {
        self.batcher.n_free_tokens()
    }

    pub(super) fn enqueue(&mut self, waiting: Waiting) {
        self.waiting.push_back(waiting);
    }

    /// The serving path's log-probability of every token after the first.
    pub(super) fn score(
        &mut self,
        tokens: &[u32],
        adapter: &Adapter,
    ) -> Result<Vec<f32>, DeviceError> {
        Ok(self.batcher.score(tokens, Some(adapter))?)
    }

    /// Frees what nobody reads any more, then admits in order of arrival.
    pub(super) fn make_room(&mut self) {
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

    /// Whether half of the threads compute the next step nearly as fast as all.
    pub(super) fn can_generate_beside(&self) -> bool {
        self.batcher.can_step_beside()
    }

    /// One forward for all live sequences, `beside` a training or while it waits.
    pub(super) fn generate(&mut self, beside: bool) -> Result<(), DeviceError> {
        if self.live.is_empty() {
            return Ok(());
        }
        let stepped = match beside {
            true => self.batcher.step_beside(),
            false => self.batcher.step(),
        };
        let outputs = match stepped {
            Ok(outputs) => outputs,
            Err(error) => return self.fail_all(error.into()),
        };
        for output in outputs {
            let output = match output {
                Ok(output) => output,
                Err(failed) => {
                    self.fail(&failed);
                    continue;
                }
            };
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

    /// One sequence computed nonsense (an adapter with damaged values) or left its grammar; the others go on.
    fn fail(&mut self, failed: &Failed) {
        if let Some(live) = self.live.remove(&failed.id) {
            let error = DeviceError::BadInput(failed.to_string());
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

    pub(super) fn stop(&mut self, id: u64, index: u32) {
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
        let mut request = self.request.clone();
        request.sampling.seed = request.sampling.seed.wrapping_add(index.into());
        request
    }
}

impl From<GenerateError> for DeviceError {
    fn from(error: GenerateError) -> Self {
        match error {
            GenerateError::OutOfMemory(_) => DeviceError::OutOfMemory(error.to_string()),
            GenerateError::Gpu(_) => DeviceError::Broken(error.to_string()),
            GenerateError::BadInput(_) => DeviceError::BadInput(error.to_string()),
        }
    }
}
