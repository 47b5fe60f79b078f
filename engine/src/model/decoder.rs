//! The whole stack of blocks, forward, and the head.

use std::ops::Range;

use crate::cpu::buffer::{Buffer, OutOfMemory};
use crate::cpu::element::Element;
use crate::cpu::gemm::Weight;
use crate::cpu::pool::Pool;
use crate::lora::PackedLora;
use crate::model::block::{Activations, Block, Loras, Scratch};
use crate::nn::attention::{self, Heads, PackedKeyValues};
use crate::nn::cross_entropy::{self, ChunkScratch, Head, RowLosses};
use crate::nn::dropout::Dropout;
use crate::nn::rms_norm;
use crate::nn::rope::{Angles, Position};
use crate::weights::BaseModel;

/// What a training forward keeps for its backward; the rest is computed again, to the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum MemoryLevel {
    /// Everything that took a matrix product.
    #[default]
    KeepAll,
    /// Not gate and up, the widest: one more product for each block.
    DropGateUp,
    /// The stream into each block alone: each block runs its forward again.
    LayerInputs,
}

/// Whether a forward is followed by a backward.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    For(MemoryLevel),
    Nothing,
}

impl Keep {
    /// Whether each block has activations of its own.
    fn per_block(self) -> bool {
        matches!(
            self,
            Keep::For(MemoryLevel::KeepAll | MemoryLevel::DropGateUp)
        )
    }
}

/// Documents laid end to end, without padding.
#[derive(Default, Debug, Clone, PartialEq)]
pub(crate) struct Batch {
    pub tokens: Vec<u32>,
    /// The rows of each document; positions restart with each.
    pub documents: Vec<Range<usize>>,
    /// Tokens of each document, with those behind its rows that are not run.
    pub lengths: Vec<usize>,
    /// The number of each document in what was asked to be run.
    pub members: Vec<usize>,
    pub dropout: Option<Dropout>,
    /// Rows whose next token is a label, ascending.
    pub label_rows: Vec<usize>,
    /// The labels, one for each of `label_rows`.
    pub labels: Vec<u32>,
}

/// The memory of a forward and backward in `E`; it grows to the largest batch and stays.
#[derive(Default)]
pub(crate) struct Decoder<E> {
    /// The stream into each block and out of the last, (T, D) each; two take turns where nothing is kept.
    pub(super) streams: Vec<Buffer>,
    /// One for each block, or one for all.
    pub(super) saved: Vec<Activations<E>>,
    /// Gate and up of the block at hand, where blocks do not keep their own.
    pub(super) gate_up: Buffer<E>,
    pub(super) scratch: Scratch<E>,
    /// One for each rotation of the model.
    pub(super) angles: Vec<Angles>,
    pub(super) packed: PackedKeyValues,
    /// Rows that reach the head: the stream, its normed form and the factor of the norm.
    pub(super) last: Buffer,
    pub(super) last_normed: Buffer<E>,
    pub(super) last_rstd: Buffer,
    pub(super) chunk: ChunkScratch<E>,
    pub(super) gradients: super::backward::Gradients<E>,
}

impl<E: Element> Decoder<E> {
    /// Runs `batch` through every block; the stream that leaves is [`Self::hidden`].
    /// Errors: `OutOfMemory`.
    pub fn forward(
        &mut self,
        pool: &Pool,
        base: &BaseModel,
        loras: &Loras<'_, E>,
        batch: &Batch,
        keep: Keep,
    ) -> Result<(), OutOfMemory> {
        let mut packed = std::mem::take(&mut self.packed);
        let documents = batch.documents.iter().zip(&batch.lengths);
        let positions = documents.flat_map(|(document, &n_tokens)| {
            (0..document.len()).map(move |at| Position { at, n_tokens })
        });
        let result = self.forward_with(
            pool,
            base,
            loras,
            &batch.tokens,
            positions,
            keep,
            batch.dropout.as_ref(),
            |layer, qkv, out, lse| {
                let heads = Heads::new(base.config(), layer);
                attention::forward(pool, heads, &batch.documents, qkv, &mut packed, out, lse)
            },
        );
        self.packed = packed;
        result
    }

