//! Owns a training's passes over the model on a GPU: forward, the loss of the labels, backward. The order of the arithmetic is that
//! of `model::decoder` and `model::block_backward`: the stream and its gradient are f32, what linears and attention read and
//! write is bf16.

use std::ops::Range;

use super::base::{Base, Linear, RANK_STEP, linear_sizes};
use super::gpu::{CudaError, Gpu};
use super::matmul::{Product, Read};
use super::memory::{Format, Matrix, Plan, clear};
use super::ops::{self, Heads, QkNorm, Rows};
use crate::config::{self, ModelConfig};
use crate::lora::{Fused, Layout, Slot};
use crate::model::MemoryLevel;

/// Rows whose logits exist at once.
const CHUNK_ROWS: usize = 1024;

/// The changes within a fused linear, with the ranks that each has there. They begin at multiples of four, as four numbers are
/// written at once.
pub(super) fn parts(
    layout: &Layout,
    layer: usize,
    fused: Fused,
) -> impl Iterator<Item = (&Slot, Range<usize>)> {
    let mut end: usize = 0;
    layout.fused(layer, fused).iter().map(move |slot| {
        let start = end.next_multiple_of(4);
        end = start + slot.r;
        (slot, start..end)
    })
}

/// The ranks of each fused linear of each layer, all parts together.
pub(super) fn ranks(layout: &Layout) -> Vec<[usize; 4]> {
    let of = |layer, fused| {
        let ranks: usize = parts(layout, layer, fused)
            .map(|(_, ranks)| ranks.end)
            .last()
            .unwrap_or(0);
        ranks.next_multiple_of(RANK_STEP)
    };
    (0..layout.n_layers)
        .map(|layer| Fused::ALL.map(|fused| of(layer, fused)))
        .collect()
}

/// Pieces of documents for the attention's kernels: where they lie and how many they are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tiles {
    pub forward: (u64, usize),
    pub backward_kv: (u64, usize),
    pub backward_q: (u64, usize),
}

/// What a pass is over, in the GPU's memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tables {
    /// Rows, with those that only fill up.
    pub n_rows: usize,
    pub tokens: u64,
    pub positions: u64,
    pub tiles: Tiles,
    pub n_labels: usize,
    pub label_rows: u64,
    pub labels: u64,
}

/// What a forward keeps of a block.
#[derive(Debug, Clone, Copy)]
struct Saved {
    input_rstd: u64,
    /// (T, (H+K)·C) before their norms, and the factors of those.
    qk: Option<(Matrix, u64)>,
    qkv: Matrix,
    /// (T, H·C + R); the last R are x·Aᵀ.
    attended: Matrix,
    lse: u64,
    /// Before the norm after a branch, with the factors.
    after_attention: Option<(Matrix, u64)>,
    middle: Matrix,
    middle_rstd: u64,
    /// (T, 2F + R)
    gate_up: Matrix,
    after_mlp: Option<(Matrix, u64)>,
    /// x·Aᵀ of those whose input is computed again.
    h_qkv: Matrix,
    h_gate_up: Matrix,
    h_down: Matrix,
}

/// The memory of a pass.
pub(super) struct Room {
    /// Rows there is room for.
    pub n_rows: usize,
    /// Labels there is room for.
    pub n_labels: usize,
    level: MemoryLevel,
    /// The stream into each block and out of the last, (T, D).
    streams: Vec<Matrix>,
    saved: Vec<Saved>,
    /// Cosine and sine of each rotation, (T, `rotary_dim`/2).
    angles: Vec<(u64, u64)>,
    /// (T, D + R): what the first linear of a branch reads.
    normed: Matrix,
    /// (T, F + R)
    inner: Matrix,
    /// (T, D + R): the gradient of what a branch gives.
    d_branch: Matrix,
    /// Gradient of what a linear reads, (T, widest).
    d_input: Matrix,
    /// (T, (H+2K)·C + R)
    d_qkv: Matrix,
    d_stream: Matrix,
    delta: u64,
    /// Rows that reach the head.
    last: Matrix,
    last_rstd: u64,
    d_last: Matrix,
    logits: Matrix,
    d_logits: Matrix,
    /// log p of the labels and whether they had the largest logit, (n) each.
    pub logprobs: u64,
    pub correct: u64,
}

