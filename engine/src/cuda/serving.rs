//! Owns generation on a GPU: keys and values in pages there, adapters mixed in one step. Every kernel gives a row the same bits
//! whatever rows are beside it, so row i of any step equals its single run.

use std::sync::Arc;

use super::adapters::{Adapters, Slot};
use super::base::{Base, Linear, linear_sizes};
use super::gpu::{CudaError, Gpu};
use super::graphs::Graphs;
use super::memory::{Format, Matrix, Memory, Pinned, Plan, download, upload};
use super::ops::{self, QkNorm};
use super::serve_ops::{self, Change, LayerPages, PAGE, Rows, SEGMENT_ROWS, Segments, To, Weights};
use crate::config::ModelConfig;
use crate::cpu::buffer::OutOfMemory;
use crate::cpu::element::Precision;
use crate::cpu::pool::Pool;
use crate::generate::{Drawn, GenerateError, Last, Step, Stepped};
use crate::kv::PageShape;
use crate::lora::{Adapter, Fused, PackedLora};
use crate::nn::softcap;
use crate::sampling::Draw;

/// Rows that a chunk of a document has when it is scored.
const SCORED_ROWS: usize = 512;

/// A base on a GPU with all that is generated from it.
pub(crate) struct Generator {
    gpu: Gpu,
    base: Arc<Base>,
    adapters: Adapters,
    pages: Pages,
    room: Option<(Memory, Room)>,
    tables: Option<Memory>,
    /// Of the last step, (rows, V) of those that nothing was drawn for.
    logits: Option<Pinned>,
    graphs: Graphs<Tables>,
    /// What a linear in few bits is unpacked into, one at a time; a training unpacks elsewhere.
    unpacked: Option<Memory>,
}

/// Rows up to which a step is recorded: the kernels of larger ones take longer than starting them does.
const RECORDED_ROWS: usize = 64;

/// Keys and values of every layer.
struct Pages {
    memory: Memory,
    n_pages: usize,
}

impl Pages {
    fn new(gpu: &Gpu, base: &Base, n_tokens: usize) -> Result<Self, CudaError> {
        let memory = Memory::new(gpu, Self::bytes_of(&base.config, n_tokens))?;
        let n_pages = Self::n_of(n_tokens);
        Ok(Self { memory, n_pages })
    }

    fn n_of(n_tokens: usize) -> usize {
        n_tokens.div_ceil(PAGE).max(1)
    }

    /// What so many tokens take in all layers. Bytes.
    fn bytes_of(config: &ModelConfig, n_tokens: usize) -> usize {
        2 * Self::n_of(n_tokens) * page_bytes(config) * config.num_hidden_layers
    }

    fn of_layer(&self, config: &ModelConfig, layer: usize) -> LayerPages {
        let bytes = (self.n_pages * page_bytes(config)) as u64;
        let keys = self.memory.at() + 2 * layer as u64 * bytes;
        LayerPages {
            keys,
            values: keys + bytes,
        }
    }
}

/// What the largest linear takes. Bytes.
fn most_unpacked(config: &ModelConfig) -> usize {
    let sizes = linear_sizes(config).map(|(k, n)| Matrix::aligned(0, n, k).size_bytes());
    sizes.into_iter().max().unwrap_or(0)
}

/// Of the keys of a page in one layer.
fn page_bytes(config: &ModelConfig) -> usize {
    2 * PAGE * config.key_value_size()
}

/// The memory of a step.
struct Room {
    n_rows: usize,
    n_last: usize,
    longest: usize,
    most_ranks: usize,
    /// (rows, D) in f32
    stream: Matrix,
    /// (rows, D): what the first linear of a branch reads, or what a branch gives before a norm.
    normed: Matrix,
    rstd: u64,
    qkv: Matrix,
    raw_qk: Matrix,
    qk_rstd: u64,
    attended: Matrix,
    gate_up: Matrix,
    inner: Matrix,
    /// (rows, ranks) in f32
    h: Matrix,
    angles: Vec<(u64, u64)>,
    scratch: (u64, u64),
    last: Matrix,
    logits: Matrix,
    logprobs: (u64, u64),
}