    /// As [`Self::forward`], with rows at any positions and the attention of the caller, who is told the block's number.
    /// Errors: `OutOfMemory`.
    #[allow(clippy::too_many_arguments)]
    pub fn forward_with(
        &mut self,
        pool: &Pool,
        base: &BaseModel,
        loras: &Loras<'_, E>,
        tokens: &[u32],
        positions: impl Iterator<Item = Position> + Clone,
        keep: Keep,
        dropout: Option<&Dropout>,
        mut attend: impl FnMut(usize, &[E], &mut [E], &mut [f32]) -> Result<(), OutOfMemory>,
    ) -> Result<(), OutOfMemory> {
        self.ensure(base, tokens.len(), keep)?;
        base.ropes.angles(positions, &mut self.angles);
        embed(pool, base, loras, tokens, &mut self.streams[0]);
        for (index, layer) in base.layers.iter().enumerate() {
            let (from, to) = if keep == Keep::Nothing {
                (index % 2, (index + 1) % 2)
            } else {
                (index, index + 1)
            };
            let saved = &mut self.saved[if keep.per_block() { index } else { 0 }];
            let [x, out] = self
                .streams
                .get_disjoint_mut([from, to])
                .expect("two streams are two — a bug above");
            let block = Block {
                pool,
                config: base.config(),
                layer,
                index,
                loras,
                dropout,
            };
            let scratch = &mut self.scratch;
            let angles = base.ropes.of_layer(index).map(|i| &self.angles[i]);
            block.attention(x, angles, saved, scratch, |qkv, out, lse| {
                attend(index, qkv, out, lse)
            })?;
            let lends_gate_up = keep == Keep::For(MemoryLevel::DropGateUp);
            if lends_gate_up {
                std::mem::swap(&mut saved.gate_up, &mut self.gate_up);
            }
            let done = block
                .gate_up(saved, scratch)
                .and_then(|()| block.down(out, saved, scratch));
            if lends_gate_up {
                std::mem::swap(&mut saved.gate_up, &mut self.gate_up);
            }
            done?;
        }
        Ok(())
    }

    /// The stream out of the last block, (T, D), after a forward that kept `keep`.
    pub fn hidden(&self, base: &BaseModel, keep: Keep) -> &[f32] {
        let n = base.layers.len();
        &self.streams[if keep == Keep::Nothing { n % 2 } else { n }]
    }

    /// log p of `targets` by `rows` of what a forward that kept nothing has just run.
    /// Errors: `OutOfMemory`.
    pub fn losses_of(
        &mut self,
        pool: &Pool,
        base: &BaseModel,
        head: &Weight,
        rows: &[usize],
        targets: &[u32],
    ) -> Result<RowLosses, OutOfMemory> {
        self.losses_after(pool, base, head, rows, targets, Keep::Nothing)
    }

    /// log p of the labels of the batch that a forward keeping `level` has just run; a backward may follow.
    /// Errors: `OutOfMemory`.
    pub fn label_losses(
        &mut self,
        pool: &Pool,
        base: &BaseModel,
        head: &Weight,
        batch: &Batch,
        level: MemoryLevel,
    ) -> Result<RowLosses, OutOfMemory> {
        let (rows, labels) = (&batch.label_rows, &batch.labels);
        self.losses_after(pool, base, head, rows, labels, Keep::For(level))
    }

    fn losses_after(
        &mut self,
        pool: &Pool,
        base: &BaseModel,
        head: &Weight,
        rows: &[usize],
        targets: &[u32],
        keep: Keep,
    ) -> Result<RowLosses, OutOfMemory> {
        self.gather(pool, base, rows, keep)?;
        let (x, chunk) = (&self.last_normed, &mut self.chunk);
        let head = Head::new(head, base.config());
        cross_entropy::losses(pool, head, x, targets, chunk)
    }

