//! Owns the copies of an adapter that the matrix kernels read. The scale sits in A for the forward, in B for the
//! backward: then neither the saved x·Aᵀ nor any gradient needs another pass.

use crate::buffer::OutOfMemory;
use crate::lora::layout::{Fused, Layout};
use crate::nn::gemm::Panels;
use crate::pool::Pool;
use std::ops::Range;
use std::sync::Mutex;

/// An adapter ready to multiply with.
pub(crate) struct PackedLora {
    /// For each layer, its four fused linears.
    layers: Vec<[FusedLora; 4]>,
    scale: f32,
}

/// The low-rank changes of one fused linear; none if `parts` is empty.
pub(crate) struct FusedLora {
    /// R: the ranks of the parts together.
    pub rank: usize,
    n_in: usize,
    /// The A of all parts, a (R, in) matrix in the adapter's values.
    pub a_range: Range<usize>,
    /// s·A for x·Aᵀ.
    pub a: Panels,
    pub parts: Vec<Part>,
}

/// The change of one linear.
pub(crate) struct Part {
    /// First column of its output within the fused linear's.
    pub column: usize,
    pub n_out: usize,
    /// First column of its share of x·Aᵀ.
    pub rank_start: usize,
    pub r: usize,
    pub b_range: Range<usize>,
    /// B for h·Bᵀ.
    pub b: Panels,
    /// s·B for dY·B.
    pub b_turned: Panels,
}

impl PackedLora {
    pub fn new(layout: &Layout) -> Self {
        let layers = (0..layout.n_layers)
            .map(|layer| Fused::ALL.map(|fused| FusedLora::new(layout, layer, fused)));
        Self {
            layers: layers.collect(),
            scale: layout.scale,
        }
    }

    pub fn fused(&self, layer: usize, fused: Fused) -> &FusedLora {
        &self.layers[layer][fused as usize]
    }

    /// Packs what the forward needs.
    /// Errors: `OutOfMemory`.
    pub fn pack_for_forward(&mut self, pool: &Pool, values: &[f32]) -> Result<(), OutOfMemory> {
        let scale = self.scale;
        self.for_each(pool, |fused| fused.pack_for_forward(values, scale))
    }

    /// Packs what forward and backward need.
    /// Errors: `OutOfMemory`.
    pub fn pack_for_training(&mut self, pool: &Pool, values: &[f32]) -> Result<(), OutOfMemory> {
        let scale = self.scale;
        self.for_each(pool, |fused| {
            fused.pack_for_forward(values, scale)?;
            fused.pack_for_backward(values, scale)
        })
    }

    fn for_each(
        &mut self,
        pool: &Pool,
        pack: impl Fn(&mut FusedLora) -> Result<(), OutOfMemory> + Sync,
    ) -> Result<(), OutOfMemory> {
        let tasks: Vec<_> = self
            .layers
            .iter_mut()
            .map(|layer| Mutex::new((layer, Ok(()))))
            .collect();
        pool.run(tasks.len(), |i| {
            let mut task = tasks[i]
                .lock()
                .expect("a layer is packed by one task — a bug in the pool");
            task.1 = task.0.iter_mut().try_for_each(&pack);
        });
        tasks
            .into_iter()
            .try_for_each(|task| task.into_inner().expect("no task panicked, or `run` had").1)
    }
}

impl FusedLora {
    fn new(layout: &Layout, layer: usize, fused: Fused) -> Self {
        let slots = layout.fused(layer, fused);
        let parts = slots.iter().enumerate().map(|(i, slot)| Part {
            column: slot.column,
            n_out: slot.n_out,
            rank_start: i * layout.r,
            r: layout.r,
            b_range: slot.b.clone(),
            b: Panels::default(),
            b_turned: Panels::default(),
        });
        let (first, last) = (slots.first(), slots.last());
        Self {
            rank: slots.len() * layout.r,
            n_in: first.map_or(0, |slot| slot.n_in),
            a_range: first.map_or(0, |slot| slot.a.start)..last.map_or(0, |slot| slot.a.end),
            a: Panels::default(),
            parts: parts.collect(),
        }
    }

    fn pack_for_forward(&mut self, values: &[f32], scale: f32) -> Result<(), OutOfMemory> {
        self.a.pack_weight(
            &values[self.a_range.clone()],
            self.n_in,
            self.rank,
            self.n_in,
            scale,
        )?;
        for part in &mut self.parts {
            part.b.pack_weight(
                &values[part.b_range.clone()],
                part.r,
                part.n_out,
                part.r,
                1.0,
            )?;
        }
        Ok(())
    }

    fn pack_for_backward(&mut self, values: &[f32], scale: f32) -> Result<(), OutOfMemory> {
        for part in &mut self.parts {
            part.b_turned.pack_rows(
                &values[part.b_range.clone()],
                part.r,
                part.n_out,
                part.r,
                scale,
            )?;
        }
        Ok(())
    }
}