impl Room {
    fn new(plan: &mut Plan, base: &Base, size: Size) -> Self {
        use Format::{Bf16, F32};
        let config = &base.config;
        let Size {
            n_rows,
            n_last,
            longest,
            most_ranks,
        } = size;
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        let (query, kv) = (config.query_size(), config.key_value_size());
        let n_norms = QkNorm::of(config).map_or(0, |norm| norm.n_groups());
        let (partial, stats) = serve_ops::attention_scratch(config, longest);
        let half = config.rotary_dim / 2;
        Self {
            n_rows,
            n_last,
            longest,
            most_ranks,
            stream: plan.dense(F32, n_rows, width),
            normed: plan.matrix(Bf16, n_rows, width),
            rstd: plan.words(n_rows),
            qkv: plan.matrix(Bf16, n_rows, query + 2 * kv),
            raw_qk: plan.matrix(Bf16, if n_norms > 0 { n_rows } else { 0 }, query + kv),
            qk_rstd: plan.words(n_rows * n_norms),
            attended: plan.matrix(Bf16, n_rows, query),
            gate_up: plan.matrix(Bf16, n_rows, 2 * inner),
            inner: plan.matrix(Bf16, n_rows, inner),
            h: plan.dense(F32, n_rows, most_ranks.next_multiple_of(8)),
            angles: base
                .rotations
                .iter()
                .map(|_| (plan.words(n_rows * half), plan.words(n_rows * half)))
                .collect(),
            scratch: (plan.words(partial), plan.words(2 * stats)),
            last: plan.matrix(Bf16, n_last, width),
            logits: plan.matrix(F32, n_last, config.vocab_size),
            logprobs: (plan.words(n_last), plan.words(n_last)),
        }
    }
}

/// What there must be room for.
#[derive(Clone, Copy)]
struct Size {
    n_rows: usize,
    n_last: usize,
    longest: usize,
    most_ranks: usize,
}

/// One row of a step.
#[derive(Clone, Copy)]
struct Row {
    token: u32,
    sequence: usize,
    position: usize,
}

/// The rows of a step on the host.
struct Plain<'a> {
    rows: Vec<Row>,
    /// Page numbers of each sequence.
    pages: Vec<Vec<usize>>,
    /// Of each sequence.
    adapters: Vec<Option<&'a Adapter>>,
    last: Vec<usize>,
    targets: Vec<u32>,
    /// Of the last of `last`.
    draws: Vec<Draw>,
}

/// The rows of a step on the GPU. It is all that differs from step to step in how kernels are started.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Tables {
    rows: Rows,
    tokens: u64,
    segments: Option<Segments>,
    /// Of each fused linear of each layer whether an adapter of the step changes it.
    changed: Vec<bool>,
    last: u64,
    n_last: usize,
    targets: u64,
    /// Of the last rows those that logits are wanted of.
    n_logits: usize,
    /// Inverse temperatures, and random numbers.
    draws: (u64, u64),
}

impl Generator {
    /// What [`Self::new`] takes of the GPU's memory. Bytes.
    pub fn bytes_of(
        config: &ModelConfig,
        is_quantized: bool,
        n_sequences: usize,
        n_tokens: usize,
    ) -> usize {
        let unpacked = if is_quantized {
            most_unpacked(config)
        } else {
            0
        };
        unpacked
            + Adapters::bytes_of(config.num_hidden_layers, n_sequences.max(1))
            + Pages::bytes_of(config, n_tokens)
    }

    /// Generates on the stream of `gpu`, the GPU that has `base`.
    /// Errors: `OutOfMemory`, `OutOfHostMemory`, `Driver`.
    pub fn new(
        gpu: &Gpu,
        base: Arc<Base>,
        n_sequences: usize,
        n_tokens: usize,
    ) -> Result<Self, CudaError> {
        let unpacked =
            (!base.codes.is_empty()).then(|| Memory::new(gpu, most_unpacked(&base.config)));
        Ok(Self {
            unpacked: unpacked.transpose()?,
            adapters: Adapters::new(gpu, base.layers.len(), n_sequences.max(1))?,
            pages: Pages::new(gpu, &base, n_tokens)?,
            room: None,
            tables: None,
            logits: None,
            graphs: Graphs::default(),
            gpu: gpu.clone(),
            base,
        })
    }

