//! Owns a run's passes over the model in one precision: the adapter as the kernels read it, and the memory of the passes.

use std::ops::Range;

use half::bf16;

use super::run::Weigh;
use crate::cpu::buffer::OutOfMemory;
use crate::cpu::element::{Element, Precision};
use crate::cpu::pool::Pool;
use crate::lora::{Layout, PackedLora};
use crate::model::{Batch, Decoder, Keep, MemoryLevel, Trained};
use crate::nn::cross_entropy::{RowLosses, Scale};
use crate::weights::BaseModel;

/// The passes in the precision that the run was made with.
pub(super) enum Passes {
    Fp32(PassesIn<f32>),
    Bf16(PassesIn<bf16>),
}

/// The passes in `E`.
pub(super) struct PassesIn<E> {
    packed: PackedLora<E>,
    decoder: Decoder<E>,
}

/// How much each label counts in a gradient.
pub(super) enum Factors<'a> {
    Same(f32),
    /// By what the pass itself says of its labels.
    ByScore(&'a mut Weigh<'a>),
}

/// What every pass is over.
#[derive(Clone, Copy)]
pub(super) struct On<'a> {
    pub pool: &'a Pool,
    pub base: &'a BaseModel,
}

impl Passes {
    pub fn new(precision: Precision, layout: &Layout) -> Self {
        match precision {
            Precision::Fp32 => Passes::Fp32(PassesIn::new(layout)),
            Precision::Bf16 => Passes::Bf16(PassesIn::new(layout)),
        }
    }

    /// Takes in the adapter's values, for forward and backward.
    /// Errors: `OutOfMemory`, the first time only.
    pub fn pack(&mut self, On { pool, base }: On<'_>, values: &[f32]) -> Result<(), OutOfMemory> {
        match self {
            Passes::Fp32(passes) => passes.packed.pack_for_training(pool, base, values),
            Passes::Bf16(passes) => passes.packed.pack_for_training(pool, base, values),
        }
    }

    /// Forward and backward: adds the gradients of −Σ log p·factor to `grads`.
    /// Errors: `OutOfMemory`.
    pub fn accumulate(
        &mut self,
        on: On<'_>,
        layout: &Layout,
        level: MemoryLevel,
        batch: &Batch,
        factors: Factors<'_>,
        grads: &mut [f32],
    ) -> Result<RowLosses, OutOfMemory> {
        match self {
            Passes::Fp32(passes) => passes.accumulate(on, layout, level, batch, factors, grads),
            Passes::Bf16(passes) => passes.accumulate(on, layout, level, batch, factors, grads),
        }
    }

    /// log p of the labels of `batch`.
    /// Errors: `OutOfMemory`.
    pub fn score(&mut self, on: On<'_>, batch: &Batch) -> Result<RowLosses, OutOfMemory> {
        match self {
            Passes::Fp32(passes) => passes.score(on, batch),
            Passes::Bf16(passes) => passes.score(on, batch),
        }
    }

    /// The logits after each token of `batch`, (T, V).
    /// Errors: `OutOfMemory`.
    pub fn logits(&mut self, on: On<'_>, batch: &Batch) -> Result<Vec<f32>, OutOfMemory> {
        match self {
            Passes::Fp32(passes) => passes.logits(on, batch),
            Passes::Bf16(passes) => passes.logits(on, batch),
        }
    }
}

impl<E: Element> PassesIn<E> {
    fn new(layout: &Layout) -> Self {
        Self {
            packed: PackedLora::new(layout),
            decoder: Decoder::default(),
        }
    }

    fn accumulate(
        &mut self,
        On { pool, base }: On<'_>,
        layout: &Layout,
        level: MemoryLevel,
        batch: &Batch,
        factors: Factors<'_>,
        grads: &mut [f32],
    ) -> Result<RowLosses, OutOfMemory> {
        let loras: [(Range<usize>, &PackedLora<E>); 1] = [(0..batch.tokens.len(), &self.packed)];
        self.decoder
            .forward(pool, base, &loras, batch, Keep::For(level))?;
        let each;
        let scale = match factors {
            Factors::Same(factor) => Scale::Same(factor),
            Factors::ByScore(weigh) => {
                let head = self.packed.head(base);
                let losses = self.decoder.label_losses(pool, base, head, batch, level)?;
                each = weigh(batch, &losses.logprobs);
                Scale::Each(&each)
            }
        };
        let mut trained = Trained {
            layout,
            packed: &self.packed,
            grads,
        };
        self.decoder
            .backward(pool, base, batch, scale, level, &mut trained)
    }

    fn score(&mut self, on: On<'_>, batch: &Batch) -> Result<RowLosses, OutOfMemory> {
        self.run(on, batch)?;
        let (rows, labels) = (&batch.label_rows, &batch.labels);
        let head = self.packed.head(on.base);
        self.decoder.losses_of(on.pool, on.base, head, rows, labels)
    }

    fn logits(&mut self, on: On<'_>, batch: &Batch) -> Result<Vec<f32>, OutOfMemory> {
        self.run(on, batch)?;
        let rows: Vec<usize> = (0..batch.tokens.len()).collect();
        let loras = [(0..rows.len(), &self.packed)];
        let logits = self.decoder.logits_mut(on.pool, on.base, &loras, &rows)?;
        Ok(logits.to_vec())
    }

    fn run(&mut self, on: On<'_>, batch: &Batch) -> Result<(), OutOfMemory> {
        let loras: [(Range<usize>, &PackedLora<E>); 1] = [(0..batch.tokens.len(), &self.packed)];
        self.decoder
            .forward(on.pool, on.base, &loras, batch, Keep::Nothing)
    }
}
