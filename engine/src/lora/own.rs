//! Owns what an adapter has instead of a linear's: the gains of DoRA and trained biases.

use std::ops::Range;

use crate::cpu::pool::Pool;
use crate::lora::dora::{Change, row_norms};
use crate::lora::layout::{Fused, Layout};
use crate::weights::Linear;

/// For one fused linear of N columns: y = gain ⊙ (W + s·B·A)·x + bias.
pub(crate) struct Own {
    /// N
    n_out: usize,
    /// Magnitude over norm, and 1 where nothing is decomposed, (N); `None` is 1 everywhere.
    pub gain: Option<Vec<f32>>,
    /// (N); the base's where it is not trained, `None` if there is none.
    pub bias: Option<Vec<f32>>,
    pub magnitudes: Vec<Magnitude>,
    /// Columns and place of each trained bias.
    pub biases: Vec<(Range<usize>, Range<usize>)>,
}

/// DoRA on one linear.
pub(crate) struct Magnitude {
    pub columns: Range<usize>,
    pub place: Range<usize>,
    /// Of the rows of W + s·B·A. Constants to the backward, as PEFT has it.
    pub norms: Vec<f32>,
    /// Scale, and places of A and B, of all changes of the linear.
    changes: Vec<(f32, Range<usize>, Range<usize>)>,
}

impl Own {
    /// `None` where the linear has nothing of its own.
    pub fn new(layout: &Layout, layer: usize, fused: Fused) -> Option<Self> {
        let slots = layout.fused(layer, fused);
        let magnitudes = slots.iter().filter_map(|slot| {
            let same = slots.iter().filter(|other| other.module == slot.module);
            Some(Magnitude {
                columns: slot.column..slot.column + slot.n_out,
                place: slot.magnitude.clone()?,
                norms: vec![0.0; slot.n_out],
                changes: same
                    .map(|slot| (slot.scale, slot.a.clone(), slot.b.clone()))
                    .collect(),
            })
        });
        let here = |layer_of, of: Fused| (layer_of, of) == (layer, fused);
        let biases = layout.biases().iter();
        let biases = biases.filter(|bias| here(bias.layer, bias.module.fused()));
        let own = Self {
            n_out: layout.fused_n_out(fused),
            gain: None,
            bias: None,
            magnitudes: magnitudes.collect(),
            biases: biases
                .map(|bias| (bias.columns.clone(), bias.place.clone()))
                .collect(),
        };
        (!own.magnitudes.is_empty() || !own.biases.is_empty()).then_some(own)
    }

    /// With the adapter's values taken in, or before. Bytes.
    pub fn size_bytes(&self) -> usize {
        let magnitudes = self.magnitudes.iter().map(|m| m.norms.len()).sum::<usize>();
        let gain = if self.magnitudes.is_empty() {
            0
        } else {
            self.n_out
        };
        size_of::<f32>() * (magnitudes + gain + self.n_out)
    }

    /// Takes in the adapter's values.
    pub fn update(&mut self, pool: &Pool, linear: &Linear, values: &[f32]) {
        let n = linear.weight.n_out();
        if !self.magnitudes.is_empty() {
            let gain = self.gain.get_or_insert_with(|| vec![1.0; n]);
            for magnitude in &mut self.magnitudes {
                let changes = magnitude.changes.iter().map(|(scale, a, b)| Change {
                    scale: *scale,
                    a: &values[a.clone()],
                    b: &values[b.clone()],
                });
                let changes: Vec<_> = changes.collect();
                let (first, norms) = (magnitude.columns.start, &mut magnitude.norms);
                row_norms(pool, &linear.weight, first, &changes, norms);
                let of = &values[magnitude.place.clone()];
                for ((gain, m), norm) in gain[magnitude.columns.clone()]
                    .iter_mut()
                    .zip(of)
                    .zip(norms)
                {
                    *gain = m / *norm;
                }
            }
        }
        if linear.bias.is_some() || !self.biases.is_empty() {
            let base = || {
                linear
                    .bias
                    .as_ref()
                    .map_or(vec![0.0; n], |bias| bias[..n].to_vec())
            };
            let bias = self.bias.get_or_insert_with(base);
            for (columns, place) in &self.biases {
                bias[columns.clone()].copy_from_slice(&values[place.clone()]);
            }
        }
    }
}
