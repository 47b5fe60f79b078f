//! Owns the copies of an adapter that the matrix kernels read. The scale sits in A for the forward, in B for the
//! backward: then neither the saved x·Aᵀ nor any gradient needs another pass.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::{Mutex, OnceLock};

use half::bf16;

use crate::cpu::buffer::{Buffer, OutOfMemory};
use crate::cpu::element::Element;
use crate::cpu::gemm::{Panels, Weight};
use crate::cpu::pool::Pool;
use crate::lora::layout::{Fused, Layout};
use crate::lora::own::Own;
use crate::lora::slots::Saved;
use crate::weights::BaseModel;

/// The copies of an adapter that generation multiplies with, by the number format it computes in.
#[derive(Default)]
pub(crate) struct Copies {
    fp32: OnceLock<PackedLora<f32>>,
    bf16: OnceLock<PackedLora<bf16>>,
}

/// A number format that generation computes in.
pub(crate) trait Generated: Element {
    /// The copy in this format.
    fn of(copies: &Copies) -> &OnceLock<PackedLora<Self>>;
}

impl Generated for f32 {
    fn of(copies: &Copies) -> &OnceLock<PackedLora<Self>> {
        &copies.fp32
    }
}

impl Generated for bf16 {
    fn of(copies: &Copies) -> &OnceLock<PackedLora<Self>> {
        &copies.bf16
    }
}

/// An adapter ready to multiply with, in `E`.
pub(crate) struct PackedLora<E> {
    /// For each layer, its four fused linears.
    layers: Vec<[FusedLora<E>; 4]>,
    /// (V, D), where it is trained whole.
    embed_tokens: Option<(Range<usize>, Vec<f32>)>,
    lm_head: Option<(Range<usize>, Weight)>,
}

/// The changes of one fused linear; none of low rank if `parts` is empty.
pub(crate) struct FusedLora<E> {
    /// R: the ranks of the parts together, each rounded up to whole words of `E`.
    pub rank: usize,
    /// Width of the fused linear's result.
    n_out: usize,
    n_in: usize,
    /// s·A for x·Aᵀ: (in, R).
    pub a: Panels<E>,
    /// Bᵀ of all parts, each in its own rows and columns: (R, out).
    pub b: Panels<E>,
    /// A for dH·A: (R, in).
    pub a_turned: Panels<E>,
    /// Which ranks reach which columns of the result.
    pub reach: Vec<(Range<usize>, Range<usize>)>,
    pub parts: Vec<Part<E>>,
    pub own: Option<Own>,
}

/// The change of one linear.
pub(crate) struct Part<E> {
    /// First column of its output within the fused linear's.
    pub column: usize,
    pub n_out: usize,
    /// Its share of x·Aᵀ.
    pub ranks: Range<usize>,
    scale: f32,
    pub a_range: Range<usize>,
    pub b_range: Range<usize>,
    /// s·B for dY·B: (out, r).
    pub b_turned: Panels<E>,
}

impl<E: Element> PackedLora<E> {
    pub fn new(layout: &Layout) -> Self {
        let layers = (0..layout.n_layers)
            .map(|layer| Fused::ALL.map(|fused| FusedLora::new(layout, layer, fused)));
        Self {
            layers: layers.collect(),
            embed_tokens: layout
                .saved(Saved::EmbedTokens)
                .map(|place| (place, Vec::new())),
            lm_head: layout
                .saved(Saved::LmHead)
                .map(|place| (place, Weight::F32(Panels::default()))),
        }
    }

    /// The embeddings of a model with this adapter, (V, D), if they are the adapter's own.
    pub fn embed_tokens(&self) -> Option<&[f32]> {
        self.embed_tokens.as_ref().map(|(_, values)| &**values)
    }

    /// The head of a model with this adapter, (V, D).
    pub fn head<'a>(&'a self, base: &'a BaseModel) -> &'a Weight {
        self.lm_head.as_ref().map_or(base.head(), |(_, head)| head)
    }

    pub fn fused(&self, layer: usize, fused: Fused) -> &FusedLora<E> {
        &self.layers[layer][fused as usize]
    }

    /// Packs what the forward needs.
    /// Errors: `OutOfMemory`.
    pub fn pack_for_forward(
        &mut self,
        pool: &Pool,
        base: &BaseModel,
        values: &[f32],
    ) -> Result<(), OutOfMemory> {
        self.pack_low_rank(pool, values)?;
        self.pack_own(pool, base, values)
    }

    /// Packs what the forward needs of an adapter that has nothing but changes of low rank: see [`Self::needs_base`].
    /// Errors: `OutOfMemory`.
    pub fn pack_low_rank(&mut self, pool: &Pool, values: &[f32]) -> Result<(), OutOfMemory> {
        self.for_each(pool, |fused| fused.pack_for_forward(values))
    }

    /// Whether something here replaces a part of the base or is measured by it.
    pub fn needs_base(&self) -> bool {
        let mut fused = self.layers.iter().flatten();
        self.embed_tokens.is_some()
            || self.lm_head.is_some()
            || fused.any(|fused| fused.own.is_some())
    }