    fn ensure_room(&mut self, size: Size) -> Result<(), CudaError> {
        let Size {
            n_rows,
            n_last,
            longest,
            most_ranks,
        } = size;
        let held = self.room.as_ref().map(|(_, room)| Size {
            n_rows: room.n_rows,
            n_last: room.n_last,
            longest: room.longest,
            most_ranks: room.most_ranks,
        });
        let size = match held {
            Some(held)
                if held.n_rows >= n_rows
                    && held.n_last >= n_last
                    && held.longest >= longest
                    && held.most_ranks >= most_ranks =>
            {
                return Ok(());
            }
            // Lengths grow by one token a step: twice as much is enough for long.
            Some(held) => Size {
                n_rows: held.n_rows.max(n_rows),
                n_last: held.n_last.max(n_last),
                longest: held.longest.max(longest.next_power_of_two()),
                most_ranks: held.most_ranks.max(most_ranks),
            },
            None => Size {
                longest: longest.next_power_of_two(),
                ..size
            },
        };
        self.graphs.clear();
        self.room = None;
        let mut plan = Plan::measure();
        Room::new(&mut plan, &self.base, size);
        let memory = Memory::new(&self.gpu, plan.used())?;
        let room = Room::new(&mut Plan::over(&memory), &self.base, size);
        self.room = Some((memory, room));
        Ok(())
    }

    /// Brings adapters and rows to the GPU.
    fn prepare(&mut self, pool: &Pool, plain: &Plain<'_>) -> Result<Tables, CudaError> {
        self.adapters.begin_step();
        let mut slots: Vec<Option<Slot>> = Vec::new();
        for adapter in &plain.adapters {
            let slot = adapter.map(|adapter| self.adapters.slot(pool, adapter));
            slots.push(slot.transpose()?);
        }
        let n = plain.rows.len();
        let longest = plain
            .rows
            .iter()
            .map(|row| row.position + 1)
            .max()
            .unwrap_or(1);
        let longest = serve_ops::rounded_length(longest);
        let most = |of: fn(&Slot) -> usize| slots.iter().flatten().map(of).max().unwrap_or(0);
        let (most_ranks, most_blocks) =
            (most(|slot| slot.most_ranks), most(|slot| slot.most_blocks));
        let mut changed_linears = vec![false; self.base.layers.len() * Fused::ALL.len()];
        for slot in slots.iter().flatten() {
            let both = changed_linears.iter_mut().zip(slot.changes.iter());
            both.for_each(|(any, one)| *any |= one);
        }
        self.ensure_room(Size {
            n_rows: n,
            n_last: plain.last.len(),
            longest,
            most_ranks,
        })?;

        let mut numbers: Vec<i32> = Vec::new();
        let mut put = |values: &mut dyn Iterator<Item = usize>| {
            let at = numbers.len();
            numbers.extend(values.map(|value| value as i32));
            at
        };
        let tokens = put(&mut plain.rows.iter().map(|row| row.token as usize));
        let sequences = put(&mut plain.rows.iter().map(|row| row.sequence));
        let positions = put(&mut plain.rows.iter().map(|row| row.position));
        let max_pages = longest / PAGE;
        let page_table = put(&mut plain.pages.iter().flat_map(|pages| {
            let none = std::iter::repeat_n(0, max_pages.saturating_sub(pages.len()));
            pages.iter().take(max_pages).copied().chain(none)
        }));
        let last = put(&mut plain.last.iter().copied());
        let targets = put(&mut plain.targets.iter().map(|&target| target as usize));
        let changed: Vec<(usize, usize)> = plain
            .rows
            .iter()
            .enumerate()
            .filter_map(|(i, row)| Some((i, slots[row.sequence].as_ref()?.adapter)))
            .collect();
        let (mut segments, mut first) = (Vec::new(), 0);
        for same in changed.chunk_by(|a, b| a.1 == b.1) {
            for piece in same.chunks(SEGMENT_ROWS) {
                segments.push([first, piece.len(), piece[0].1]);
                first += piece.len();
            }
        }
        let changed_rows = put(&mut changed.iter().map(|(i, _)| *i));
        let n_segments = put(&mut std::iter::once(segments.len()));
        let segments_at = put(&mut segments.iter().flatten().copied());
        let inverse = numbers.len();
        let temperatures = plain.draws.iter().map(|draw| draw.inverse_temperature);
        numbers.extend(temperatures.map(|inverse| inverse.to_bits() as i32));
        // Numbers of eight bytes.
        numbers.resize(numbers.len().next_multiple_of(2), 0);
        let random = numbers.len();
        for draw in &plain.draws {
            let bits = draw.random.to_bits();
            numbers.extend([bits as i32, (bits >> 32) as i32]);
        }

        let bytes = 4 * numbers.len();
        if self
            .tables
            .as_ref()
            .is_none_or(|tables| tables.len() < bytes)
        {
            self.tables = None;
            self.tables = Some(Memory::new(&self.gpu, bytes.next_power_of_two())?);
        }
        let base = self.tables.as_ref().map_or(0, Memory::at);
        upload(&self.gpu, base, &numbers)?;
        let at = |place: usize| base + 4 * place as u64;
        Ok(Tables {
            rows: Rows {
                n,
                sequences: at(sequences),
                positions: at(positions),
                page_table: at(page_table),
                max_pages,
                longest,
            },
            tokens: at(tokens),
            segments: (!segments.is_empty()).then(|| Segments {
                n: segments.len(),
                segments: at(segments_at),
                n_segments: at(n_segments),
                rows: at(changed_rows),
                most_ranks,
                most_blocks,
            }),
            changed: changed_linears,
            last: at(last),
            n_last: plain.last.len(),
            n_logits: plain.last.len() - plain.draws.len(),
            targets: at(targets),
            draws: (at(inverse), at(random)),
        })
    }