impl Room {
    /// Divides memory for passes of up to `n_rows` rows with up to `n_labels` labels.
    pub fn new(
        plan: &mut Plan,
        base: &Base,
        ranks: &[[usize; 4]],
        n_rows: usize,
        n_labels: usize,
        level: MemoryLevel,
    ) -> Self {
        use Format::{Bf16, F32};
        let config = &base.config;
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        let (query, kv) = (config.query_size(), config.key_value_size());
        let qkv = query + 2 * kv;
        let most = |fused: Fused| ranks.iter().map(|r| r[fused as usize]).max().unwrap_or(0);
        let [r_qkv, r_o, r_gate_up, r_down] = Fused::ALL.map(most);
        let heads = config.num_attention_heads;
        let n_layers = config.num_hidden_layers;
        let streams = (0..=n_layers)
            .map(|_| plan.dense(F32, n_rows, width))
            .collect();
        let shared_gate_up = (level != MemoryLevel::KeepAll)
            .then(|| plan.matrix(Bf16, n_rows, 2 * inner + r_gate_up));
        let n_saved = match level {
            MemoryLevel::LayerInputs => 1,
            _ => n_layers,
        };
        let saved = (0..n_saved).map(|_| Saved {
            input_rstd: plan.words(n_rows),
            qk: (config.qk_norm != config::QkNorm::None).then(|| {
                let n_norms = QkNorm::of(config).map_or(0, |norm| norm.n_groups());
                (
                    plan.matrix(Bf16, n_rows, query + kv),
                    plan.words(n_rows * n_norms),
                )
            }),
            qkv: plan.matrix(Bf16, n_rows, qkv),
            attended: plan.matrix(Bf16, n_rows, query + r_o),
            lse: plan.words(heads * n_rows),
            after_attention: branch(plan, !base.gives_f32(Fused::O), n_rows, width),
            middle: plan.dense(F32, n_rows, width),
            middle_rstd: plan.words(n_rows),
            gate_up: shared_gate_up
                .unwrap_or_else(|| plan.matrix(Bf16, n_rows, 2 * inner + r_gate_up)),
            after_mlp: branch(plan, !base.gives_f32(Fused::Down), n_rows, width),
            h_qkv: plan.matrix(Bf16, n_rows, r_qkv),
            h_gate_up: plan.matrix(Bf16, n_rows, r_gate_up),
            h_down: plan.matrix(Bf16, n_rows, r_down),
        });
        let saved = saved.collect();
        let half = config.rotary_dim / 2;
        let angles = base.rotations.iter();
        let angles = angles.map(|_| (plan.words(n_rows * half), plan.words(n_rows * half)));
        let angles = angles.collect();
        let chunk = CHUNK_ROWS.min(n_labels.max(1));
        Self {
            n_rows,
            n_labels,
            level,
            streams,
            saved,
            angles,
            normed: plan.matrix(Bf16, n_rows, width + r_qkv.max(r_gate_up)),
            inner: plan.matrix(Bf16, n_rows, inner + r_down),
            d_branch: plan.matrix(Bf16, n_rows, width + r_o.max(r_down)),
            d_input: plan.matrix(Bf16, n_rows, inner.max(query).max(width)),
            d_qkv: plan.matrix(Bf16, n_rows, qkv + r_qkv),
            d_stream: plan.dense(F32, n_rows, width),
            delta: plan.words(heads * n_rows),
            last: plan.matrix(Bf16, n_labels, width),
            last_rstd: plan.words(n_labels),
            d_last: plan.dense(F32, n_labels, width),
            logits: plan.matrix(F32, chunk, config.vocab_size),
            d_logits: plan.matrix(Bf16, chunk, config.vocab_size),
            logprobs: plan.words(n_labels),
            correct: plan.words(n_labels),
        }
    }
}

