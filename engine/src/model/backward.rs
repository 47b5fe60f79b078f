//! The whole stack, backward: gradients of the adapters alone, and no further down than the lowest of them.

use std::ops::ControlFlow;

use crate::buffer::{Buffer, OutOfMemory};
use crate::lora::{Fused, Layout, PackedLora};
use crate::model::block::{Activations, Scratch};
use crate::model::decoder::{Batch, Decoder, Keep};
use crate::nn::attention::{self, Heads, PackedKeys};
use crate::nn::cross_entropy::{self, RowLosses};
use crate::nn::linear::Backward;
use crate::nn::rope::{self, Angles, Turn};
use crate::nn::{rms_norm, swiglu};
use crate::pool::Pool;
use crate::weights::BaseModel;

/// Gradients of activations; every block uses the same memory.
#[derive(Default)]
pub(crate) struct Gradients {
    /// Of the stream, (T, D).
    stream: Buffer,
    /// Of what a linear reads, (T, widest input).
    input: Buffer,
    /// Of q, k and v, (T, (H+2K)·C).
    qkv: Buffer,
    /// Of x·Aᵀ, (T, R).
    low_rank: Buffer,
    attention: attention::BackwardScratch,
    /// Of the rows that reach the head, (rows, D).
    last: Buffer,
}

/// The adapter being trained.
pub(crate) struct Trained<'a> {
    pub layout: &'a Layout,
    pub packed: &'a PackedLora,
    pub values: &'a [f32],
    /// Gradients are added to these.
    pub grads: &'a mut [f32],
}

impl Decoder {
    /// Scores the labels of the batch that a forward keeping all has just run, and adds the adapter's gradients of
    /// −Σ log p·`scale`.
    /// Errors: `OutOfMemory`.
    pub fn backward(
        &mut self,
        pool: &Pool,
        base: &BaseModel,
        batch: &Batch,
        scale: f32,
        trained: &mut Trained<'_>,
    ) -> Result<RowLosses, OutOfMemory> {
        self.gather(pool, base, &batch.label_rows, Keep::All)?;
        let config = base.config();
        let (rows, width) = (batch.tokens.len(), config.hidden_size);
        let g = &mut self.gradients;
        g.last.ensure(batch.labels.len() * width)?;
        let (x, labels, logits) = (&self.last_normed, &batch.labels, &mut self.logits);
        let losses = cross_entropy::losses_and_gradient(
            pool,
            base.head(),
            x,
            labels,
            scale,
            logits,
            &mut g.last,
        )?;
        g.stream.ensure(rows * width)?;
        g.stream.fill(0.0);
        // The normed rows have done their work: their memory takes the gradient of the stream at those rows.
        let at_rows = &mut self.last_normed;
        at_rows.fill(0.0);
        rms_norm::backward(
            pool,
            &g.last,
            &self.last,
            &base.norm,
            &self.last_rstd,
            at_rows,
        );
        for (from, &row) in at_rows.chunks_exact(width).zip(&batch.label_rows) {
            g.stream[row * width..(row + 1) * width].copy_from_slice(from);
        }
        g.qkv.ensure(rows * Heads::new(config).qkv_size())?;
        g.input
            .ensure(rows * config.intermediate_size.max(config.query_size()).max(width))?;
        let (lowest_layer, lowest) = trained.layout.lowest();
        for index in (lowest_layer..base.layers.len()).rev() {
            let lowest = if index == lowest_layer {
                Some(lowest)
            } else {
                None
            };
            let mut block = BlockBackward {
                pool,
                base,
                index,
                lowest,
                batch,
                trained,
                saved: &mut self.saved[index],
                scratch: &mut self.scratch,
                angles: &self.angles,
                keys: &mut self.keys,
                g: &mut self.gradients,
            };
            block.run(&self.streams[index])?;
        }
        Ok(losses)
    }
}

/// One block, backward: `g.stream` goes from the gradient of its output to that of its input.
struct BlockBackward<'a, 'b> {
    pool: &'a Pool,
    base: &'a BaseModel,
    index: usize,
    /// The lowest adapter, if it is in this block: below it nothing is needed.
    lowest: Option<Fused>,
    batch: &'a Batch,
    trained: &'a mut Trained<'b>,
    saved: &'a mut Activations,
    scratch: &'a mut Scratch,
    angles: &'a Angles,
    keys: &'a mut PackedKeys,
    g: &'a mut Gradients,
}