    /// The tokens that a step drew.
    fn drawn(&self, tables: &Tables) -> Result<Vec<Drawn>, CudaError> {
        let n = tables.n_last - tables.n_logits;
        let (mut tokens, mut logprobs) = (vec![0i32; n], vec![0.0f32; n]);
        let room = self.room();
        download(&self.gpu, room.logprobs.0, &mut tokens)?;
        download(&self.gpu, room.logprobs.1, &mut logprobs)?;
        let both = tokens.into_iter().zip(logprobs);
        Ok(both
            .map(|(token, logprob)| match u32::try_from(token) {
                Ok(token) => Drawn::Token { token, logprob },
                Err(_) => Drawn::NotFinite,
            })
            .collect())
    }

    /// The logits of the first `n` of the last rows, (n, V), on the host.
    fn logits(&mut self, n: usize) -> Result<&mut [f32], CudaError> {
        let from = self.room().logits;
        let (vocab, pitch) = (self.base.config.vocab_size, from.pitch);
        let pinned = Pinned::with_room::<f32>(&mut self.logits, &self.gpu, n * pitch)?;
        let logits = pinned.numbers::<f32>(n * pitch)?;
        download(&self.gpu, from.at, logits)?;
        if pitch > vocab {
            for row in 1..n {
                logits.copy_within(row * pitch..row * pitch + vocab, row * vocab);
            }
        }
        let logits = &mut logits[..n * vocab];
        if let Some(cap) = self.base.config.final_logit_softcapping {
            softcap::cap(logits, 1.0, cap);
        }
        Ok(logits)
    }

    fn room(&self) -> &Room {
        let (_, room) = self
            .room
            .as_ref()
            .expect("`prepare` made room — a bug here");
        room
    }