    /// The logits of some rows of what a forward that kept nothing has just run with `loras`, (rows, V); the caller may
    /// change them.
    /// Errors: `OutOfMemory`.
    pub fn logits_mut(
        &mut self,
        pool: &Pool,
        base: &BaseModel,
        loras: &Loras<'_, E>,
        rows: &[usize],
    ) -> Result<&mut [f32], OutOfMemory> {
        self.gather(pool, base, rows, Keep::Nothing)?;
        let head_of = |row| lora_of(loras, row).map_or(base.head(), |lora| lora.head(base));
        let heads = rows.iter().map(|&row| head_of(row));
        let cap = base.config().final_logit_softcapping;
        cross_entropy::logits(pool, heads, cap, &self.last_normed, &mut self.chunk)
    }

    /// The states after the last norm of the `n` rows that a forward that kept nothing has just run, (T, D).
    /// Errors: `OutOfMemory`.
    pub fn normed(&mut self, pool: &Pool, base: &BaseModel, n: usize) -> Result<&[E], OutOfMemory> {
        let rows: Vec<usize> = (0..n).collect();
        self.gather(pool, base, &rows, Keep::Nothing)?;
        Ok(&self.last_normed[..n * base.config().hidden_size])
    }

    /// Copies `rows` of the last stream and applies the last norm to them.
    pub(super) fn gather(
        &mut self,
        pool: &Pool,
        base: &BaseModel,
        rows: &[usize],
        keep: Keep,
    ) -> Result<(), OutOfMemory> {
        let width = base.config().hidden_size;
        let mut last = std::mem::take(&mut self.last);
        last.ensure(rows.len() * width)?;
        let hidden = self.hidden(base, keep);
        for (to, &row) in last.chunks_exact_mut(width).zip(rows) {
            to.copy_from_slice(&hidden[row * width..(row + 1) * width]);
        }
        self.last = last;
        self.last_normed.ensure(rows.len() * width)?;
        self.last_rstd.ensure(rows.len())?;
        let eps = base.config().rms_norm_eps;
        rms_norm::forward(
            pool,
            &self.last,
            &base.norm,
            eps,
            &mut self.last_normed,
            &mut self.last_rstd,
        );
        Ok(())
    }

    fn ensure(&mut self, base: &BaseModel, rows: usize, keep: Keep) -> Result<(), OutOfMemory> {
        let n_layers = base.layers.len();
        let n_streams = if keep == Keep::Nothing {
            2
        } else {
            n_layers + 1
        };
        let n_saved = if keep.per_block() { n_layers } else { 1 };
        if self.streams.len() < n_streams {
            self.streams.resize_with(n_streams, Buffer::default);
        }
        if self.saved.len() < n_saved {
            self.saved.resize_with(n_saved, Activations::default);
        }
        let config = base.config();
        self.streams[..n_streams]
            .iter_mut()
            .try_for_each(|stream| stream.ensure(rows * config.hidden_size))?;
        self.saved[..n_saved]
            .iter_mut()
            .try_for_each(|saved| saved.ensure(config, rows))?;
        self.scratch.ensure(config, rows)
    }
}

fn embed<E: Element>(
    pool: &Pool,
    base: &BaseModel,
    loras: &Loras<'_, E>,
    tokens: &[u32],
    x: &mut [f32],
) {
    let (width, scale) = (base.config().hidden_size, base.config().embedding_scale);
    pool.for_rows(tokens.len(), (x, width), |rows, x| {
        for (row, x) in rows.zip(x.chunks_exact_mut(width)) {
            let token = tokens[row] as usize;
            match lora_of(loras, row).and_then(PackedLora::embed_tokens) {
                Some(own) => x.copy_from_slice(&own[token * width..(token + 1) * width]),
                None => base.embed_tokens.copy_row(token, x),
            }
            if scale != 1.0 {
                x.iter_mut().for_each(|x| *x *= scale);
            }
        }
    });
}

/// The adapter that changes a row.
fn lora_of<'a, E>(loras: &Loras<'a, E>, row: usize) -> Option<&'a PackedLora<E>> {
    let lora = loras.iter().find(|(rows, _)| rows.contains(&row));
    lora.map(|(_, lora)| *lora)
}
