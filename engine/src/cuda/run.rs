//! Owns an adapter being trained on a GPU: values, gradients and moments stay there from step to step.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use super::base::{Base, Shape};
use super::gpu::{CudaError, Gpu};
use super::matmul::cublaslt_version;
use super::memory::{Memory, Pinned, Plan, clear, download, download_large, staging, upload};
use super::offload::Offload;
use super::ops::{ADAM_CHUNK, Adam, AdamStep, AdamTensor, tiles};
use super::passes::{Into, Pass};
use super::plan::{MemoryPlan, Streams};
use super::room::{Gradients, ROW_STEP, Room, Tables, Tiles, parts, ranks};
use crate::config::ModelConfig;
use crate::cpu::element::Precision;
use crate::lora::{Adapter, AdapterShape, Fused, Layout, Role};
use crate::model::{Batch, MemoryLevel};
use crate::nn::cross_entropy::RowLosses;
use crate::optim::Group;
use crate::train::{self, EvalReport, State, TrainConfig, TrainError, Update, Weigh};

/// Numbers of the stream that a pass has, unless an example is longer: enough to fill a large card, few enough to leave its memory
/// to others.
const PASS_NUMBERS: usize = 16 << 20;

const NO_PREFERENCE: &str = "a training by preference";

/// The rows of a pass are between these. Tokens.
const LEAST_ROWS: usize = 4096;
const MOST_ROWS: usize = 16384;

/// An adapter on a GPU.
pub(crate) struct Run {
    gpu: Gpu,
    base: Arc<Base>,
    layout: Arc<Layout>,
    ranks: Vec<[usize; 4]>,
    memory: MemoryPlan,
    config: TrainConfig,
    groups: Vec<Group>,
    state: OnGpu,
    /// What the passes compute in; grown to the largest so far.
    room: Option<Place>,
    /// What the passes of a step are over; grown to the largest so far.
    tables: Option<Memory>,
    /// Through which the adapter comes to the host.
    staging: Mutex<Pinned>,
}

/// Where passes compute.
struct Place {
    /// What still copies is waited for first.
    offload: Option<Offload>,
    room: Room,
    memory: Memory,
}

/// The adapter's part of the memory.
struct OnGpu {
    /// Each in the layout's order.
    values: u64,
    exp_avg: u64,
    exp_avg_sq: u64,
    gradients: Vec<[Gradients; 4]>,
    adam: Adam,
    /// Σ −log p and how many were right.
    sums: u64,
    memory: Memory,
}

impl Run {
    /// A run with the values of `adapter` on the stream of `gpu`, the GPU that has `base`.
    /// Errors: `Unsupported`, `OutOfMemory`, `Driver`.
    pub fn new(
        gpu: &Gpu,
        base: Arc<Base>,
        adapter: &Adapter,
        groups: &[Group],
        config: &TrainConfig,
        memory: MemoryPlan,
    ) -> Result<Self, CudaError> {
        let layout = Arc::clone(adapter.layout());
        check(&base, &adapter.shape(), config)?;
        let ranks = ranks(&layout);
        let state = OnGpu::new(gpu, &base, &layout, &ranks, adapter.values(), groups)?;
        Ok(Self {
            gpu: gpu.clone(),
            base,
            layout,
            ranks,
            memory,
            config: config.clone(),
            groups: groups.to_vec(),
            state,
            room: None,
            tables: None,
            staging: Mutex::new(staging(gpu)?),
        })
    }

    fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Room for passes of `n_rows` rows with `n_labels` labels.
    fn ensure_room(&mut self, n_rows: usize, n_labels: usize) -> Result<(), CudaError> {
        let fits = |Place { room, .. }: &Place| room.n_rows >= n_rows && room.n_labels >= n_labels;
        if self.room.as_ref().is_some_and(fits) {
            return Ok(());
        }
        // What is grown is not kept beside its successor.
        let (rows, labels) = match self.room.take() {
            Some(Place { room, .. }) => (room.n_rows.max(n_rows), room.n_labels.max(n_labels)),
            None => (n_rows, n_labels),
        };
        let divide = |plan: &mut Plan| {
            let shape = self.base.shape();
            Room::new(plan, shape, &self.ranks, rows, labels, self.memory)
        };
        let mut plan = Plan::measure();
        divide(&mut plan);
        let memory = Memory::new(&self.gpu, plan.used())?;
        let room = divide(&mut Plan::over(&memory));
        let offload = match self.memory.streams {
            Streams::OnGpu => None,
            Streams::OnHost => {
                let size = room.streams[0].size_bytes();
                Some(Offload::new(&self.gpu, room.streams.len(), size)?)
            }
        };
        self.room = Some(Place {
            offload,
            room,
            memory,
        });
        Ok(())
    }

    /// Brings what all passes of a step are over to the GPU at once.
    fn upload_tables(&mut self, passes: &[Batch]) -> Result<Vec<Tables>, CudaError> {
        let head_dim = self.base.config.head_dim;
        let mut numbers: Vec<i32> = Vec::new();
        let places: Vec<Places> = passes
            .iter()
            .map(|pass| Places::new(self.gpu(), head_dim, pass, &mut numbers))
            .collect();
        let bytes = 4 * numbers.len();
        if self
            .tables
            .as_ref()
            .is_none_or(|tables| tables.len() < bytes)
        {
            self.tables = None;
            self.tables = Some(Memory::new(self.gpu(), bytes.next_power_of_two())?);
        }
        let at = self.tables.as_ref().map_or(0, Memory::at);
        upload(self.gpu(), at, &numbers)?;
        Ok(places.iter().map(|places| places.tables(at)).collect())
    }

    fn prepare(&mut self, passes: &[Batch]) -> Result<Vec<Tables>, CudaError> {
        let tables = self.upload_tables(passes)?;
        let most = |of: fn(&Tables) -> usize| tables.iter().map(of).max().unwrap_or(0);
        self.ensure_room(most(|tables| tables.n_rows), most(|tables| tables.n_labels))?;
        Ok(tables)
    }

    /// As many numbers as the adapter has values.
    fn read(&self, at: u64) -> Result<Vec<f32>, CudaError> {
        let mut numbers = vec![0.0; self.layout.n_values()];
        let mut staging = self.staging.lock().expect("no holder panics — a bug here");
        download_large(self.gpu(), at, &mut numbers, &mut staging)?;
        Ok(numbers)
    }

    fn place(&self) -> &Place {
        let place = self.room.as_ref();
        place.expect("`prepare` made room — a bug here")
    }

    /// A forward alone.
    fn pass(&self, tables: Tables) -> Pass<'_> {
        Pass {
            gpu: &self.gpu,
            base: &self.base,
            room: &self.place().room,
            offload: None,
            tables,
            ranks: &self.ranks,
            lowest: self.layout.lowest(),
        }
    }
}

/// Whether a GPU can compute such a training, whatever the base.
/// Errors: `Unsupported`.
pub fn supports(adapter: &AdapterShape, config: &TrainConfig) -> Result<(), CudaError> {
    let no = |what: &str| Err(CudaError::Unsupported(what.to_owned()));
    let (lora, layout) = (adapter.config(), adapter.layout());
    if config.precision != Precision::Bf16 {
        return no("training in fp32");
    }
    if config.preference.is_some() {
        return no(NO_PREFERENCE);
    }
    if lora.use_dora {
        return no("DoRA");
    }
    if lora.lora_dropout > 0.0 {
        return no("lora_dropout");
    }
    if !layout.biases().is_empty() || !lora.modules_to_save.is_empty() {
        return no("training of biases or whole modules");
    }
    Ok(())
}

/// Errors: `Unsupported`.
fn check(base: &Base, adapter: &AdapterShape, config: &TrainConfig) -> Result<(), CudaError> {
    supports(adapter, config)?;
    let room = base.room.0;
    let needed = ranks(adapter.layout());
    for (fused, room) in room.into_iter().enumerate() {
        let most = needed.iter().map(|ranks| ranks[fused]).max().unwrap_or(0);
        if most > room {
            let what = format!("ranks of {most} in one linear on a base with room for {room}");
            return Err(CudaError::Unsupported(what));
        }
    }
    Ok(())
}

