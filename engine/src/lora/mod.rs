//! Owns low-rank adapters: which linears they change, where each value lies, how they begin, and PEFT's file format. Knows
//! no optimizer. y = W·x + s·B·A·x, s = lora_alpha / r. Source: Hu et al. 2021 (arXiv:2106.09685).

mod adapter_config;
mod config;
mod dora;
mod error;
mod init;
mod layout;
mod merge;
mod own;
mod packed;
mod peft;
mod slots;
mod svd;
mod targets;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use half::bf16;

use crate::config::ModelConfig;
use crate::cpu::buffer::OutOfMemory;
use crate::cpu::element::Precision;
use crate::cpu::pool::Pool;
use crate::weights::BaseModel;
pub use config::{Bias, Init, LoraConfig, TargetModules};
pub use error::AdapterError;
pub use layout::Module;
pub(crate) use layout::{Fused, Layout};
pub(crate) use merge::Change;
pub(crate) use own::Own;
use packed::Copies;
pub(crate) use packed::{FusedLora, Generated, PackedLora};
pub(crate) use peft::{named, serialize};
pub(crate) use slots::{Kind, Role, Saved, Slot, Tensor};

/// An adapter without its values: all that the memory of a training on it depends on.
#[derive(Clone)]
pub struct AdapterShape {
    config: LoraConfig,
    layout: Arc<Layout>,
}

impl AdapterShape {
    /// That of a fresh adapter for a model of this shape.
    /// Errors: what the configuration can have wrong.
    pub fn new(model: &ModelConfig, config: &LoraConfig) -> Result<Self, AdapterError> {
        Ok(Self {
            config: config.clone(),
            layout: Arc::new(init::layout(model, config)?),
        })
    }

    /// The adapter's configuration.
    pub fn config(&self) -> &LoraConfig {
        &self.config
    }

    /// The number of values, with those that are not trained.
    pub fn n_values(&self) -> u64 {
        self.layout.n_values() as u64
    }

    pub(crate) fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }
}

/// The values of an adapter, in f32. They never change.
/// Invariant: `values` is as long as `layout` says.
pub struct Adapter {
    /// No other adapter of this process ever has it.
    number: u64,
    config: LoraConfig,
    layout: Arc<Layout>,
    values: Vec<f32>,
    /// The forms that generation multiplies with, each made on first use.
    copies: Copies,
}

impl Clone for Adapter {
    fn clone(&self) -> Self {
        Self::from_parts(
            self.config.clone(),
            self.layout.clone(),
            self.values.clone(),
        )
    }
}

impl Adapter {
    /// The adapter's configuration.
    pub fn config(&self) -> &LoraConfig {
        &self.config
    }

    /// The adapter without its values.
    pub fn shape(&self) -> AdapterShape {
        AdapterShape {
            config: self.config.clone(),
            layout: Arc::clone(&self.layout),
        }
    }

    /// The same adapter, to be trained on with another dropout.
    /// Errors: `BadDropout`, `PissaWithDropout`.
    pub fn with_lora_dropout(mut self, lora_dropout: f32) -> Result<Self, AdapterError> {
        self.config.lora_dropout = lora_dropout;
        self.config.check()?;
        Ok(self)
    }

    /// The number of trained values.
    pub fn n_parameters(&self) -> u64 {
        let trained = self.layout.trained();
        trained.map(|tensor| tensor.place.len() as u64).sum()
    }

    /// What the adapter takes of memory, with the form that generation in `precision` multiplies with, whether that was made already or
    /// not. Bytes.
    pub fn size_bytes(&self, precision: Precision) -> u64 {
        let values = size_of::<f32>() * self.values.len();
        let packed = match precision {
            Precision::Fp32 => PackedLora::<f32>::new(&self.layout).forward_bytes(),
            Precision::Bf16 => PackedLora::<bf16>::new(&self.layout).forward_bytes(),
        };
        (values + packed) as u64
    }

