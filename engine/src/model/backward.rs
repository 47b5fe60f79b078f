//! The whole stack, backward: gradients of what an adapter trains alone, and no further down than the lowest of it.

use crate::cpu::buffer::{Buffer, OutOfMemory};
use crate::cpu::element::Element;
use crate::cpu::pool::Pool;
use crate::lora::{Layout, PackedLora, Saved};
use crate::model::block_backward::BlockBackward;
use crate::model::decoder::{Batch, Decoder, Keep, MemoryLevel};
use crate::nn::attention::{self, Heads};
use crate::nn::cross_entropy::{self, Head, RowLosses, Scale};
use crate::nn::rms_norm;
use crate::weights::BaseModel;

/// Gradients of activations; every block uses the same memory.
#[derive(Default)]
pub(crate) struct Gradients<E> {
    /// Of the stream, (T, D).
    pub stream: Buffer,
    /// The same, rounded to what a linear reads.
    pub rounded: Buffer<E>,
    /// Of what a linear reads, (T, widest input).
    pub input: Buffer<E>,
    /// Of q, k and v, (T, (H+2K)·C).
    pub qkv: Buffer<E>,
    /// Of x·Aᵀ, (T, R).
    pub low_rank: Buffer<E>,
    pub attention: attention::BackwardScratch,
    /// Of the rows that reach the head, after and before the last norm, (rows, D).
    last_normed: Buffer,
    last: Buffer,
}

/// The adapter being trained.
pub(crate) struct Trained<'a, E> {
    pub layout: &'a Layout,
    pub packed: &'a PackedLora<E>,
    /// Gradients are added to these.
    pub grads: &'a mut [f32],
}

impl<E: Element> Decoder<E> {
    /// Scores the labels of the batch that a forward keeping `level` has just run, and adds the adapter's gradients of
    /// −Σ log p·`scale`.
    /// Errors: `OutOfMemory`.
    pub fn backward(
        &mut self,
        pool: &Pool,
        base: &BaseModel,
        batch: &Batch,
        scale: Scale<'_>,
        level: MemoryLevel,
        trained: &mut Trained<'_, E>,
    ) -> Result<RowLosses, OutOfMemory> {
        self.gather(pool, base, &batch.label_rows, Keep::For(level))?;
        let config = base.config();
        let (rows, width) = (batch.tokens.len(), config.hidden_size);
        let g = &mut self.gradients;
        g.last_normed.ensure(batch.labels.len() * width)?;
        let d_head = trained.layout.saved(Saved::LmHead);
        let into = cross_entropy::Into {
            dx: &mut g.last_normed,
            d_head: d_head.map(|place| &mut trained.grads[place]),
        };
        let losses = cross_entropy::losses_and_gradient(
            pool,
            Head::new(trained.packed.head(base), config),
            &self.last_normed,
            &batch.labels,
            scale,
            &mut self.chunk,
            into,
        )?;
        g.last.ensure(batch.labels.len() * width)?;
        g.last.fill(0.0);
        rms_norm::backward(
            pool,
            &g.last_normed,
            &self.last,
            &base.norm,
            &self.last_rstd,
            &mut g.last,
        );
        g.stream.ensure(rows * width)?;
        g.stream.fill(0.0);
        for (from, &row) in g.last.chunks_exact(width).zip(&batch.label_rows) {
            g.stream[row * width..(row + 1) * width].copy_from_slice(from);
        }
        g.rounded.ensure(rows * width)?;
        g.qkv.ensure(rows * Heads::new(config, 0).qkv_size())?;
        let lowest = trained.layout.lowest();
        let lowest_layer = lowest.map_or(0, |(layer, _)| layer);
        for index in (lowest_layer..base.layers.len()).rev() {
            let saved = &mut self.saved[if level == MemoryLevel::LayerInputs {
                0
            } else {
                index
            }];
            if level == MemoryLevel::DropGateUp {
                std::mem::swap(&mut saved.gate_up, &mut self.gate_up);
            }
            let mut block = BlockBackward {
                pool,
                base,
                index,
                lowest: lowest
                    .filter(|(layer, _)| *layer == index)
                    .map(|(_, at)| at),
                batch,
                trained,
                saved,
                scratch: &mut self.scratch,
                angles: base.ropes.of_layer(index).map(|i| &self.angles[i]),
                g: &mut self.gradients,
            };
            let done = block
                .restore(&self.streams[index], level, &mut self.packed)
                .and_then(|()| block.run(&self.streams[index]));
            if level == MemoryLevel::DropGateUp {
                std::mem::swap(&mut saved.gate_up, &mut self.gate_up);
            }
            done?;
        }
        if let Some(place) = trained.layout.saved(Saved::EmbedTokens) {
            let (d_embed, stream) = (&mut trained.grads[place], &self.gradients.stream);
            for (&token, from) in batch.tokens.iter().zip(stream.chunks_exact(width)) {
                let to = &mut d_embed[token as usize * width..][..width];
                let pairs = to.iter_mut().zip(from);
                pairs.for_each(|(to, from)| *to += from * config.embedding_scale);
            }
        }
        Ok(losses)
    }
}