/// Whether there is anything to do further down.
type Done = ControlFlow<()>;

impl BlockBackward<'_, '_> {
    /// `x` is the stream that entered the block in the forward, (T, D).
    fn run(&mut self, x: &[f32]) -> Result<(), OutOfMemory> {
        if self.feed_forward()?.is_continue() {
            let _ = self.attention(x)?;
        }
        Ok(())
    }

    fn feed_forward(&mut self) -> Result<Done, OutOfMemory> {
        let (pool, layer) = (self.pool, &self.base.layers[self.index]);
        let inner = self.base.config().intermediate_size;
        let weight = &layer.post_attention_layernorm;
        swiglu::forward(pool, &self.saved.gate_up, &mut self.scratch.inner, inner);
        let (low_rank, g) = (&self.saved.low_rank, &mut *self.g);
        let mut down = linear(self.trained, self.index, Fused::Down, &mut g.low_rank);
        down.adapter(
            pool,
            &self.scratch.inner,
            &low_rank[Fused::Down as usize],
            &g.stream,
            layer.down.weight.columns(),
        )?;
        if self.lowest == Some(Fused::Down) {
            return Ok(Done::Break(()));
        }
        down.input(pool, &layer.down, &g.stream, &mut g.input);
        swiglu::backward(pool, &g.input, &mut self.saved.gate_up, inner);

        let (middle, rstd) = (&self.saved.middle, &self.saved.middle_rstd);
        rms_norm::recompute(pool, middle, weight, rstd, &mut self.scratch.normed);
        let (h, d_gate_up) = (&low_rank[Fused::GateUp as usize], &self.saved.gate_up);
        let mut gate_up = linear(self.trained, self.index, Fused::GateUp, &mut g.low_rank);
        gate_up.adapter(pool, &self.scratch.normed, h, d_gate_up, 2 * inner)?;
        if self.lowest == Some(Fused::GateUp) {
            return Ok(Done::Break(()));
        }
        gate_up.input(pool, &layer.gate_up, d_gate_up, &mut g.input);
        rms_norm::backward(pool, &g.input, middle, weight, rstd, &mut g.stream);
        Ok(Done::Continue(()))
    }

    fn attention(&mut self, x: &[f32]) -> Result<Done, OutOfMemory> {
        let (pool, layer) = (self.pool, &self.base.layers[self.index]);
        let (low_rank, g) = (&self.saved.low_rank, &mut *self.g);
        let mut o = linear(self.trained, self.index, Fused::O, &mut g.low_rank);
        let width = self.base.config().hidden_size;
        o.adapter(
            pool,
            &self.saved.attended,
            &low_rank[Fused::O as usize],
            &g.stream,
            width,
        )?;
        if self.lowest == Some(Fused::O) {
            return Ok(Done::Break(()));
        }
        o.input(pool, &layer.o, &g.stream, &mut g.input);

        let heads = Heads::new(self.base.config());
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
            self.keys,
            &mut g.attention,
            &mut g.qkv,
        )?;
        rope::rotate(
            pool,
            self.angles,
            heads.n_heads + heads.n_kv_heads,
            &mut g.qkv,
            heads.qkv_size(),
            Turn::Back,
        );

        let (weight, rstd) = (&layer.input_layernorm, &self.saved.input_rstd);
        rms_norm::recompute(pool, x, weight, rstd, &mut self.scratch.normed);
        let mut qkv = linear(self.trained, self.index, Fused::Qkv, &mut g.low_rank);
        qkv.adapter(
            pool,
            &self.scratch.normed,
            &low_rank[Fused::Qkv as usize],
            &g.qkv,
            heads.qkv_size(),
        )?;
        if self.lowest == Some(Fused::Qkv) {
            return Ok(Done::Break(()));
        }
        qkv.input(pool, &layer.qkv, &g.qkv, &mut g.input);
        rms_norm::backward(pool, &g.input, x, weight, rstd, &mut g.stream);
        Ok(Done::Continue(()))
    }
}

fn linear<'a>(
    trained: &'a mut Trained<'_>,
    index: usize,
    fused: Fused,
    dh: &'a mut Buffer,
) -> Backward<'a> {
    Backward {
        lora: trained.packed.fused(index, fused),
        values: trained.values,
        grads: trained.grads,
        dh,
    }
}