impl OnGpu {
    fn new(
        gpu: &Gpu,
        base: &Base,
        layout: &Layout,
        ranks: &[[usize; 4]],
        values: &[f32],
        groups: &[Group],
    ) -> Result<Self, CudaError> {
        let mut plan = Plan::measure();
        Held::plan(&mut plan, &base.config, layout, ranks);
        let memory = Memory::new(gpu, plan.used())?;
        let Held {
            values: at,
            exp_avg,
            exp_avg_sq,
            gradients,
            adam,
            sums,
        } = Held::plan(&mut Plan::over(&memory), &base.config, layout, ranks);
        clear(gpu, memory.at(), memory.len())?;
        clear_changes(gpu, base)?;
        let mut on_gpu = Self {
            values: at,
            exp_avg,
            exp_avg_sq,
            gradients,
            adam,
            sums,
            memory,
        };
        upload(gpu, at, values)?;
        on_gpu.publish(gpu, base, layout, groups)?;
        Ok(on_gpu)
    }

    /// Lets the passes read the values as they are. What is not trained is read by them all the same: it is published here alone,
    /// then only the rest is updated.
    fn publish(
        &mut self,
        gpu: &Gpu,
        base: &Base,
        layout: &Layout,
        groups: &[Group],
    ) -> Result<(), CudaError> {
        let all = self.tensors(base, layout, None);
        self.set_tensors(gpu, &all)?;
        self.adam.publish(gpu)?;
        let trained = self.tensors(base, layout, Some(groups));
        self.set_tensors(gpu, &trained)
    }

    /// A and B of every slot, or with `groups` of those that are trained.
    fn tensors(&self, base: &Base, layout: &Layout, groups: Option<&[Group]>) -> Vec<AdamTensor> {
        let mut tensors = Vec::new();
        for (layer, of_layer) in self.gradients.iter().enumerate() {
            for fused in Fused::ALL {
                let linear = base.layers[layer].linears[fused as usize];
                let Gradients { a, b } = of_layer[fused as usize];
                for (slot, ranks) in parts(layout, layer, fused) {
                    if groups.is_some() && slot.role != Role::Trained {
                        continue;
                    }
                    let out_a = linear.a.rows(ranks.start, ranks.end);
                    let rows = slot.column..slot.column + slot.n_out;
                    let of_part = linear.b.rows(rows.start, rows.end);
                    let out_b = of_part.columns(ranks.start, ranks.end);
                    let tensor = |place: &Range<usize>, rows: usize, columns: usize| {
                        let rule = groups.and_then(|groups| rule(groups, place));
                        let (lr_ratio, weight_decay) = rule.unwrap_or((1.0, 0.0));
                        AdamTensor {
                            value: self.values + 4 * place.start as u64,
                            m: self.exp_avg + 4 * place.start as u64,
                            v: self.exp_avg_sq + 4 * place.start as u64,
                            rows: rows as i32,
                            columns: columns as i32,
                            lr_ratio,
                            weight_decay,
                            ..bytemuck::Zeroable::zeroed()
                        }
                    };
                    tensors.push(AdamTensor {
                        grad: a.rows(ranks.start, ranks.end).at,
                        grad_pitch: a.pitch as i32,
                        grad_scale: 1.0,
                        out: out_a.at,
                        out_pitch: out_a.pitch as i32,
                        out_scale: 1.0,
                        ..tensor(&slot.a, slot.r, slot.n_in)
                    });
                    tensors.push(AdamTensor {
                        grad: b
                            .rows(rows.start, rows.end)
                            .columns(ranks.start, ranks.end)
                            .at,
                        grad_pitch: b.pitch as i32,
                        grad_scale: slot.scale,
                        out: out_b.at,
                        out_pitch: out_b.pitch as i32,
                        out_scale: slot.scale,
                        ..tensor(&slot.b, slot.n_out, slot.r)
                    });
                }
            }
        }
        tensors
    }

