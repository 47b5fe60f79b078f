//! A base model on the device and everything generated from it: who waits, who has a place, who reads.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use engine::Precision;
use engine::cuda::{Base, CudaError, Gpu};
use engine::generate::{
    AdmitError, Batcher, Embedding, FailReason, Failed, GenerateError, GenerateRequest, Limits,
    SequenceId,
};
use engine::lora::Adapter;
use engine::pool::Pool;
use engine::weights::BaseModel;
use tokio::sync::mpsc::UnboundedSender;

use super::gpu::{Declined, GpuBase};
use super::plan::Copies;
use super::{Ask, BaseFolder, DeviceError, Output, Reply, answer};

/// A base model on the device, with everything generated from it.
pub(super) struct LoadedBase {
    pub folder: BaseFolder,
    pool: Pool,
    limits: Limits,
    on_gpu: Option<OnGpu>,
    /// Without a GPU, or for what a GPU lacks.
    on_cpu: Option<OnCpu>,
    live: HashMap<(Place, SequenceId), Live>,
    waiting: VecDeque<Waiting>,
    /// Texts that are read as a whole, a piece of each in turn.
    /// Texts that are to be read as a whole, and the one that is: only that one has keys and values.
    to_read: VecDeque<(Text, Reply<Vec<f32>>)>,
    reading: Option<(Embedding, Reply<Vec<f32>>)>,
    /// Whether the GPU has been tried.
    tried_gpu: bool,
    /// Nothing is admitted to the GPU: another copy of the base is to take this one's place.
    leaves_gpu: bool,
}

struct OnGpu {
    lies: GpuBase,
    /// `None`: beside a training there is no room for keys and values.
    batcher: Option<Batcher>,
}

struct OnCpu {
    model: Arc<BaseModel>,
    batcher: Batcher,
}

/// Where a sequence is generated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Place {
    Gpu,
    Cpu,
}

/// A sequence being generated.
struct Live {
    id: u64,
    index: u32,
    outputs: UnboundedSender<Output>,
}

/// What is to be read as a whole.
struct Text {
    adapter: Option<Arc<Adapter>>,
    tokens: Vec<u32>,
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
    /// A base that is nowhere yet.
    pub(super) fn new(folder: &BaseFolder, pool: &Pool, limits: &Limits) -> Self {
        Self {
            folder: folder.clone(),
            pool: pool.clone(),
            limits: *limits,
            on_gpu: None,
            on_cpu: None,
            live: HashMap::new(),
            waiting: VecDeque::new(),
            to_read: VecDeque::new(),
            reading: None,
            tried_gpu: false,
            leaves_gpu: false,
        }
    }

    /// Brings it to where answers come from, if it is not there: the GPU, where there is one that can generate from it, and else the CPU.
    pub(super) fn be_ready(&mut self, gpu: Option<&Gpu>) -> Result<(), DeviceError> {
        if let Some(gpu) = gpu.filter(|_| !self.tried_gpu) {
            self.tried_gpu = true;
            match self.bring_to_gpu(gpu, None) {
                Ok(()) => {}
                Err(Declined::Failed(error)) => return Err(error),
                Err(Declined::ForTheCpu(reason)) => {
                    tracing::warn!(reason, "the GPU is not used, answers come from the CPU");
                }
            }
        }
        if self.gpu_batcher().is_none() {
            self.on_cpu()?;
        }
        Ok(())
    }

    /// For answers, or for a training whose adapter has at most a rank: that needs no room for keys and values.
    fn bring_to_gpu(&mut self, gpu: &Gpu, rank: Option<usize>) -> Result<(), Declined> {
        self.on_gpu = None;
        let lies = GpuBase::load(gpu, &self.folder, rank.unwrap_or(0))?;
        let batcher = Batcher::on_gpu(gpu, Arc::clone(&lies.base), self.pool.clone(), self.limits);
        let batcher = match batcher {
            Ok(batcher) => Some(batcher),
            Err(error @ CudaError::OutOfMemory { .. }) if rank.is_some() => {
                tracing::warn!(%error, "a training has the GPU alone, answers come from the CPU");
                None
            }
            Err(error) => return Err(error.into()),
        };
        self.on_gpu = Some(OnGpu { lies, batcher });
        Ok(())
    }