    /// Runs the rows of a step through every block, makes logits of the last ones and draws tokens from them.
    fn run(&self, tables: &Tables, pages: &Pages) -> Result<(), CudaError> {
        let forward = Forward {
            gpu: &self.gpu,
            base: &self.base,
            adapters: &self.adapters,
            room: self.room(),
            unpacked: self.unpacked.as_ref().map_or(0, Memory::at),
            tables,
        };
        forward.run(pages)?;
        forward.draw()
    }

    /// The same over the pages of all sequences.
    fn run_recorded(&mut self, tables: &Tables) -> Result<(), CudaError> {
        if tables.rows.n > RECORDED_ROWS || self.gpu.is_profiled() {
            return self.run(tables, &self.pages);
        }
        // Taken out, because a step reads all the rest.
        let mut graphs = std::mem::take(&mut self.graphs);
        let run = graphs.run(&self.gpu, tables, || self.run(tables, &self.pages));
        self.graphs = graphs;
        run
    }
}

/// One step over all layers.
struct Forward<'a> {
    gpu: &'a Gpu,
    base: &'a Base,
    adapters: &'a Adapters,
    room: &'a Room,
    /// See [`Generator::unpacked`]; 0: nothing is unpacked.
    unpacked: u64,
    tables: &'a Tables,
}

