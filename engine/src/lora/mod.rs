//! Owns low-rank adapters: which linears they change, where each value lies, and PEFT's file format. Knows no optimizer.
//! y = W·x + (lora_alpha / r)·B·A·x. Source: Hu et al. 2021 (arXiv:2106.09685).

mod layout;
mod packed;
mod peft;

use std::sync::{Arc, OnceLock};

use crate::config::ModelConfig;
use crate::cpu::pool::Pool;
use crate::rng::{Purpose, Stream};
pub use layout::Module;
pub(crate) use layout::{Fused, Layout};
pub(crate) use packed::{FusedLora, PackedLora};
pub use peft::AdapterError;
pub(crate) use peft::{names, serialize};

/// What an adapter changes, in PEFT's names.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraConfig {
    /// The rank.
    pub r: usize,
    /// The change is scaled by `lora_alpha / r`.
    pub lora_alpha: f32,
    /// The linears that are changed: any of q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj.
    pub target_modules: Vec<String>,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self::all_linear(16, 32.0)
    }
}

impl LoraConfig {
    /// All seven linears of every block.
    pub fn all_linear(r: usize, lora_alpha: f32) -> Self {
        let target_modules = Module::ALL
            .iter()
            .map(|module| module.name().to_owned())
            .collect();
        Self {
            r,
            lora_alpha,
            target_modules,
        }
    }

    pub(crate) fn scale(&self) -> f32 {
        self.lora_alpha / self.r as f32
    }
}

/// The values of an adapter, in f32.
/// Invariant: `values` is as long as `layout` says.
pub struct Adapter {
    config: LoraConfig,
    layout: Arc<Layout>,
    values: Vec<f32>,
    /// The form that generation multiplies with, made on first use.
    packed: OnceLock<PackedLora<f32>>,
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
    /// A fresh adapter: A ~ U(−1/√in, 1/√in), B = 0, as PEFT begins; a function of the seed alone.
    /// Errors: `UnknownModule`, `BadRank`, `NoTargets`.
    pub fn init(model: &ModelConfig, config: &LoraConfig, seed: u64) -> Result<Self, AdapterError> {
        let layout = Layout::new(model, config)?;
        let mut values = vec![0.0; layout.n_values()];
        for (lane, slot) in layout.slots().iter().enumerate() {
            let stream = Stream::new(seed, Purpose::AdapterInit, lane as u64);
            let bound = 1.0 / (slot.n_in as f32).sqrt();
            for (i, a) in values[slot.a.clone()].iter_mut().enumerate() {
                *a = (2.0 * stream.uniform(i as u64) - 1.0) * bound;
            }
        }
        Ok(Self::from_parts(config.clone(), Arc::new(layout), values))
    }

    /// The adapter's configuration.
    pub fn config(&self) -> &LoraConfig {
        &self.config
    }

    /// The number of trained values.
    pub fn n_parameters(&self) -> u64 {
        self.values.len() as u64
    }

    /// A (r, in) and B (out, r) of a linear; `None` if it is not changed.
    pub fn matrices(&self, layer: usize, module: Module) -> Option<(&[f32], &[f32])> {
        let slot = self
            .layout
            .slots()
            .iter()
            .find(|slot| slot.layer == layer && slot.module == module)?;
        Some((&self.values[slot.a.clone()], &self.values[slot.b.clone()]))
    }

    pub(crate) fn from_parts(config: LoraConfig, layout: Arc<Layout>, values: Vec<f32>) -> Self {
        assert_eq!(
            values.len(),
            layout.n_values(),
            "an adapter without all its values — a bug in its maker"
        );
        Self {
            config,
            layout,
            values,
            packed: OnceLock::new(),
        }
    }

    pub(crate) fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    pub(crate) fn values(&self) -> &[f32] {
        &self.values
    }

    pub(crate) fn packed(&self, pool: &Pool) -> &PackedLora<f32> {
        self.packed.get_or_init(|| {
            let mut packed = PackedLora::new(&self.layout);
            packed
                .pack_for_forward(pool, &self.values)
                .expect("memory for a second copy of an adapter");
            packed
        })
    }
}

#[cfg(test)]
mod tests;