    /// The copy on the GPU, for a training whose adapter has at most `rank`. `None`: not before what is being generated there has
    /// ended, as another copy takes its place.
    pub(super) fn lend_on_gpu(
        &mut self,
        gpu: &Gpu,
        rank: usize,
    ) -> Option<Result<Arc<Base>, Declined>> {
        let lies = self.on_gpu.as_ref().map(|on_gpu| &on_gpu.lies);
        if let Some(lies) = lies.filter(|lies| lies.has_room_for(rank)) {
            return Some(Ok(Arc::clone(&lies.base)));
        }
        self.leaves_gpu = self.is_live_on_gpu();
        if self.leaves_gpu {
            return None;
        }
        let brought = self.bring_to_gpu(gpu, Some(rank));
        self.tried_gpu = true;
        // Where it did not fit with that room, it may without.
        if matches!(brought, Err(Declined::ForTheCpu(_))) {
            match self.bring_to_gpu(gpu, None) {
                Ok(()) => {}
                Err(Declined::ForTheCpu(reason)) => {
                    tracing::warn!(reason, "the GPU is not used, answers come from the CPU");
                }
                Err(failed) => return Some(Err(failed)),
            }
        }
        Some(brought.map(|()| {
            let on_gpu = self.on_gpu.as_ref();
            Arc::clone(&on_gpu.expect("just brought there — a bug here").lies.base)
        }))
    }

    /// What its copies take of the GPU's memory, with what answers from there take, and of the host's. Bytes.
    pub(super) fn all_bytes(&self) -> (u64, u64) {
        let on_gpu = self.on_gpu.as_ref().map_or(0, |on_gpu| {
            let base = &on_gpu.lies.base;
            let serving = on_gpu.batcher.as_ref().map_or(0, |_| {
                Batcher::gpu_bytes(base.config(), self.folder.weights, self.limits)
            });
            base.size_bytes() + serving
        });
        let on_host = self.on_cpu.as_ref();
        (
            on_gpu,
            on_host.map_or(0, |on_cpu| on_cpu.model.size_bytes()),
        )
    }

    /// What of it a training whose adapter has at most `rank` would find.
    pub(super) fn copies(&self, rank: usize) -> Copies {
        let (all_on_gpu, on_host) = self.all_bytes();
        let lies = self.on_gpu.as_ref().map(|on_gpu| &on_gpu.lies);
        let fit = lies.filter(|lies| lies.has_room_for(rank));
        Copies {
            on_gpu: fit.map(|lies| lies.base.size_bytes()),
            on_host: self.on_cpu.as_ref().map(|_| on_host),
            // One of another rank gives its place up.
            leave_gpu: if fit.is_some() { 0 } else { all_on_gpu },
            leave_host: 0,
        }
    }

    fn gpu_batcher(&self) -> Option<&Batcher> {
        self.on_gpu.as_ref()?.batcher.as_ref()
    }

    /// The base on the CPU, brought there where it is not.
    fn on_cpu(&mut self) -> Result<&mut OnCpu, DeviceError> {
        if self.on_cpu.is_none() {
            let began = Instant::now();
            let folder = &self.folder;
            let model = BaseModel::load_as(&folder.dir, folder.weights, &self.pool)
                .map_err(|error| DeviceError::BadInput(error.to_string()))?;
            let model = Arc::new(model);
            let precision = model.generation_precision();
            let batcher = Batcher::in_precision(
                Arc::clone(&model),
                self.pool.clone(),
                self.limits,
                precision,
            );
            tracing::info!(
                sha256 = folder.sha256,
                weights = ?folder.weights,
                generates_in = precision.name(),
                n_parameters = model.n_parameters(),
                seconds = began.elapsed().as_secs_f64(),
                "base model loaded"
            );
            self.on_cpu = Some(OnCpu { model, batcher });
        }
        Ok(self
            .on_cpu
            .as_mut()
            .expect("loaded above — a bug in the device"))
    }

    /// The weights on the CPU, for a training there.
    pub(super) fn model(&mut self) -> Result<Arc<BaseModel>, DeviceError> {
        Ok(Arc::clone(&self.on_cpu()?.model))
    }

    /// Where what an adapter says is generated.
    fn place(&self, adapter: Option<&Adapter>) -> Place {
        let on_gpu = self.gpu_batcher();
        match on_gpu.is_some_and(|batcher| adapter.is_none_or(|adapter| batcher.takes(adapter))) {
            true => Place::Gpu,
            false => Place::Cpu,
        }
    }