    /// What the forward needs, packed already or not. Bytes.
    pub fn forward_bytes(&self) -> usize {
        let fused = self.layers.iter().flatten();
        let saved = [
            self.embed_tokens.as_ref().map(|(place, _)| place),
            self.lm_head.as_ref().map(|(place, _)| place),
        ];
        fused.map(FusedLora::forward_bytes).sum::<usize>()
            + saved
                .into_iter()
                .flatten()
                .map(|place| size_of::<f32>() * place.len())
                .sum::<usize>()
    }

    /// Packs what forward and backward need.
    /// Errors: `OutOfMemory`.
    pub fn pack_for_training(
        &mut self,
        pool: &Pool,
        base: &BaseModel,
        values: &[f32],
    ) -> Result<(), OutOfMemory> {
        self.for_each(pool, |fused| {
            fused.pack_for_forward(values)?;
            fused.pack_for_backward(values)
        })?;
        self.pack_own(pool, base, values)
    }

    fn pack_own(
        &mut self,
        pool: &Pool,
        base: &BaseModel,
        values: &[f32],
    ) -> Result<(), OutOfMemory> {
        for (layer, of) in self.layers.iter_mut().zip(&base.layers) {
            for (fused, lora) in Fused::ALL.into_iter().zip(layer) {
                if let Some(own) = &mut lora.own {
                    own.update(pool, of.linear(fused), values);
                }
            }
        }
        if let Some((place, rows)) = &mut self.embed_tokens {
            rows.clear();
            rows.extend_from_slice(&values[place.clone()]);
        }
        if let Some((place, Weight::F32(head))) = &mut self.lm_head {
            let (rows, width) = (base.head().n_out(), base.head().n_in());
            head.pack_weight(&values[place.clone()], width, rows, width, 1.0)?;
        }
        Ok(())
    }

    fn for_each(
        &mut self,
        pool: &Pool,
        pack: impl Fn(&mut FusedLora<E>) -> Result<(), OutOfMemory> + Sync,
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

thread_local! {
    /// Matrices of all parts together, before they are packed.
    static ROWS: RefCell<Buffer> = RefCell::default();
}

/// Calls `then` with `len` zeros.
fn with_zeros(
    len: usize,
    then: impl FnOnce(&mut [f32]) -> Result<(), OutOfMemory>,
) -> Result<(), OutOfMemory> {
    ROWS.with_borrow_mut(|rows| {
        rows.ensure(len)?;
        rows.fill(0.0);
        then(rows)
    })
}

impl<E: Element> FusedLora<E> {
    fn new(layout: &Layout, layer: usize, fused: Fused) -> Self {
        let slots = layout.fused(layer, fused);
        let mut rank = 0;
        let mut parts = Vec::new();
        for slot in slots {
            parts.push(Part {
                column: slot.column,
                n_out: slot.n_out,
                ranks: rank..rank + slot.r,
                scale: slot.scale,
                a_range: slot.a.clone(),
                b_range: slot.b.clone(),
                b_turned: Panels::default(),
            });
            rank += slot.r.next_multiple_of(E::PER_WORD);
        }
        let reach = parts
            .iter()
            .map(|part| (part.column..part.column + part.n_out, part.ranks.clone()));
        Self {
            rank,
            n_out: layout.fused_n_out(fused),
            n_in: slots.first().map_or(0, |slot| slot.n_in),
            a: Panels::default(),
            b: Panels::default(),
            a_turned: Panels::default(),
            reach: reach.collect(),
            parts,
            own: Own::new(layout, layer, fused),
        }
    }

    fn forward_bytes(&self) -> usize {
        let own = self.own.as_ref().map_or(0, Own::size_bytes);
        Panels::<E>::bytes_of(self.rank, self.n_in)
            + Panels::<E>::bytes_of(self.n_out, self.rank)
            + own
    }

    fn pack_for_forward(&mut self, values: &[f32]) -> Result<(), OutOfMemory> {
        let Self {
            rank, n_in, n_out, ..
        } = *self;
        if rank == 0 {
            return Ok(());
        }
        with_zeros(rank * n_in, |rows| {
            for part in &self.parts {
                let to = &mut rows[part.ranks.start * n_in..part.ranks.end * n_in];
                for (to, from) in to.iter_mut().zip(&values[part.a_range.clone()]) {
                    *to = from * part.scale;
                }
            }
            self.a.pack_weight(rows, n_in, rank, n_in, 1.0)
        })?;
        with_zeros(n_out * rank, |rows| {
            for part in &self.parts {
                let b = values[part.b_range.clone()].chunks_exact(part.ranks.len());
                for (n, from) in b.enumerate() {
                    let row = (part.column + n) * rank;
                    rows[row + part.ranks.start..row + part.ranks.end].copy_from_slice(from);
                }
            }
            self.b.pack_weight(rows, rank, n_out, rank, 1.0)
        })
    }

    fn pack_for_backward(&mut self, values: &[f32]) -> Result<(), OutOfMemory> {
        let Self { rank, n_in, .. } = *self;
        if rank == 0 {
            return Ok(());
        }
        with_zeros(rank * n_in, |rows| {
            for part in &mut self.parts {
                rows[part.ranks.start * n_in..part.ranks.end * n_in]
                    .copy_from_slice(&values[part.a_range.clone()]);
                let (b, r) = (&values[part.b_range.clone()], part.ranks.len());
                part.b_turned.pack_rows(b, r, part.n_out, r, part.scale)?;
            }
            self.a_turned.pack_rows(rows, n_in, rank, n_in, 1.0)
        })
    }
}