impl Forward<'_> {
    fn cut(&self, matrix: Matrix) -> Matrix {
        matrix.rows(0, self.tables.rows.n)
    }

    fn linear(&self, layer: usize, fused: Fused) -> Linear {
        self.base.layers[layer].linears[fused as usize]
    }

    fn run(&self, pages: &Pages) -> Result<(), CudaError> {
        let (gpu, base, room) = (self.gpu, self.base, self.room);
        let (config, rows) = (&base.config, self.tables.rows);
        let stream = self.cut(room.stream);
        ops::embed(
            gpu,
            self.tables.tokens,
            base.embed_tokens,
            config.embedding_scale,
            stream,
        )?;
        for (rotation, &angles) in base.rotations.iter().zip(&room.angles) {
            ops::rope_angles(
                gpu,
                rows.positions,
                *rotation,
                angles,
                rows.n,
                config.rotary_dim / 2,
            )?;
        }
        for layer in 0..base.layers.len() {
            self.attention(layer, pages.of_layer(config, layer))?;
            self.feed_forward(layer)?;
        }
        let last = room.last.rows(0, self.tables.n_last);
        let named = ops::Rows::Named(self.tables.last);
        let eps = config.rms_norm_eps;
        ops::norm_forward(gpu, stream, named, base.norm, eps, last, room.rstd)?;
        let logits = room.logits.rows(0, self.tables.n_last);
        let head = Weights {
            w: base.head,
            bias: 0,
            is_fresh: false,
        };
        serve_ops::linear(gpu, last, head, logits, To::Become)
    }

    /// Tokens of the last rows that nobody wants logits of.
    fn draw(&self) -> Result<(), CudaError> {
        let (room, config, tables) = (self.room, &self.base.config, self.tables);
        let logits = room.logits.rows(tables.n_logits, tables.n_last);
        let cap = config.final_logit_softcapping.unwrap_or(0.0);
        let (vocab, out) = (config.vocab_size, room.logprobs);
        serve_ops::draw(self.gpu, logits, vocab, cap, tables.draws, out)
    }

    /// The weights of a linear, unpacked now where they lie as codes.
    fn weights(&self, linear: Linear) -> Result<Weights, CudaError> {
        let Linear { n, k, bias, .. } = linear;
        let Some(codes) = linear.codes else {
            return Ok(Weights {
                w: linear.extended.rows(0, n).columns(0, k),
                bias,
                is_fresh: false,
            });
        };
        let w = Matrix::aligned(self.unpacked, n, k);
        for part in &self.base.codes[codes] {
            part.unpack(self.gpu, w)?;
        }
        Ok(Weights {
            w,
            bias,
            is_fresh: true,
        })
    }

    fn attention(&self, layer: usize, pages: LayerPages) -> Result<(), CudaError> {
        let (gpu, base, room) = (self.gpu, self.base, self.room);
        let (config, weights, rows) = (&base.config, &base.layers[layer], self.tables.rows);
        self.norm(weights.before_attention)?;
        let qkv = self.cut(room.qkv);
        self.apply(layer, Fused::Qkv, room.normed, qkv)?;
        if let (Some(norm), Some(weights)) = (QkNorm::of(config), weights.qk_norm) {
            let raw = self.cut(room.raw_qk);
            let eps = config.rms_norm_eps;
            ops::qk_norm_forward(gpu, norm, weights, eps, qkv, raw, room.qk_rstd)?;
        }
        if let Some(rotation) = base.rotation(layer) {
            let angles = room.angles[rotation];
            ops::rope_rotate(gpu, config, base.is_interleaved(), qkv, angles, 1.0)?;
        }
        serve_ops::append(gpu, config, rows, pages, qkv)?;
        let attended = self.cut(room.attended);
        serve_ops::attention(gpu, config, layer, rows, pages, qkv, attended, room.scratch)?;
        self.leave(layer, Fused::O, room.attended, weights.after_attention)
    }

    fn feed_forward(&self, layer: usize) -> Result<(), CudaError> {
        let (room, weights) = (self.room, &self.base.layers[layer]);
        let inner = self.base.config.intermediate_size;
        self.norm(weights.before_mlp)?;
        let gate_up = self.cut(room.gate_up);
        self.apply(layer, Fused::GateUp, room.normed, gate_up)?;
        let act = self.base.activation();
        ops::glu_forward(self.gpu, gate_up, self.cut(room.inner), inner, act)?;
        self.leave(layer, Fused::Down, room.inner, weights.after_mlp)
    }

    /// What the first linear of a branch reads of the stream.
    fn norm(&self, weight: u64) -> Result<(), CudaError> {
        let (room, eps) = (self.room, self.base.config.rms_norm_eps);
        let (stream, normed) = (self.cut(room.stream), self.cut(room.normed));
        ops::norm_forward(
            self.gpu,
            stream,
            ops::Rows::All,
            weight,
            eps,
            normed,
            room.rstd,
        )
    }

    /// `y` becomes what a changed linear makes of `x`, or that is added to the stream.
    fn apply(&self, layer: usize, fused: Fused, x: Matrix, y: Matrix) -> Result<(), CudaError> {
        let (linear, x) = (self.linear(layer, fused), self.cut(x));
        let x = x.columns(0, linear.k);
        let weights = self.weights(linear)?;
        let to = match y.format {
            Format::Bf16 => To::Become,
            Format::F32 => To::Add,
        };
        let (adapters, h) = (self.adapters.of_linear(layer, fused), self.room.h);
        // A kernel none of whose blocks has work would end without waiting for those before it.
        let is_changed = self.tables.changed[layer * Fused::ALL.len() + fused as usize];
        let segments = self.tables.segments.filter(|_| is_changed);
        let change = segments.map(|segments| Change {
            segments,
            adapters,
            h,
        });
        serve_ops::changed_linear(self.gpu, x, weights, change, y, to)
    }

    /// Adds a branch to the stream, through the norm after it if there is one.
    fn leave(&self, layer: usize, fused: Fused, x: Matrix, norm: u64) -> Result<(), CudaError> {
        let (gpu, room) = (self.gpu, self.room);
        let stream = self.cut(room.stream);
        if self.base.gives_f32(fused) {
            return self.apply(layer, fused, x, stream);
        }
        let out = self.cut(room.normed);
        self.apply(layer, fused, x, out)?;
        ops::norm_factors(gpu, out, self.base.config.rms_norm_eps, room.rstd)?;
        ops::norm_add(gpu, out, norm, room.rstd, stream)
    }
}

impl crate::generate::Model for Generator {
    fn config(&self) -> &ModelConfig {
        &self.base.config
    }

    fn precision(&self) -> Precision {
        Precision::Bf16
    }

    fn page_shape(&self) -> PageShape {
        PageShape::elsewhere()
    }

    fn is_long(&self, n_tokens: usize) -> bool {
        self.base.ropes.is_long(n_tokens)
    }