    fn batcher(&mut self, place: Place) -> Result<&mut Batcher, DeviceError> {
        match place {
            Place::Gpu => {
                let on_gpu = self.on_gpu.as_mut();
                let batcher = on_gpu.and_then(|on_gpu| on_gpu.batcher.as_mut());
                Ok(batcher.expect("`place` found it there — a bug in the device"))
            }
            Place::Cpu => Ok(&mut self.on_cpu()?.batcher),
        }
    }

    /// What an adapter's answers are computed in.
    pub(super) fn generates_in(&mut self, adapter: &Adapter) -> Result<Precision, DeviceError> {
        let place = self.place(Some(adapter));
        Ok(self.batcher(place)?.precision())
    }

    pub(super) fn is_idle(&self) -> bool {
        self.live.is_empty() && self.waiting.is_empty() && !self.is_reading()
    }

    /// Sequences being generated.
    pub(super) fn n_live(&self) -> usize {
        self.live.len()
    }

    /// Conversations that are not wholly admitted.
    pub(super) fn n_waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Tokens there is room for beside the live sequences, where answers come from.
    pub(super) fn n_free_tokens(&self) -> usize {
        let on_cpu = || self.on_cpu.as_ref().map(|on_cpu| &on_cpu.batcher);
        self.gpu_batcher()
            .or_else(on_cpu)
            .map_or(0, Batcher::n_free_tokens)
    }

    pub(super) fn enqueue(&mut self, waiting: Waiting) {
        self.waiting.push_back(waiting);
    }

    /// Joins those that are read as a whole, on the CPU.
    pub(super) fn embed(
        &mut self,
        adapter: Option<Arc<Adapter>>,
        tokens: Vec<u32>,
        reply: Reply<Vec<f32>>,
    ) {
        let text = Text { adapter, tokens };
        self.to_read.push_back((text, reply));
    }

    /// Whether there is something to read as a whole.
    pub(super) fn is_reading(&self) -> bool {
        self.reading.is_some() || !self.to_read.is_empty()
    }

    /// One piece of the text whose turn it is, unless nobody waits for it any more.
    pub(super) fn read(&mut self) -> Result<(), DeviceError> {
        self.to_read.retain(|(_, reply)| !reply.is_closed());
        let reading = self.reading.take().filter(|(_, reply)| !reply.is_closed());
        let (mut embedding, reply) = match reading {
            Some(reading) => reading,
            None => {
                let Some((text, reply)) = self.to_read.pop_front() else {
                    return Ok(());
                };
                match self.begin_to_read(text) {
                    Ok(embedding) => (embedding, reply),
                    Err(error) => return answer(reply, Err(error)),
                }
            }
        };
        match embedding.step(&self.pool) {
            Ok(None) => {
                self.reading = Some((embedding, reply));
                Ok(())
            }
            Ok(Some(embedding)) => answer(reply, Ok(embedding)),
            Err(error) => answer(reply, Err(error.into())),
        }
    }

    fn begin_to_read(&mut self, text: Text) -> Result<Embedding, DeviceError> {
        let model = self.model()?;
        let precision = model.generation_precision();
        Ok(Embedding::new(model, text.adapter, text.tokens, precision)?)
    }

    /// The serving path's log-probability of every token after the first.
    pub(super) fn score(
        &mut self,
        tokens: &[u32],
        adapter: &Adapter,
    ) -> Result<Vec<f32>, DeviceError> {
        let place = self.place(Some(adapter));
        Ok(self.batcher(place)?.score(tokens, Some(adapter))?)
    }