    fn set_tensors(&mut self, gpu: &Gpu, tensors: &[AdamTensor]) -> Result<(), CudaError> {
        let chunks = tensors.iter().enumerate().flat_map(|(i, tensor)| {
            let n = (tensor.rows * tensor.columns) as usize;
            let firsts = (0..n).step_by(ADAM_CHUNK);
            firsts.map(move |first| [i as i32, first as i32])
        });
        let chunks: Vec<[i32; 2]> = chunks.collect();
        self.adam.n_chunks = chunks.len();
        upload(gpu, self.adam.tensors, tensors)?;
        upload(gpu, self.adam.chunks, &chunks)
    }
}

/// Where everything of an adapter lies; as in [`OnGpu`].
struct Held {
    values: u64,
    exp_avg: u64,
    exp_avg_sq: u64,
    gradients: Vec<[Gradients; 4]>,
    adam: Adam,
    sums: u64,
}

impl Held {
    fn plan(plan: &mut Plan, config: &ModelConfig, layout: &Layout, ranks: &[[usize; 4]]) -> Self {
        let n = layout.n_values();
        let n_slots = 2 * layout.slots().len();
        let n_chunks: usize = layout
            .slots()
            .iter()
            .map(|slot| slot.a.len().div_ceil(ADAM_CHUNK) + slot.b.len().div_ceil(ADAM_CHUNK))
            .sum();
        let [values, exp_avg, exp_avg_sq] = [(); 3].map(|()| plan.words(n));
        Self {
            values,
            exp_avg,
            exp_avg_sq,
            gradients: Gradients::plan(plan, config, ranks),
            adam: Adam {
                tensors: plan.bytes(n_slots * size_of::<AdamTensor>()),
                chunks: plan.words(2 * n_chunks),
                n_chunks: 0,
                partial: plan.words(2 * n_chunks),
                result: plan.words(2),
                step: plan.bytes(size_of::<AdamStep>()),
            },
            sums: plan.words(4),
        }
    }
}

/// How the values at a place learn.
fn rule(groups: &[Group], place: &Range<usize>) -> Option<(f32, f32)> {
    let contains =
        |group: &&Group| group.range.start <= place.start && place.end <= group.range.end;
    let group = groups.iter().find(contains)?;
    Some((group.lr_ratio, group.weight_decay))
}

/// What an adapter before has left around the weights.
fn clear_changes(gpu: &Gpu, base: &Base) -> Result<(), CudaError> {
    for linear in base.layers.iter().flat_map(|layer| &layer.linears) {
        super::ops::clear_matrix(gpu, linear.a)?;
        super::ops::clear_matrix(gpu, linear.b)?;
    }
    Ok(())
}

/// Where the numbers of a pass lie among those of its step, counted in numbers.
struct Places {
    n_rows: usize,
    tokens: usize,
    positions: usize,
    tiles: [(usize, usize); 3],
    n_labels: usize,
    label_rows: usize,
    labels: usize,
}

impl Places {
    fn new(gpu: &Gpu, head_dim: usize, pass: &Batch, numbers: &mut Vec<i32>) -> Self {
        let n_used = pass.tokens.len();
        let n_rows = n_used.next_multiple_of(ROW_STEP);
        let mut documents = pass.documents.clone();
        // The rows that fill up are a document of their own, without labels.
        documents.extend((n_rows > n_used).then_some(n_used..n_rows));
        let mut put = |values: &mut dyn Iterator<Item = i32>| {
            let at = numbers.len();
            numbers.extend(values);
            let n = numbers.len() - at;
            numbers.resize(numbers.len().next_multiple_of(4), 0);
            (at, n)
        };
        let fill = std::iter::repeat_n(0, n_rows - n_used);
        let (tokens, _) = put(&mut pass.tokens.iter().map(|&token| token as i32).chain(fill));
        let (positions, _) = put(&mut documents
            .iter()
            .flat_map(|document| 0..document.len() as i32));
        let [forward, backward_kv, backward_q] = gpu.tile_rows(head_dim);
        let wanted = [(forward, false), (backward_kv, true), (backward_q, false)];
        let tiles = wanted.map(|(tile, of_keys)| {
            let tiles = tiles(&documents, tile, of_keys);
            let (at, n) = put(&mut tiles.into_iter().flatten());
            (at, n / 4)
        });
        let (label_rows, n_labels) = put(&mut pass.label_rows.iter().map(|&row| row as i32));
        let (labels, _) = put(&mut pass.labels.iter().map(|&label| label as i32));
        Self {
            n_rows,
            tokens,
            positions,
            tiles,
            n_labels,
            label_rows,
            labels,
        }
    }

