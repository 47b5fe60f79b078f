//! Owns a training's passes over the model on a GPU, backward: gradients of what an adapter trains alone, and no further down than
//! the lowest of it. The order of the arithmetic is that of `model::block_backward`.

use super::gpu::CudaError;
use super::matmul::{Product, Read};
use super::memory::Matrix;
use super::offload::Offload;
use super::ops::{self, QkNorm};
use super::passes::{Into, Pass};
use super::room::Gradients;
use crate::lora::Fused;
use crate::model::MemoryLevel;

impl Pass<'_> {
    /// The gradients of the adapter, after a forward and [`Self::losses`].
    pub fn backward(&self, into: &Into<'_>) -> Result<(), CudaError> {
        let width = self.base.config.hidden_size;
        let (d_stream, d_branch) = (self.cut(self.room.d_stream), self.cut(self.room.d_branch));
        ops::round_rows(self.gpu(), d_stream, d_branch.columns(0, width))?;
        let lowest = self.lowest.map_or(0, |(layer, _)| layer);
        for layer in (lowest..self.base.layers.len()).rev() {
            if let Some(offload) = self.offload {
                offload.before_reading(layer)?;
            }
            self.restore(layer)?;
            let lowest = self.lowest.filter(|(lowest, _)| *lowest == layer);
            self.block_backward(layer, lowest.map(|(_, fused)| fused), into)?;
            self.stream_read(layer)?;
        }
        // Those below the lowest layer were asked for too.
        self.offload.map_or(Ok(()), Offload::settle)
    }

    /// Computes again what the forward did not keep.
    fn restore(&self, layer: usize) -> Result<(), CudaError> {
        let keeps = self.room.keeps;
        if keeps.gate_up(layer, self.base.layers.len()) {
            return Ok(());
        }
        match keeps.level {
            MemoryLevel::KeepAll | MemoryLevel::DropGateUp => {
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
                self.cut(room.inner),
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
        let d_attended = self.cut(room.inner);
        ops::attention_backward(
            gpu,
            self.heads(layer),
            &self.tables,
            qkv,
            attended,
            saved.lse,
            d_attended,
            room.delta,
            room.kv_partial,
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
        let (d, d_stream) = (self.cut(self.room.inner), self.cut(self.room.d_stream));
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
        let b = linear.b.columns(0, r);
        self.gpu().multiply(Product {
            a: (dy.columns(0, linear.n), Read::AsIs),
            b: (b, Read::AsIs),
            c: None,
            d: dy.columns(linear.n, linear.n + r),
            bias: 0,
        })
    }

    /// `room.inner` becomes [dy | dy·s·B]·[W ; A].
    fn d_input(&self, layer: usize, fused: Fused, dy: Matrix) -> Result<(), CudaError> {
        let (linear, r) = (self.linear(layer, fused), self.rank(layer, fused));
        let (depth, extended) = (linear.n + r, self.extended(layer, fused)?);
        self.gpu().multiply(Product {
            a: (self.cut(dy).columns(0, depth), Read::AsIs),
            b: (extended.rows(0, depth).columns(0, linear.k), Read::AsIs),
            c: None,
            d: self.cut(self.room.inner).columns(0, linear.k),
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