    fn computes_on_pool(&self) -> bool {
        false
    }

    fn takes(&self, adapter: &Adapter) -> bool {
        !PackedLora::<f32>::new(adapter.layout()).needs_base()
    }

    fn scores_prompts(&self) -> bool {
        false
    }

    fn step(
        &mut self,
        pool: &Pool,
        step: &mut Step<'_>,
        last: &[Last],
    ) -> Result<Stepped<'_>, GenerateError> {
        let mut rows = Vec::with_capacity(step.tokens.len());
        for (sequence, span) in step.spans.iter().enumerate() {
            rows.extend(span.rows.clone().enumerate().map(|(i, row)| Row {
                token: step.tokens[row],
                sequence,
                position: span.cache.n_cached + i,
            }));
        }
        // Rows whose logits are wanted come first, so that they are copied as one.
        let mut order: Vec<usize> = (0..last.len()).collect();
        order.sort_by_key(|&i| last[i].draw.is_some());
        let n_logits = last.iter().filter(|last| last.draw.is_none()).count();
        let draws = order[n_logits..].iter().filter_map(|&i| last[i].draw);
        let pages = step.spans.iter();
        let plain = Plain {
            rows,
            pages: pages
                .map(|span| span.cache.pages.iter().map(|page| page.number()).collect())
                .collect(),
            adapters: step.adapters.clone(),
            last: order.iter().map(|&i| last[i].row).collect(),
            targets: Vec::new(),
            draws: draws.collect(),
        };
        let tables = self.prepare(pool, &plain)?;
        self.run_recorded(&tables)?;
        let tokens = self.drawn(&tables)?;
        let mut drawn = vec![None; last.len()];
        for (&i, token) in order[n_logits..].iter().zip(tokens) {
            drawn[i] = Some(token);
        }
        let logits = self.logits(n_logits)?;
        Ok(Stepped {
            logits,
            drawn,
            scores: Vec::new(),
        })
    }

    fn score(
        &mut self,
        pool: &Pool,
        tokens: &[u32],
        adapter: Option<&Adapter>,
    ) -> Result<Vec<f32>, GenerateError> {
        // Pages of its own, so that it runs whatever room sequences have left.
        let pages = Pages::new(&self.gpu, &self.base, tokens.len())?;
        let inputs = &tokens[..tokens.len().saturating_sub(1)];
        let mut logprobs = Vec::with_capacity(inputs.len());
        for (i, chunk) in inputs.chunks(SCORED_ROWS).enumerate() {
            let first = i * SCORED_ROWS;
            let rows = chunk.iter().enumerate().map(|(at, &token)| Row {
                token,
                sequence: 0,
                position: first + at,
            });
            let plain = Plain {
                rows: rows.collect(),
                pages: vec![(0..pages.n_pages).collect()],
                adapters: vec![adapter],
                last: (0..chunk.len()).collect(),
                targets: tokens[first + 1..first + 1 + chunk.len()].to_vec(),
                draws: Vec::new(),
            };
            let tables = self.prepare(pool, &plain)?;
            self.run(&tables, &pages)?;
            let room = self.room();
            let logits = room.logits.rows(0, chunk.len());
            let cap = self.base.config.final_logit_softcapping.unwrap_or(0.0);
            let vocab = self.base.config.vocab_size;
            ops::cross_entropy(
                &self.gpu,
                logits,
                tables.targets,
                cap,
                None,
                room.logprobs,
                vocab,
            )?;
            let mut of_chunk = vec![0.0f32; chunk.len()];
            download(&self.gpu, room.logprobs.0, &mut of_chunk)?;
            logprobs.extend(of_chunk);
        }
        Ok(logprobs)
    }
}

impl From<CudaError> for GenerateError {
    fn from(error: CudaError) -> Self {
        match error {
            CudaError::OutOfMemory { needed, .. } | CudaError::OutOfHostMemory { needed } => {
                GenerateError::OutOfMemory(OutOfMemory {
                    size_bytes: needed as usize,
                })
            }
            error => GenerateError::Gpu(error.to_string()),
        }
    }
}