    fn tables(&self, base: u64) -> Tables {
        let at = |place: usize| base + 4 * place as u64;
        let [forward, backward_kv, backward_q] = self.tiles.map(|(place, n)| (at(place), n));
        Tables {
            n_rows: self.n_rows,
            tokens: at(self.tokens),
            positions: at(self.positions),
            tiles: Tiles {
                forward,
                backward_kv,
                backward_q,
            },
            n_labels: self.n_labels,
            label_rows: at(self.label_rows),
            labels: at(self.labels),
        }
    }
}

impl train::Run for Run {
    fn model(&self) -> &ModelConfig {
        &self.base.config
    }

    fn arithmetic(&self) -> String {
        let (major, minor) = self.gpu().capability();
        let (card, library) = (self.gpu().name(), cublaslt_version());
        format!("cuda-bf16-1 sm_{major}{minor} {card}, cuBLASLt {library}")
    }

    fn rows_per_pass(&self) -> usize {
        rows_per_pass(&self.base.config)
    }

    fn gpu_bytes(&self) -> u64 {
        let room = self.room.as_ref().map_or(0, |place| place.memory.len());
        let tables = self.tables.as_ref().map_or(0, Memory::len);
        (self.state.memory.len() + room + tables) as u64
    }

    fn gradients(&mut self, passes: &[Batch], scale: f32) -> Result<(EvalReport, f32), TrainError> {
        let tables = self.prepare(passes)?;
        clear(self.gpu(), self.state.sums, 16)?;
        for (i, &tables) in tables.iter().enumerate() {
            let into = Into {
                gradients: &self.state.gradients,
                adds: i > 0,
                scale,
                sums: self.state.sums,
            };
            let pass = Pass {
                offload: self.place().offload.as_ref(),
                ..self.pass(tables)
            };
            pass.forward()?;
            pass.losses(Some(&into))?;
            pass.backward(&into)?;
        }
        let max_norm = self.config.max_grad_norm.unwrap_or(0.0);
        self.state.adam.norm(self.gpu(), max_norm)?;
        let (mut sums, mut norm) = ([0u64; 2], [0.0f32; 2]);
        download(self.gpu(), self.state.sums, &mut sums)?;
        download(self.gpu(), self.state.adam.result, &mut norm)?;
        let report = EvalReport {
            loss_sum: f64::from_bits(sums[0]),
            n_label_tokens: passes.iter().map(|pass| pass.labels.len() as u64).sum(),
            n_correct: sums[1],
        };
        Ok((report, norm[0]))
    }

    fn weighed_gradients(&mut self, _: &[Batch], _: &mut Weigh<'_>) -> Result<f32, TrainError> {
        Err(CudaError::Unsupported(NO_PREFERENCE.to_owned()).into())
    }

    fn update(&mut self, update: Update) -> Result<(), TrainError> {
        let (beta1, beta2) = self.config.betas;
        let t = update.step as i32;
        let step = AdamStep {
            lr: update.learning_rate,
            beta1,
            beta2,
            eps: self.config.eps,
            correction1: (1.0 - f64::from(beta1).powi(t)) as f32,
            v_scale: (1.0 / (1.0 - f64::from(beta2).powi(t)).sqrt()) as f32,
        };
        upload(self.gpu(), self.state.adam.step, &[step])?;
        Ok(self.state.adam.update(self.gpu())?)
    }