/// What a branch gives before a norm after it, with the factors of that.
fn branch(plan: &mut Plan, has_norm: bool, n_rows: usize, width: usize) -> Option<(Matrix, u64)> {
    has_norm.then(|| (plan.matrix(Format::Bf16, n_rows, width), plan.words(n_rows)))
}

/// Gradients of the low-rank change of a fused linear, in f32: of all parts as one, those of B between the parts without meaning.
#[derive(Debug, Clone, Copy)]
pub(super) struct Gradients {
    /// (R, k)
    pub a: Matrix,
    /// (n, R)
    pub b: Matrix,
}

impl Gradients {
    /// For each fused linear of each layer.
    pub fn plan(plan: &mut Plan, config: &ModelConfig, ranks: &[[usize; 4]]) -> Vec<[Self; 4]> {
        let sizes = linear_sizes(config);
        ranks
            .iter()
            .map(|ranks| {
                [0, 1, 2, 3].map(|i| {
                    let (k, n) = sizes[i];
                    Self {
                        a: plan.dense(Format::F32, ranks[i], k),
                        b: plan.dense(Format::F32, n, ranks[i]),
                    }
                })
            })
            .collect()
    }
}

/// A pass of a training.
pub(super) struct Pass<'a> {
    pub base: &'a Base,
    pub room: &'a Room,
    pub tables: Tables,
    /// See [`ranks`].
    pub ranks: &'a [[usize; 4]],
    /// The lowest place that is trained.
    pub lowest: Option<(usize, Fused)>,
}

/// Where a backward puts what it finds.
pub(super) struct Into<'a> {
    pub gradients: &'a [[Gradients; 4]],
    /// Whether gradients are added to what is there.
    pub adds: bool,
    /// The gradient is that of −Σ log p times this.
    pub scale: f32,
    /// Two numbers of eight bytes: Σ log p in f64 and how many labels had the largest logit are added to them.
    pub sums: u64,
}

