//! Owns a training's passes over the model on a GPU, forward, and the loss of the labels. The order of the arithmetic is that of
//! `model::decoder`: the stream is f32, what linears and attention read and write is bf16.

use std::ops::Range;

use super::base::{Base, Linear};
use super::gpu::{CudaError, Gpu};
use super::matmul::{Product, Read};
use super::memory::{Matrix, clear, download};
use super::offload::Offload;
use super::ops::{self, Heads, QkNorm, Rows};
use super::room::{Gradients, Room, Saved, Tables};
use crate::lora::Fused;
use crate::model::MemoryLevel;

/// A pass of a training.
pub(super) struct Pass<'a> {
    pub gpu: &'a Gpu,
    pub base: &'a Base,
    pub room: &'a Room,
    /// Where streams wait in host memory; none for a forward alone.
    pub offload: Option<&'a Offload>,
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
    pub(super) fn gpu(&self) -> &Gpu {
        self.gpu
    }

    /// A matrix without the rows that this pass does not have.
    pub(super) fn cut(&self, matrix: Matrix) -> Matrix {
        matrix.rows(0, self.tables.n_rows)
    }

    pub(super) fn rank(&self, layer: usize, fused: Fused) -> usize {
        self.ranks[layer][fused as usize]
    }

    pub(super) fn linear(&self, layer: usize, fused: Fused) -> Linear {
        self.base.layers[layer].linears[fused as usize]
    }

    pub(super) fn saved(&self, layer: usize) -> &Saved {
        match self.room.keeps.level {
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
        self.stream_written(0)?;
        for layer in 0..base.layers.len() {
            self.attention(layer)?;
            self.gate_up(layer)?;
            self.inner(layer, true)?;
            if let Some(offload) = self.offload {
                offload.before_writing(layer + 1)?;
            }
            self.down(layer)?;
            self.stream_written(layer + 1)?;
        }
        Ok(())
    }

    fn stream_written(&self, i: usize) -> Result<(), CudaError> {
        match self.offload {
            Some(offload) => offload.was_written(i, self.cut(self.room.streams[i])),
            None => Ok(()),
        }
    }

    /// A stream is not needed any more in this backward.
    pub(super) fn stream_read(&self, i: usize) -> Result<(), CudaError> {
        match self.offload {
            Some(offload) => offload.was_read(i, self.cut(self.room.streams[i])),
            None => Ok(()),
        }
    }

    /// `out` becomes bf16 of the norm of a stream, or of the stream itself.
    pub(super) fn norm(
        &self,
        x: Matrix,
        weight: u64,
        rstd: u64,
        out: Matrix,
    ) -> Result<(), CudaError> {
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
    pub(super) fn low_rank(&self, layer: usize, fused: Fused, x: Matrix) -> Result<(), CudaError> {
        let (linear, r, x) = (
            self.linear(layer, fused),
            self.rank(layer, fused),
            self.cut(x),
        );
        if r == 0 {
            return Ok(());
        }
        let a = linear.a.rows(0, r);
        self.gpu().multiply(Product {
            a: (x.columns(0, linear.k), Read::AsIs),
            b: (a, Read::Transposed),
            c: None,
            d: x.columns(linear.k, linear.k + r),
            bias: 0,
        })
    }

    /// [W | s·B] above A: where a linear is quantised, unpacked now.
    pub(super) fn extended(&self, layer: usize, fused: Fused) -> Result<Matrix, CudaError> {
        let (linear, r) = (self.linear(layer, fused), self.rank(layer, fused));
        let Some(codes) = linear.codes else {
            return Ok(linear.extended);
        };
        let gpu = self.gpu();
        for part in &self.base.codes[codes] {
            part.unpack(gpu, linear.extended)?;
        }
        let Linear { n, k, .. } = linear;
        let beside = linear.extended.rows(0, n).columns(k, k + r);
        let below = linear.extended.rows(n, n + r).columns(0, k);
        ops::copy(gpu, linear.b.columns(0, r), beside)?;
        ops::copy(gpu, linear.a.rows(0, r), below)?;
        Ok(linear.extended)
    }

    /// d = [x | x·Aᵀ]·[W | s·B]ᵀ + bias, plus `c`.
    pub(super) fn apply(
        &self,
        layer: usize,
        fused: Fused,
        x: Matrix,
        c: Option<Matrix>,
        d: Matrix,
    ) -> Result<(), CudaError> {
        let (linear, r) = (self.linear(layer, fused), self.rank(layer, fused));
        let (depth, extended) = (linear.k + r, self.extended(layer, fused)?);
        self.gpu().multiply(Product {
            a: (self.cut(x).columns(0, depth), Read::AsIs),
            b: (
                extended.rows(0, linear.n).columns(0, depth),
                Read::Transposed,
            ),
            c: c.map(|c| self.cut(c)),
            d: self.cut(d).columns(0, linear.n),
            bias: linear.bias,
        })
    }

    /// Keeps x·Aᵀ of an input that other blocks overwrite.
    pub(super) fn keep_low_rank(
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

    pub(super) fn restore_low_rank(
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
    pub(super) fn attention(&self, layer: usize) -> Result<(), CudaError> {
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

    pub(super) fn heads(&self, layer: usize) -> Heads {
        Heads::new(&self.base.config, layer)
    }

    pub(super) fn rotate(
        &self,
        layer: usize,
        qkv: Matrix,
        direction: f32,
    ) -> Result<(), CudaError> {
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
    pub(super) fn leave(
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
    pub(super) fn gate_up(&self, layer: usize) -> Result<(), CudaError> {
        let (room, saved) = (self.room, self.saved(layer));
        let weight = self.base.layers[layer].before_mlp;
        self.norm(saved.middle, weight, saved.middle_rstd, room.normed)?;
        self.low_rank(layer, Fused::GateUp, room.normed)?;
        self.keep_low_rank(layer, Fused::GateUp, room.normed, saved.h_gate_up)?;
        self.apply(layer, Fused::GateUp, room.normed, None, saved.gate_up)
    }

    /// What down reads; `is_first`: its x·Aᵀ is computed and kept.
    pub(super) fn inner(&self, layer: usize, is_first: bool) -> Result<(), CudaError> {
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
    pub(super) fn down(&self, layer: usize) -> Result<(), CudaError> {
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
        )?;
        self.stream_read(base.layers.len())
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
            download(gpu, logits.at, &mut rows)?;
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
    pub(super) fn last(&self, n_labels: usize, label_rows: u64) -> Result<Matrix, CudaError> {
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

    pub(super) fn head(&self, last: Matrix, logits: Matrix) -> Result<(), CudaError> {
        self.gpu().multiply(Product {
            a: (last, Read::AsIs),
            b: (self.base.head, Read::Transposed),
            c: None,
            d: logits,
            bias: 0,
        })
    }
}