    fn score(&mut self, pass: &Batch) -> Result<RowLosses, TrainError> {
        let tables = self.prepare(std::slice::from_ref(pass))?[0];
        let pass = self.pass(tables);
        pass.forward()?;
        pass.losses(None)?;
        let (mut logprobs, mut correct) = (vec![0.0; tables.n_labels], vec![0i32; tables.n_labels]);
        download(self.gpu(), pass.room.logprobs, &mut logprobs)?;
        download(self.gpu(), pass.room.correct, &mut correct)?;
        Ok(RowLosses {
            logprobs,
            n_correct: correct.iter().filter(|&&is| is != 0).count() as u64,
        })
    }

    fn score_by_first(&mut self, _: &Batch) -> Result<RowLosses, TrainError> {
        Err(CudaError::Unsupported(NO_PREFERENCE.to_owned()).into())
    }

    fn score_exactly(&mut self, pass: &Batch) -> Result<RowLosses, TrainError> {
        self.score(pass)
    }

    fn logits(&mut self, pass: &Batch) -> Result<Vec<f32>, TrainError> {
        let mut pass = pass.clone();
        pass.label_rows = (0..pass.tokens.len()).collect();
        pass.labels = vec![0; pass.tokens.len()];
        let tables = self.prepare(std::slice::from_ref(&pass))?[0];
        let pass = self.pass(tables);
        pass.forward()?;
        Ok(pass.all_logits()?)
    }

    fn gradient_values(&self) -> Result<Vec<f32>, TrainError> {
        let mut values = vec![0.0; self.layout.n_values()];
        for (layer, of_layer) in self.state.gradients.iter().enumerate() {
            for fused in Fused::ALL {
                let Gradients { a, b } = of_layer[fused as usize];
                let [mut of_a, mut of_b] =
                    [a, b].map(|matrix| vec![0.0f32; matrix.rows * matrix.pitch]);
                download(self.gpu(), a.at, &mut of_a)?;
                download(self.gpu(), b.at, &mut of_b)?;
                for (slot, ranks) in parts(&self.layout, layer, fused) {
                    if slot.role != Role::Trained {
                        continue;
                    }
                    let from = ranks.start * slot.n_in..ranks.end * slot.n_in;
                    values[slot.a.clone()].copy_from_slice(&of_a[from]);
                    for (n, to) in values[slot.b.clone()].chunks_exact_mut(slot.r).enumerate() {
                        let row = (slot.column + n) * b.pitch;
                        let from = &of_b[row + ranks.start..row + ranks.end];
                        to.iter_mut()
                            .zip(from)
                            .for_each(|(to, from)| *to = from * slot.scale);
                    }
                }
            }
        }
        Ok(values)
    }

    fn values(&self) -> Result<Cow<'_, [f32]>, TrainError> {
        Ok(Cow::Owned(self.read(self.state.values)?))
    }

    fn state(&self) -> Result<Cow<'_, State>, TrainError> {
        Ok(Cow::Owned(State {
            values: self.read(self.state.values)?,
            exp_avg: self.read(self.state.exp_avg)?,
            exp_avg_sq: self.read(self.state.exp_avg_sq)?,
        }))
    }

    fn set_state(&mut self, state: &State) -> Result<(), TrainError> {
        let OnGpu {
            values,
            exp_avg,
            exp_avg_sq,
            ..
        } = self.state;
        upload(self.gpu(), values, &state.values)?;
        upload(self.gpu(), exp_avg, &state.exp_avg)?;
        upload(self.gpu(), exp_avg_sq, &state.exp_avg_sq)?;
        Ok(self
            .state
            .publish(&self.gpu, &self.base, &self.layout, &self.groups)?)
    }
}