impl Pass<'_> {
    fn gpu(&self) -> &Gpu {
        &self.base.gpu
    }

    /// A matrix without the rows that this pass does not have.
    fn cut(&self, matrix: Matrix) -> Matrix {
        matrix.rows(0, self.tables.n_rows)
    }

    fn rank(&self, layer: usize, fused: Fused) -> usize {
        self.ranks[layer][fused as usize]
    }

    fn linear(&self, layer: usize, fused: Fused) -> Linear {
        self.base.layers[layer].linears[fused as usize]
    }

    fn saved(&self, layer: usize) -> &Saved {
        match self.room.level {
            MemoryLevel::LayerInputs => &self.room.saved[0],
            _ => &self.room.saved[layer],
        }
    }

    /// Runs every block; what leaves the last is in the last stream.
    pub fn forward(&self) -> Result<(), CudaError> {
        let (gpu, base, room) = (self.gpu(), self.base, self.room);
        let Tables {
            tokens,
            positions,
            n_rows,
            ..
        } = self.tables;
        let scale = base.config.embedding_scale;
        ops::embed(
            gpu,
            tokens,
            base.embed_tokens,
            scale,
            self.cut(room.streams[0]),
        )?;
        for (rotation, &angles) in base.rotations.iter().zip(&room.angles) {
            let half = base.config.rotary_dim / 2;
            ops::rope_angles(gpu, positions, *rotation, angles, n_rows, half)?;
        }
        for layer in 0..base.layers.len() {
            self.attention(layer)?;
            self.gate_up(layer)?;
            self.inner(layer, true)?;
            self.down(layer)?;
        }
        Ok(())
    }

    /// `out` becomes bf16 of the norm of a stream, or of the stream itself.
    fn norm(&self, x: Matrix, weight: u64, rstd: u64, out: Matrix) -> Result<(), CudaError> {
        let eps = self.base.config.rms_norm_eps;
        let width = self.base.config.hidden_size;
        ops::norm_forward(
            self.gpu(),
            self.cut(x),
            Rows::All,
            weight,
            eps,
            self.cut(out).columns(0, width),
            rstd,
        )
    }

    /// The last R columns of `x` become x·Aᵀ.
    fn low_rank(&self, layer: usize, fused: Fused, x: Matrix) -> Result<(), CudaError> {
        let (linear, r, x) = (
            self.linear(layer, fused),
            self.rank(layer, fused),
            self.cut(x),
        );
        if r == 0 {
            return Ok(());
        }
        let a = linear
            .extended
            .rows(linear.n, linear.n + r)
            .columns(0, linear.k);
        self.gpu().multiply(Product {
            a: (x.columns(0, linear.k), Read::AsIs),
            b: (a, Read::Transposed),
            c: None,
            d: x.columns(linear.k, linear.k + r),
            bias: 0,
        })
    }

    /// d = [x | x·Aᵀ]·[W | s·B]ᵀ + bias, plus `c`.
    fn apply(
        &self,
        layer: usize,
        fused: Fused,
        x: Matrix,
        c: Option<Matrix>,
        d: Matrix,
    ) -> Result<(), CudaError> {
        let (linear, r) = (self.linear(layer, fused), self.rank(layer, fused));
        let depth = linear.k + r;
        self.gpu().multiply(Product {
            a: (self.cut(x).columns(0, depth), Read::AsIs),
            b: (
                linear.extended.rows(0, linear.n).columns(0, depth),
                Read::Transposed,
            ),
            c: c.map(|c| self.cut(c)),
            d: self.cut(d).columns(0, linear.n),
            bias: linear.bias,
        })
    }

    /// Keeps x·Aᵀ of an input that other blocks overwrite.
    fn keep_low_rank(
        &self,
        layer: usize,
        fused: Fused,
        x: Matrix,
        to: Matrix,
    ) -> Result<(), CudaError> {
        let (k, r) = (self.linear(layer, fused).k, self.rank(layer, fused));
        ops::copy(
            self.gpu(),
            self.cut(x).columns(k, k + r),
            self.cut(to).columns(0, r),
        )
    }

    fn restore_low_rank(
        &self,
        layer: usize,
        fused: Fused,
        from: Matrix,
        x: Matrix,
    ) -> Result<(), CudaError> {
        let (k, r) = (self.linear(layer, fused).k, self.rank(layer, fused));
        ops::copy(
            self.gpu(),
            self.cut(from).columns(0, r),
            self.cut(x).columns(k, k + r),
        )
    }

    /// From the stream into a block to `saved.middle`.
    fn attention(&self, layer: usize) -> Result<(), CudaError> {
        let (gpu, base, room) = (self.gpu(), self.base, self.room);
        let (weights, saved, x) = (&base.layers[layer], self.saved(layer), room.streams[layer]);
        self.norm(x, weights.before_attention, saved.input_rstd, room.normed)?;
        self.low_rank(layer, Fused::Qkv, room.normed)?;
        self.keep_low_rank(layer, Fused::Qkv, room.normed, saved.h_qkv)?;
        self.apply(layer, Fused::Qkv, room.normed, None, saved.qkv)?;
        let qkv = self.cut(saved.qkv);
        if let (Some(norm), Some(weights), Some((raw, rstd))) =
            (QkNorm::of(&base.config), weights.qk_norm, saved.qk)
        {
            let eps = base.config.rms_norm_eps;
            ops::qk_norm_forward(gpu, norm, weights, eps, qkv, self.cut(raw), rstd)?;
        }
        self.rotate(layer, qkv, 1.0)?;
        ops::attention_forward(
            gpu,
            self.heads(layer),
            &self.tables,
            qkv,
            self.cut(saved.attended),
            saved.lse,
        )?;
        self.low_rank(layer, Fused::O, saved.attended)?;
        self.leave(
            layer,
            Fused::O,
            saved.attended,
            x,
            saved.after_attention,
            saved.middle,
        )
    }

    fn heads(&self, layer: usize) -> Heads {
        Heads::new(&self.base.config, layer)
    }

    fn rotate(&self, layer: usize, qkv: Matrix, direction: f32) -> Result<(), CudaError> {
        let Some(rotation) = self.base.rotation(layer) else {
            return Ok(());
        };
        let angles = self.room.angles[rotation];
        ops::rope_rotate(
            self.gpu(),
            &self.base.config,
            self.base.is_interleaved(),
            qkv,
            angles,
            direction,
        )
    }

    /// `to` becomes the stream `x` plus what the last linear of a branch makes of `input`, through the norm after it if there is
    /// one.
    fn leave(
        &self,
        layer: usize,
        fused: Fused,
        input: Matrix,
        x: Matrix,
        branch: Option<(Matrix, u64)>,
        to: Matrix,
    ) -> Result<(), CudaError> {
        let Some((out, rstd)) = branch else {
            return self.apply(layer, fused, input, Some(x), to);
        };
        self.apply(layer, fused, input, None, out)?;
        let weights = &self.base.layers[layer];
        let weight = match fused {
            Fused::O => weights.after_attention,
            _ => weights.after_mlp,
        };
        let (gpu, out) = (self.gpu(), self.cut(out));
        ops::norm_factors(gpu, out, self.base.config.rms_norm_eps, rstd)?;
        ops::copy_stream(gpu, self.cut(x), self.cut(to))?;
        ops::norm_add(gpu, out, weight, rstd, self.cut(to))
    }

    /// From `saved.middle` to gate and up.
    fn gate_up(&self, layer: usize) -> Result<(), CudaError> {
        let (room, saved) = (self.room, self.saved(layer));
        let weight = self.base.layers[layer].before_mlp;
        self.norm(saved.middle, weight, saved.middle_rstd, room.normed)?;
        self.low_rank(layer, Fused::GateUp, room.normed)?;
        self.keep_low_rank(layer, Fused::GateUp, room.normed, saved.h_gate_up)?;
        self.apply(layer, Fused::GateUp, room.normed, None, saved.gate_up)
    }

    /// What down reads; `is_first`: its x·Aᵀ is computed and kept.
    fn inner(&self, layer: usize, is_first: bool) -> Result<(), CudaError> {
        let (gpu, base, room) = (self.gpu(), self.base, self.room);
        let (saved, inner) = (self.saved(layer), base.config.intermediate_size);
        ops::glu_forward(
            gpu,
            self.cut(saved.gate_up),
            self.cut(room.inner),
            inner,
            base.activation(),
        )?;
        if is_first {
            self.low_rank(layer, Fused::Down, room.inner)?;
            self.keep_low_rank(layer, Fused::Down, room.inner, saved.h_down)?;
        }
        Ok(())
    }

    /// From `room.inner` to the stream out of a block.
    fn down(&self, layer: usize) -> Result<(), CudaError> {
        let (room, saved) = (self.room, self.saved(layer));
        let to = room.streams[layer + 1];
        self.leave(
            layer,
            Fused::Down,
            room.inner,
            saved.middle,
            saved.after_mlp,
            to,
        )
    }

    /// Scores the labels after a forward; without `into` nothing else.
    pub fn losses(&self, into: Option<&Into<'_>>) -> Result<(), CudaError> {
        let (gpu, base, room) = (self.gpu(), self.base, self.room);
        let Tables {
            n_labels,
            label_rows,
            labels,
            ..
        } = self.tables;
        let (width, vocab) = (base.config.hidden_size, base.config.vocab_size);
        let stream = self.cut(room.streams[base.layers.len()]);
        let last = self.last(n_labels, label_rows)?;
        let chunk = room.logits.rows.max(1);
        for first in (0..n_labels).step_by(chunk) {
            let Range { start, end } = first..n_labels.min(first + chunk);
            let logits = room.logits.rows(0, end - start);
            let d_logits = room.d_logits.rows(0, end - start);
            self.head(last.rows(start, end), logits)?;
            ops::cross_entropy(
                gpu,
                logits,
                labels + 4 * start as u64,
                base.config.final_logit_softcapping.unwrap_or(0.0),
                into.map(|into| (into.scale, d_logits)),
                (
                    room.logprobs + 4 * start as u64,
                    room.correct + 4 * start as u64,
                ),
                vocab,
            )?;
            if into.is_some() {
                gpu.multiply(Product {
                    a: (d_logits, Read::AsIs),
                    b: (base.head, Read::AsIs),
                    c: None,
                    d: room.d_last.rows(start, end),
                    bias: 0,
                })?;
            }
        }
        let Some(into) = into else {
            return Ok(());
        };
        ops::cross_entropy_sums(gpu, room.logprobs, room.correct, n_labels, into.sums)?;
        let d_stream = self.cut(room.d_stream);
        clear(gpu, d_stream.at, d_stream.rows * width * 4)?;
        ops::norm_backward_rows(
            gpu,
            room.d_last.rows(0, n_labels),
            stream,
            label_rows,
            base.norm,
            room.last_rstd,
            d_stream,
        )
    }

    /// The logits of all label rows after a forward, (n, V).
    pub fn all_logits(&self) -> Result<Vec<f32>, CudaError> {
        let (gpu, base, room) = (self.gpu(), self.base, self.room);
        let Tables {
            n_labels,
            label_rows,
            ..
        } = self.tables;
        let vocab = base.config.vocab_size;
        let last = self.last(n_labels, label_rows)?;
        let mut all = Vec::with_capacity(n_labels * vocab);
        for first in (0..n_labels).step_by(room.logits.rows.max(1)) {
            let end = n_labels.min(first + room.logits.rows);
            let logits = room.logits.rows(0, end - first);
            self.head(last.rows(first, end), logits)?;
            let mut rows = vec![0.0f32; logits.rows * logits.pitch];
            super::memory::download(gpu, logits.at, &mut rows)?;
            all.extend(
                rows.chunks_exact(logits.pitch)
                    .flat_map(|row| &row[..vocab])
                    .copied(),
            );
        }
        if let Some(cap) = base.config.final_logit_softcapping {
            all.iter_mut().for_each(|x| *x = cap * (*x / cap).tanh());
        }
        Ok(all)
    }

    /// The normed rows that reach the head.
    fn last(&self, n_labels: usize, label_rows: u64) -> Result<Matrix, CudaError> {
        let (base, room) = (self.base, self.room);
        let stream = self.cut(room.streams[base.layers.len()]);
        let last = room.last.rows(0, n_labels);
        let eps = base.config.rms_norm_eps;
        ops::norm_forward(
            self.gpu(),
            stream,
            Rows::Named(label_rows),
            base.norm,
            eps,
            last,
            room.last_rstd,
        )?;
        Ok(last)
    }

    fn head(&self, last: Matrix, logits: Matrix) -> Result<(), CudaError> {
        self.gpu().multiply(Product {
            a: (last, Read::AsIs),
            b: (self.base.head, Read::Transposed),
            c: None,
            d: logits,
            bias: 0,
        })
    }

    /// The gradients of the adapter, after a forward and [`Self::losses`].
    pub fn backward(&self, into: &Into<'_>) -> Result<(), CudaError> {
        let width = self.base.config.hidden_size;
        let (d_stream, d_branch) = (self.cut(self.room.d_stream), self.cut(self.room.d_branch));
        ops::round_rows(self.gpu(), d_stream, d_branch.columns(0, width))?;
        let lowest = self.lowest.map_or(0, |(layer, _)| layer);
        for layer in (lowest..self.base.layers.len()).rev() {
            self.restore(layer)?;
            let lowest = self.lowest.filter(|(lowest, _)| *lowest == layer);
            self.block_backward(layer, lowest.map(|(_, fused)| fused), into)?;
        }
        Ok(())
    }

    /// Computes again what the forward did not keep.
    fn restore(&self, layer: usize) -> Result<(), CudaError> {
        match self.room.level {
            MemoryLevel::KeepAll => Ok(()),
            MemoryLevel::DropGateUp => {
                let (room, saved) = (self.room, self.saved(layer));
                self.renorm_middle(layer)?;
                self.restore_low_rank(layer, Fused::GateUp, saved.h_gate_up, room.normed)?;
                self.apply(layer, Fused::GateUp, room.normed, None, saved.gate_up)
            }
            MemoryLevel::LayerInputs => {
                self.attention(layer)?;
                self.gate_up(layer)?;
                self.inner(layer, true)?;
                match self.saved(layer).after_mlp {
                    Some((out, rstd)) => {
                        self.apply(layer, Fused::Down, self.room.inner, None, out)?;
                        let eps = self.base.config.rms_norm_eps;
                        ops::norm_factors(self.gpu(), self.cut(out), eps, rstd)
                    }
                    None => Ok(()),
                }
            }
        }
    }

    fn renorm_middle(&self, layer: usize) -> Result<(), CudaError> {
        let (saved, weight) = (self.saved(layer), self.base.layers[layer].before_mlp);
        self.norm(saved.middle, weight, saved.middle_rstd, self.room.normed)
    }

    /// `room.d_stream` goes from the gradient of a block's output to that of its input, and `room.d_branch` with it, rounded.
    fn block_backward(
        &self,
        layer: usize,
        lowest: Option<Fused>,
        into: &Into<'_>,
    ) -> Result<(), CudaError> {
        let (gpu, base, room) = (self.gpu(), self.base, self.room);
        let (weights, saved) = (&base.layers[layer], self.saved(layer));
        let inner = base.config.intermediate_size;
        let gate_up = self.cut(saved.gate_up);

        self.enter(saved.after_mlp, weights.after_mlp)?;
        self.d_low_rank(layer, Fused::Down, room.d_branch)?;
        if lowest != Some(Fused::Down) {
            self.d_input(layer, Fused::Down, room.d_branch)?;
            ops::glu_backward(
                gpu,
                self.cut(room.d_input),
                gate_up,
                Some(self.cut(room.inner)),
                inner,
                base.activation(),
            )?;
        } else {
            ops::glu_forward(gpu, gate_up, self.cut(room.inner), inner, base.activation())?;
        }
        self.gradients(
            layer,
            Fused::Down,
            room.d_branch,
            room.inner,
            saved.h_down,
            into,
        )?;
        if lowest == Some(Fused::Down) {
            return Ok(());
        }

        self.renorm_middle(layer)?;
        self.d_low_rank(layer, Fused::GateUp, saved.gate_up)?;
        self.gradients(
            layer,
            Fused::GateUp,
            saved.gate_up,
            room.normed,
            saved.h_gate_up,
            into,
        )?;
        if lowest == Some(Fused::GateUp) {
            return Ok(());
        }
        self.d_input(layer, Fused::GateUp, saved.gate_up)?;
        self.leave_backward(saved.middle, weights.before_mlp, saved.middle_rstd)?;

        self.enter(saved.after_attention, weights.after_attention)?;
        self.d_low_rank(layer, Fused::O, room.d_branch)?;
        let (query, r) = (base.config.query_size(), self.rank(layer, Fused::O));
        let h = saved.attended.columns(query, query + r);
        self.gradients(layer, Fused::O, room.d_branch, saved.attended, h, into)?;
        if lowest == Some(Fused::O) {
            return Ok(());
        }
        self.d_input(layer, Fused::O, room.d_branch)?;
        let (qkv, attended, d_qkv) = (
            self.cut(saved.qkv),
            self.cut(saved.attended),
            self.cut(room.d_qkv),
        );
        let d_attended = self.cut(room.d_input);
        ops::attention_backward(
            gpu,
            self.heads(layer),
            &self.tables,
            qkv,
            attended,
            saved.lse,
            d_attended,
            room.delta,
            d_qkv,
        )?;
        self.rotate(layer, d_qkv, -1.0)?;
        if let (Some(norm), Some(weights), Some((raw, rstd))) =
            (QkNorm::of(&base.config), weights.qk_norm, saved.qk)
        {
            ops::qk_norm_backward(gpu, norm, weights, self.cut(raw), rstd, d_qkv)?;
        }

        let x = room.streams[layer];
        self.norm(x, weights.before_attention, saved.input_rstd, room.normed)?;
        self.d_low_rank(layer, Fused::Qkv, room.d_qkv)?;
        self.gradients(
            layer,
            Fused::Qkv,
            room.d_qkv,
            room.normed,
            saved.h_qkv,
            into,
        )?;
        if lowest == Some(Fused::Qkv) {
            return Ok(());
        }
        self.d_input(layer, Fused::Qkv, room.d_qkv)?;
        self.leave_backward(x, weights.before_attention, saved.input_rstd)
    }

    /// `room.d_branch`, the rounded gradient of the stream, becomes that of what the last linear of a branch gives.
    fn enter(&self, branch: Option<(Matrix, u64)>, weight: u64) -> Result<(), CudaError> {
        let Some((out, rstd)) = branch else {
            return Ok(());
        };
        let width = self.base.config.hidden_size;
        let d = self.cut(self.room.d_branch).columns(0, width);
        ops::norm_backward_in_place(self.gpu(), self.cut(out), weight, rstd, d)
    }

    /// Adds the gradient of what a branch read to that of the stream.
    fn leave_backward(&self, x: Matrix, weight: u64, rstd: u64) -> Result<(), CudaError> {
        let width = self.base.config.hidden_size;
        let (d, d_stream) = (self.cut(self.room.d_input), self.cut(self.room.d_stream));
        let rounded = self.cut(self.room.d_branch).columns(0, width);
        ops::norm_backward(
            self.gpu(),
            d.columns(0, width),
            self.cut(x),
            weight,
            rstd,
            d_stream,
            rounded,
        )
    }

    /// The last R columns of `dy` become dy·s·B.
    fn d_low_rank(&self, layer: usize, fused: Fused, dy: Matrix) -> Result<(), CudaError> {
        let (linear, r, dy) = (
            self.linear(layer, fused),
            self.rank(layer, fused),
            self.cut(dy),
        );
        if r == 0 {
            return Ok(());
        }
        let b = linear
            .extended
            .rows(0, linear.n)
            .columns(linear.k, linear.k + r);
        self.gpu().multiply(Product {
            a: (dy.columns(0, linear.n), Read::AsIs),
            b: (b, Read::AsIs),
            c: None,
            d: dy.columns(linear.n, linear.n + r),
            bias: 0,
        })
    }

    /// `room.d_input` becomes [dy | dy·s·B]·[W ; A].
    fn d_input(&self, layer: usize, fused: Fused, dy: Matrix) -> Result<(), CudaError> {
        let (linear, r) = (self.linear(layer, fused), self.rank(layer, fused));
        let depth = linear.n + r;
        self.gpu().multiply(Product {
            a: (self.cut(dy).columns(0, depth), Read::AsIs),
            b: (
                linear.extended.rows(0, depth).columns(0, linear.k),
                Read::AsIs,
            ),
            c: None,
            d: self.cut(self.room.d_input).columns(0, linear.k),
            bias: 0,
        })
    }

    /// dA = (dy·s·B)ᵀ·x and dB = dyᵀ·x·Aᵀ; the scale of the latter is the optimizer's to apply.
    fn gradients(
        &self,
        layer: usize,
        fused: Fused,
        dy: Matrix,
        x: Matrix,
        h: Matrix,
        into: &Into<'_>,
    ) -> Result<(), CudaError> {
        let (linear, r) = (self.linear(layer, fused), self.rank(layer, fused));
        if r == 0 {
            return Ok(());
        }
        let (dy, x, h) = (self.cut(dy), self.cut(x), self.cut(h));
        let Gradients { a, b } = into.gradients[layer][fused as usize];
        self.gpu().multiply(Product {
            a: (dy.columns(linear.n, linear.n + r), Read::Transposed),
            b: (x.columns(0, linear.k), Read::AsIs),
            c: into.adds.then_some(a),
            d: a,
            bias: 0,
        })?;
        self.gpu().multiply(Product {
            a: (dy.columns(0, linear.n), Read::Transposed),
            b: (h.columns(0, r), Read::AsIs),
            c: into.adds.then_some(b),
            d: b,
            bias: 0,
        })
    }
}