    /// Makes the form that generation in `precision` multiplies with now, on the calling thread alone, so that the first step with the
    /// adapter need not. One that needs the base for it (DoRA, biases, modules trained whole) is left to that step.
    /// Errors: `OutOfMemory`.
    pub fn prepare(&self, precision: Precision) -> Result<(), OutOfMemory> {
        match precision {
            Precision::Fp32 => self.prepare_in::<f32>(),
            Precision::Bf16 => self.prepare_in::<bf16>(),
        }
    }

    fn prepare_in<E: Generated>(&self) -> Result<(), OutOfMemory> {
        let mut packed = PackedLora::<E>::new(&self.layout);
        if !packed.needs_base() {
            packed.pack_low_rank(&Pool::new(1), &self.values)?;
            // Where a step was faster, its copy is the same.
            let _ = E::of(&self.copies).set(packed);
        }
        Ok(())
    }

    /// A (r, in) and B (out, r) of a linear, as they are trained; `None` if it is not changed.
    pub fn matrices(&self, layer: usize, module: Module) -> Option<(&[f32], &[f32])> {
        let slot =
            self.layout.slots().iter().find(|slot| {
                (slot.layer, slot.module, slot.role) == (layer, module, Role::Trained)
            })?;
        Some((&self.values[slot.a.clone()], &self.values[slot.b.clone()]))
    }

    /// The plain adapter on the untouched base that computes the same: itself, but for PiSSA, whose B·A − B₀·A₀ becomes
    /// [B, −B₀]·[A; A₀] of twice the rank.
    pub fn to_plain(&self) -> Self {
        if self.config.init_lora_weights != Init::Pissa {
            return self.clone();
        }
        let layout = self.layout.folded();
        let mut values = vec![0.0; layout.n_values()];
        for to in layout.slots() {
            let parts = self.layout.slots().iter();
            let parts = parts.filter(|from| (from.layer, from.module) == (to.layer, to.module));
            for (i, from) in parts.enumerate() {
                let a = &mut values[to.a.clone()][i * from.a.len()..][..from.a.len()];
                a.copy_from_slice(&self.values[from.a.clone()]);
                let rows = values[to.b.clone()].chunks_exact_mut(to.r);
                for (to, from_row) in rows.zip(self.values[from.b.clone()].chunks_exact(from.r)) {
                    to[i * from.r..][..from.r].copy_from_slice(from_row);
                }
            }
        }
        let others = |layout: &Layout| {
            let tensors = layout.trained();
            let others = tensors.filter(|t| !matches!(t.kind, Kind::A | Kind::B));
            others.map(|t| t.place.clone()).collect::<Vec<_>>()
        };
        for (to, from) in others(&layout).into_iter().zip(others(&self.layout)) {
            values[to].copy_from_slice(&self.values[from]);
        }
        Self::from_parts(self.config.of_twice_the_rank(), Arc::new(layout), values)
    }

    pub(crate) fn from_parts(config: LoraConfig, layout: Arc<Layout>, values: Vec<f32>) -> Self {
        assert_eq!(
            values.len(),
            layout.n_values(),
            "an adapter without all its values — a bug in its maker"
        );
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self {
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            config,
            layout,
            values,
            copies: Copies::default(),
        }
    }

    /// Stands for the values: no other adapter of this process ever has it.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    pub(crate) fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    pub(crate) fn values(&self) -> &[f32] {
        &self.values
    }

    /// The form that generation multiplies with.
    /// Errors: `OutOfMemory`, where it was not made yet.
    pub(crate) fn packed<E: Generated>(
        &self,
        pool: &Pool,
        base: &BaseModel,
    ) -> Result<&PackedLora<E>, OutOfMemory> {
        let copy = E::of(&self.copies);
        if let Some(packed) = copy.get() {
            return Ok(packed);
        }
        let mut packed = PackedLora::new(&self.layout);
        packed.pack_for_forward(pool, base, &self.values)?;
        Ok(copy.get_or_init(|| packed))
    }
}

#[cfg(test)]
mod tests;