    /// Frees what nobody reads any more, then admits in order of arrival.
    pub(super) fn make_room(&mut self) {
        let left: Vec<(Place, SequenceId)> = self
            .live
            .iter()
            .filter(|(_, live)| live.outputs.is_closed())
            .map(|(at, _)| *at)
            .collect();
        left.into_iter().for_each(|at| self.cancel(at));
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
            let live = Live {
                id: waiting.id,
                index,
                outputs: waiting.outputs.clone(),
            };
            let request = waiting.ask.request(index);
            let place = match request.max_new_tokens {
                // A GPU scores no prompts.
                0 => Place::Cpu,
                _ => self.place(request.adapter.as_deref()),
            };
            if place == Place::Gpu && self.leaves_gpu {
                return;
            }
            let admitted = match self.batcher(place) {
                Ok(batcher) => batcher.admit(request).map_err(Some),
                Err(error) => {
                    // A reader that left needs no error.
                    let _ = live.outputs.send(Output::Failed(error));
                    Err(None)
                }
            };
            match admitted {
                Ok(sequence) => {
                    self.live.insert((place, sequence), live);
                    if let Some(waiting) = self.waiting.front_mut() {
                        waiting.next += 1;
                    }
                }
                Err(Some(AdmitError::Full)) if !self.live.is_empty() => return,
                Err(error) => {
                    if let Some(error) = error {
                        let error = DeviceError::BadInput(error.to_string());
                        let _ = live.outputs.send(Output::Failed(error));
                    }
                    self.waiting.pop_front();
                }
            }
        }
    }

    /// A training has given back what it used: there may be room on the GPU that was not there before.
    pub(super) fn may_try_gpu(&mut self) {
        self.tried_gpu &= self.gpu_batcher().is_some();
    }

    /// Whether there is something to generate on the GPU.
    pub(super) fn is_live_on_gpu(&self) -> bool {
        self.live.keys().any(|(place, _)| *place == Place::Gpu)
    }

    /// Whether there is something to generate on the CPU.
    pub(super) fn is_live_on_cpu(&self) -> bool {
        self.live.keys().any(|(place, _)| *place == Place::Cpu)
    }

    /// Whether half of the threads compute the next step on the CPU nearly as fast as all.
    pub(super) fn can_generate_beside(&self) -> bool {
        let on_cpu = self.on_cpu.as_ref();
        on_cpu.is_some_and(|on_cpu| on_cpu.batcher.can_step_beside())
    }

    /// One forward for all live sequences of the GPU.
    pub(super) fn generate_on_gpu(&mut self) -> Result<(), DeviceError> {
        self.generate(Place::Gpu, false)
    }

    /// One forward for all live sequences of the CPU, `beside` a training or while it waits.
    pub(super) fn generate_on_cpu(&mut self, beside: bool) -> Result<(), DeviceError> {
        self.generate(Place::Cpu, beside)
    }

    fn generate(&mut self, place: Place, beside: bool) -> Result<(), DeviceError> {
        if self.live.keys().all(|(of, _)| *of != place) {
            return Ok(());
        }
        let batcher = self.batcher(place)?;
        let stepped = match beside {
            true => batcher.step_beside(),
            false => batcher.step(),
        };
        let outputs = match stepped {
            Ok(outputs) => outputs,
            Err(error) => return self.fail_all(place, error.into()),
        };
        for output in outputs {
            let output = match output {
                Ok(output) => output,
                Err(failed) => {
                    self.fail(place, &failed);
                    continue;
                }
            };
            let at = (place, output.id);
            let finished = output.finished.is_some();
            let Some(live) = self.live.get(&at) else {
                continue;
            };
            let read = live.outputs.send(Output::of(live.index, output)).is_ok();
            if finished {
                self.live.remove(&at);
            } else if !read {
                self.cancel(at);
            }
        }
        Ok(())
    }

    /// One sequence computed nonsense (an adapter with damaged values) or left its grammar; the others go on.
    fn fail(&mut self, place: Place, failed: &Failed) {
        if let Some(live) = self.live.remove(&(place, failed.id)) {
            let error = match &failed.reason {
                FailReason::Grammar(_) => DeviceError::Grammar(failed.to_string()),
                FailReason::NotFinite => DeviceError::BadInput(failed.to_string()),
            };
            // A reader that left needs no error.
            let _ = live.outputs.send(Output::Failed(error));
        }
    }

    fn fail_all(&mut self, place: Place, error: DeviceError) -> Result<(), DeviceError> {
        let here: Vec<_> = self.live.extract_if(|(of, _), _| *of == place).collect();
        for ((_, sequence), live) in here {
            self.batcher(place)?.cancel(sequence);
            // A reader that left needs no error.
            let _ = live.outputs.send(Output::Failed(error.clone()));
        }
        if error.is_fatal() { Err(error) } else { Ok(()) }
    }

    fn cancel(&mut self, at: (Place, SequenceId)) {
        let (place, sequence) = at;
        self.live.remove(&at);
        if let Ok(batcher) = self.batcher(place) {
            batcher.cancel(sequence);
        }
    }

    pub(super) fn stop(&mut self, id: u64, index: u32) {
        let found = self
            .live
            .iter()
            .find(|(_, live)| live.id == id && live.index == index);
        if let Some(at) = found.map(|(at, _)| *at) {
            self.cancel(at);
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