/// The most rows that a pass should have.
fn rows_per_pass(config: &ModelConfig) -> usize {
    let rows = PASS_NUMBERS / config.hidden_size / LEAST_ROWS * LEAST_ROWS;
    rows.clamp(LEAST_ROWS, MOST_ROWS)
}

/// A training, as far as its memory depends on it.
#[derive(Clone, Copy)]
pub struct TrainingShape<'a> {
    pub model: &'a ModelConfig,
    pub adapter: &'a AdapterShape,
    pub config: &'a TrainConfig,
    /// Of the examples. Tokens.
    pub longest: usize,
    /// `None`: the fastest that fits.
    pub level: Option<MemoryLevel>,
}

/// What a training takes beside the base's weights, counted from above, as if every row of a pass had a label. Bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    pub memory: MemoryPlan,
    /// Rows of a pass. Tokens.
    pub n_rows: usize,
    /// The adapter with gradients and moments, on the GPU.
    pub adapter: u64,
    /// What passes compute in, on the GPU.
    pub activations: u64,
    /// Of the host's memory, for streams that wait there.
    pub on_host: u64,
}

impl Need {
    /// All of it that lies on the GPU.
    pub fn on_gpu(&self) -> u64 {
        self.adapter + self.activations
    }
}

impl TrainingShape<'_> {
    /// The fastest plan that takes at most `available` bytes of the GPU's memory beside the base's weights, and half of `host_bytes`. The base need
    /// not lie on the GPU yet.
    /// Errors: `OutOfMemory` with what the leanest plan needs.
    pub fn plan(&self, gpu: &Gpu, available: u64, host_bytes: u64) -> Result<Need, CudaError> {
        let (layout, shape) = (self.adapter.layout(), Shape::new(gpu, self.model));
        let ranks = ranks(layout);
        let own = rows_per_pass(self.model);
        let n_rows = self.config.pass_tokens.unwrap_or(own).max(self.longest);
        let n_rows = n_rows.next_multiple_of(ROW_STEP);
        let mut plan = Plan::measure();
        Held::plan(&mut plan, self.model, layout, &ranks);
        let adapter = plan.used() as u64;
        let mut needed = 0;
        for memory in MemoryPlan::all(self.level, self.model.num_hidden_layers) {
            let mut plan = Plan::measure();
            let room = Room::new(&mut plan, shape, &ranks, n_rows, n_rows, memory);
            let need = Need {
                memory,
                n_rows,
                adapter,
                activations: plan.used() as u64,
                on_host: room.host_bytes(),
            };
            if need.on_host > host_bytes / 2 {
                continue;
            }
            needed = need.on_gpu();
            if needed <= available {
                return Ok(need);
            }
        }
        Err(CudaError::OutOfMemory {
            needed,
            free: available,
        })
    }
}

/// What a training may take of the GPU's memory at this moment: what is free, but for a twentieth of the card. Bytes.
/// Errors: `Driver`.
pub fn available_bytes(gpu: &Gpu) -> Result<u64, CudaError> {
    // Memory that was freed is given back to the card only now.
    gpu.synchronize()?;
    let (free, total) = gpu.memory()?;
    Ok(free.saturating_sub(total / 20))
}

/// The fastest plan of a run with this adapter on a base that lies on the GPU, of the level that was asked for if one was, whose memory is free beside a
/// twentieth of the card. `longest`: of the examples, in tokens; `host_bytes`: what is free of the host's memory, of which streams may take half.
/// Errors: `OutOfMemory` with what the leanest plan needs; `Unsupported`; `Driver`.
pub fn plan_memory(
    gpu: &Gpu,
    base: &Base,
    adapter: &Adapter,
    config: &TrainConfig,
    longest: usize,
    asked: Option<MemoryLevel>,
    host_bytes: u64,
) -> Result<Need, CudaError> {
    let adapter = adapter.shape();
    check(base, &adapter, config)?;
    let shape = TrainingShape {
        model: &base.config,
        adapter: &adapter,
        config,
        longest,
        level: asked,
    };
    shape.plan(gpu, available_bytes(gpu)?, host_bytes)
}
