//! One decoder block, backward: through its branches and their norms, with the gradients of the adapters on its linears.

use std::ops::ControlFlow;

use crate::cpu::buffer::{Buffer, OutOfMemory};
use crate::cpu::element::Element;
use crate::cpu::pool::Pool;
use crate::lora::Fused;
use crate::model::backward::{Gradients, Trained};
use crate::model::block::{Activations, Block, Branch, Scratch};
use crate::model::decoder::{Batch, MemoryLevel};
use crate::model::experts::Mixture;
use crate::nn::attention::{self, Heads};
use crate::nn::linear::{self, Backward};
use crate::nn::rope::{self, Angles, Turn};
use crate::nn::{glu, qk_norm, rms_norm, rounding};
use crate::weights::BaseModel;

/// One block, backward: `g.stream` goes from the gradient of its output to that of its input.
pub(super) struct BlockBackward<'a, 'b, E> {
    pub pool: &'a Pool,
    pub base: &'a BaseModel,
    pub index: usize,
    /// The lowest adapter, if it is in this block: below it nothing is needed.
    pub lowest: Option<Fused>,
    pub batch: &'a Batch,
    pub trained: &'a mut Trained<'b, E>,
    pub saved: &'a mut Activations<E>,
    pub scratch: &'a mut Scratch<E>,
    /// `None`: positions turn nothing here.
    pub angles: Option<&'a Angles>,
    pub g: &'a mut Gradients<E>,
}

/// Whether there is anything to do further down.
type Done = ControlFlow<()>;

impl<E: Element> BlockBackward<'_, '_, E> {
    /// Computes again what the forward did not keep, and in any case what down reads, `scratch.inner`.
    /// Errors: `OutOfMemory`.
    pub fn restore(
        &mut self,
        x: &[f32],
        level: MemoryLevel,
        packed: &mut attention::PackedKeyValues,
    ) -> Result<(), OutOfMemory> {
        let loras = [(0..self.batch.tokens.len(), self.trained.packed)];
        let block = Block {
            pool: self.pool,
            config: self.base.config(),
            layer: &self.base.layers[self.index],
            index: self.index,
            loras: &loras,
            dropout: self.batch.dropout.as_ref(),
        };
        let heads = Heads::new(block.config, self.index);
        let (pool, documents) = (self.pool, &self.batch.documents);
        if level == MemoryLevel::LayerInputs {
            block.attention(x, self.angles, self.saved, self.scratch, |qkv, out, lse| {
                attention::forward(pool, heads, documents, qkv, packed, out, lse)
            })?;
        }
        if level != MemoryLevel::KeepAll {
            block.gate_up(self.saved, self.scratch)?;
        }
        block.inner(&self.saved.gate_up, self.scratch)?;
        if level == MemoryLevel::LayerInputs {
            block.restore_down(self.saved, self.scratch)?;
        }
        Ok(())
    }

    /// `x` is the stream that entered the block in the forward, (T, D).
    /// Errors: `OutOfMemory`.
    pub fn run(&mut self, x: &[f32]) -> Result<(), OutOfMemory> {
        if self.feed_forward()?.is_continue() {
            let _ = self.attention(x)?;
        }
        Ok(())
    }

    /// `g.rounded` becomes the gradient of what the last linear of a branch gives.
    fn enter_branch(
        &mut self,
        norm_after: Option<&[f32]>,
        branch: impl Fn(&Activations<E>) -> &Branch<E>,
    ) {
        let (pool, width, g) = (self.pool, self.base.config().hidden_size, &mut *self.g);
        rounding::round(pool, width, &g.stream, &mut g.rounded);
        if let Some(weight) = norm_after {
            let Branch { out, rstd } = branch(self.saved);
            rms_norm::backward_in_place(pool, out, weight, rstd, &mut g.rounded);
        }
    }

    fn feed_forward(&mut self) -> Result<Done, OutOfMemory> {
        let layer = &self.base.layers[self.index];
        self.enter_branch(layer.after_mlp.as_deref(), |saved| &saved.after_mlp);
        let done = match Mixture::of(self.pool, self.base.config(), layer) {
            Some(mixture) => self.experts(mixture)?,
            None => self.dense()?,
        };
        if done.is_continue() {
            let width = self.base.config().hidden_size;
            let (norm, d) = (layer.before_mlp.as_deref(), &self.g.input);
            let (middle, rstd) = (&self.saved.middle, &self.saved.middle_rstd);
            leave_branch(self.pool, norm, width, d, middle, rstd, &mut self.g.stream);
        }
        Ok(done)
    }

    /// From `g.rounded` to `g.input`.
    fn experts(&mut self, mixture: Mixture<'_>) -> Result<Done, OutOfMemory> {
        let (saved, scratch, g) = (&mut *self.saved, &mut *self.scratch, &mut *self.g);
        g.input.ensure(g.rounded.len())?;
        mixture.backward(
            &g.rounded,
            &saved.routing,
            &mut saved.gate_up,
            &scratch.inner,
            &mut scratch.experts,
            &mut g.input,
        )?;
        Ok(Done::Continue(()))
    }

    /// From `g.rounded` to `g.input`.
    fn dense(&mut self) -> Result<Done, OutOfMemory> {
        let (pool, layer) = (self.pool, &self.base.layers[self.index]);
        let inner = self.base.config().intermediate_size;
        let (rows, width) = (self.batch.tokens.len(), self.base.config().hidden_size);
        let (linear_down, linear_gate_up) =
            (layer.linear(Fused::Down), layer.linear(Fused::GateUp));
        let g = &mut *self.g;
        let room = &mut self.scratch.linear;
        let (batch, dh) = (self.batch, &mut g.low_rank);
        let mut down = linear(self.trained, self.index, Fused::Down, batch, dh, room);
        let h = &self.saved.low_rank[Fused::Down as usize];
        down.adapter(pool, linear_down, &self.scratch.inner, h, &g.rounded)?;
        if self.lowest == Some(Fused::Down) {
            return Ok(Done::Break(()));
        }
        g.input.ensure(rows * inner)?;
        down.input(pool, linear_down, &g.rounded, &mut g.input)?;
        let act = self.base.config().hidden_act;
        glu::backward(pool, act, &g.input, &mut self.saved.gate_up, inner);

        let (middle, rstd) = (&self.saved.middle, &self.saved.middle_rstd);
        let norm = layer.before_mlp.as_deref();
        renorm(pool, norm, width, middle, rstd, &mut self.scratch.normed);
        let (h, d_gate_up) = (
            &self.saved.low_rank[Fused::GateUp as usize],
            &self.saved.gate_up,
        );
        let room = &mut self.scratch.linear;
        let dh = &mut g.low_rank;
        let mut gate_up = linear(self.trained, self.index, Fused::GateUp, batch, dh, room);
        gate_up.adapter(pool, linear_gate_up, &self.scratch.normed, h, d_gate_up)?;
        if self.lowest == Some(Fused::GateUp) {
            return Ok(Done::Break(()));
        }
        g.input.ensure(rows * width)?;
        gate_up.input(pool, linear_gate_up, d_gate_up, &mut g.input)?;
        Ok(Done::Continue(()))
    }

    fn attention(&mut self, x: &[f32]) -> Result<Done, OutOfMemory> {
        let (pool, layer) = (self.pool, &self.base.layers[self.index]);
        let config = self.base.config();
        let (rows, width) = (self.batch.tokens.len(), config.hidden_size);
        self.enter_branch(layer.after_attention.as_deref(), |saved| {
            &saved.after_attention
        });
        let (low_rank, g) = (&self.saved.low_rank, &mut *self.g);
        let room = &mut self.scratch.linear;
        let (batch, dh) = (self.batch, &mut g.low_rank);
        let mut o = linear(self.trained, self.index, Fused::O, batch, dh, room);
        let h = &low_rank[Fused::O as usize];
        o.adapter(pool, &layer.o, &self.saved.attended, h, &g.rounded)?;
        if self.lowest == Some(Fused::O) {
            return Ok(Done::Break(()));
        }
        g.input.ensure(rows * config.query_size())?;
        o.input(pool, &layer.o, &g.rounded, &mut g.input)?;

        let heads = Heads::new(config, self.index);
        let saved = attention::Saved {
            qkv: &self.saved.qkv,
            attended: &self.saved.attended,
            lse: &self.saved.lse,
        };
        let documents = &self.batch.documents;
        attention::backward(
            pool,
            heads,
            documents,
            saved,
            &g.input,
            &mut g.attention,
            &mut g.qkv,
        )?;
        let (n_rotated, qkv_size) = (heads.n_heads + heads.n_kv_heads, heads.qkv_size());
        if let Some(angles) = self.angles {
            rope::rotate(pool, angles, n_rotated, &mut g.qkv, qkv_size, Turn::Back);
        }
        if let Some(weights) = &layer.qk_norm {
            let (raw, rstd) = (&self.saved.qk, &self.saved.qk_rstd);
            qk_norm::backward(pool, weights, raw, rstd, (&mut g.qkv, qkv_size));
        }

        let (norm, rstd) = (layer.before_attention.as_deref(), &self.saved.input_rstd);
        renorm(pool, norm, width, x, rstd, &mut self.scratch.normed);
        let room = &mut self.scratch.linear;
        let dh = &mut g.low_rank;
        let mut qkv = linear(self.trained, self.index, Fused::Qkv, batch, dh, room);
        let h = &low_rank[Fused::Qkv as usize];
        qkv.adapter(pool, &layer.qkv, &self.scratch.normed, h, &g.qkv)?;
        if self.lowest == Some(Fused::Qkv) {
            return Ok(Done::Break(()));
        }
        g.input.ensure(rows * width)?;
        qkv.input(pool, &layer.qkv, &g.qkv, &mut g.input)?;
        leave_branch(pool, norm, width, &g.input, x, rstd, &mut g.stream);
        Ok(Done::Continue(()))
    }
}

fn linear<'a, E: Element>(
    trained: &'a mut Trained<'_, E>,
    index: usize,
    fused: Fused,
    batch: &'a Batch,
    dh: &'a mut Buffer<E>,
    scratch: &'a mut linear::Scratch<E>,
) -> Backward<'a, E> {
    let dropout = batch.dropout.as_ref();
    Backward {
        lora: trained.packed.fused(index, fused),
        mask: dropout.map(|dropout| dropout.at(index, fused as usize)),
        grads: trained.grads,
        dh,
        scratch,
    }
}

/// What the first linear of a branch read of the stream `x`, again.
fn renorm<E: Element>(
    pool: &Pool,
    norm: Option<&[f32]>,
    width: usize,
    x: &[f32],
    rstd: &[f32],
    to: &mut [E],
) {
    match norm {
        Some(weight) => rms_norm::recompute(pool, x, weight, rstd, to),
        None => rounding::round(pool, width, x, to),
    }
}

/// Adds the gradient `d` of what a branch's first linear read to that of the stream.
fn leave_branch<E: Element>(
    pool: &Pool,
    norm: Option<&[f32]>,
    width: usize,
    d: &[E],
    x: &[f32],
    rstd: &[f32],
    stream: &mut [f32],
) {
    match norm {
        Some(weight) => rms_norm::backward(pool, d, x, weight, rstd, stream),
        None => rounding::add(pool, width, d, stream),
    }
}
