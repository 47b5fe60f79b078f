//! Owns the layout that vector loads want: sixteen columns of B side by side, for the whole depth.

use std::marker::PhantomData;
use std::ops::Range;

use super::{PANEL, Right, pack};
use crate::cpu::buffer::{Buffer, OutOfMemory};
use crate::cpu::element::Element;
use crate::cpu::pool::Pool;

/// A matrix B (depth, columns) as panels: unit u of column j is word `(j / 16 * units + u) * 16 + j % 16`, zeros beyond the columns. A unit is
/// as many numbers along the depth as a word holds.
#[derive(Default)]
pub(crate) struct Panels<E> {
    words: Buffer<u32>,
    columns: usize,
    depth: usize,
    of: PhantomData<E>,
}

impl<E: Element> Panels<E> {
    /// Bᵀ = W: `weight(n, row)` writes row n of W (columns, depth), n counting columns of B.
    /// Errors: `OutOfMemory`.
    pub fn from_weight_rows(
        pool: &Pool,
        columns: usize,
        depth: usize,
        weight: impl Fn(usize, &mut [E]) + Sync,
    ) -> Result<Self, OutOfMemory> {
        let panel = PANEL * depth.div_ceil(E::PER_WORD);
        let mut words = Buffer::zeroed(columns.div_ceil(PANEL) * panel)?;
        let n_panels = columns.div_ceil(PANEL);
        pool.for_rows(n_panels, (&mut words, panel), |range, words| {
            let mut rows = vec![E::default(); PANEL * depth];
            for (index, words) in range.zip(words.chunks_exact_mut(panel)) {
                let n = PANEL.min(columns - index * PANEL);
                for (j, row) in rows.chunks_exact_mut(depth).take(n).enumerate() {
                    weight(index * PANEL + j, row);
                }
                pack::weight::<E, E>(&rows, depth, n, depth, 1.0, words);
            }
        });
        Ok(Self {
            words,
            columns,
            depth,
            of: PhantomData,
        })
    }

    /// What panels of (depth, columns) take. Bytes.
    pub fn bytes_of(columns: usize, depth: usize) -> usize {
        size_of::<u32>() * columns.div_ceil(PANEL) * PANEL * depth.div_ceil(E::PER_WORD)
    }

    /// Makes room for (depth, columns), zeros at first; memory is reused.
    /// Errors: `OutOfMemory`.
    pub fn ensure(&mut self, columns: usize, depth: usize) -> Result<(), OutOfMemory> {
        let units = depth.div_ceil(E::PER_WORD);
        self.words.ensure(columns.div_ceil(PANEL) * PANEL * units)?;
        (self.columns, self.depth) = (columns, depth);
        Ok(())
    }

    /// Packs W (columns, depth), row-major with rows `stride` apart, times `scale`, for X·Wᵀ; memory is reused.
    /// Errors: `OutOfMemory`.
    pub fn pack_weight<S: Element>(
        &mut self,
        w: &[S],
        stride: usize,
        columns: usize,
        depth: usize,
        scale: f32,
    ) -> Result<(), OutOfMemory> {
        self.ensure(columns, depth)?;
        pack::weight::<S, E>(w, stride, columns, depth, scale, &mut self.words);
        Ok(())
    }

    /// Packs B (depth, columns), row-major with rows `stride` apart, times `scale`; memory is reused.
    /// Errors: `OutOfMemory`.
    pub fn pack_rows<S: Element>(
        &mut self,
        b: &[S],
        stride: usize,
        depth: usize,
        columns: usize,
        scale: f32,
    ) -> Result<(), OutOfMemory> {
        self.ensure(columns, depth)?;
        pack::rows::<PANEL, S, E>(b, stride, depth, columns, scale, &mut self.words);
        Ok(())
    }

    /// Columns of B, rows of W.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Rows of B, columns of W.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// The panels as a right operand.
    pub fn right(&self) -> Right<'_, E> {
        Right::panels(&self.words, self.depth)
    }

    /// Words of one panel.
    fn panel(&self) -> usize {
        PANEL * self.depth.div_ceil(E::PER_WORD)
    }

    /// The words of `columns` (from a panel's first on) and of `depth` (from a word's first on), panel by panel.
    pub(super) fn block(
        &self,
        columns: &Range<usize>,
        depth: &Range<usize>,
    ) -> impl Iterator<Item = &[u32]> {
        let units = depth.start / E::PER_WORD..depth.end.div_ceil(E::PER_WORD);
        (columns.start / PANEL..columns.end.div_ceil(PANEL)).map(move |panel| {
            &self.words[panel * self.panel() + units.start * PANEL
                ..panel * self.panel() + units.end * PANEL]
        })
    }

    /// Copies row `j` of W, which is column `j` of B.
    pub fn copy_weight_row(&self, j: usize, to: &mut [f32]) {
        let panel = &self.words[j / PANEL * self.panel()..][..self.panel()];
        for (to, words) in to.chunks_mut(E::PER_WORD).zip(panel.chunks_exact(PANEL)) {
            let numbers: &[E] = bytemuck::cast_slice(std::slice::from_ref(&words[j % PANEL]));
            for (to, from) in to.iter_mut().zip(numbers) {
                *to = from.to_f32();
            }
        }
    }

    /// Turns part of W, rows `rows` (from a panel's first on) and columns `columns` (from a multiple of 16 on), into panels of `F`
    /// over its columns, for dY·W: `out` becomes (columns / 16 rounded up, units of rows, 16).
    pub(super) fn turn<F: Element>(
        &self,
        rows: Range<usize>,
        columns: Range<usize>,
        out: &mut [u32],
    ) {
        let units = rows.len().div_ceil(F::PER_WORD);
        for (panel, out) in out.chunks_exact_mut(PANEL * units).enumerate() {
            let first = columns.start + panel * PANEL;
            let last = columns.end.min(first + PANEL);
            for (block, out) in out.chunks_mut(PANEL * PANEL / F::PER_WORD).enumerate() {
                let row = rows.start + block * PANEL;
                let n = PANEL.min(rows.end - row);
                let words = self.block(&(row..row + n), &(first..last)).next();
                pack::turn_part::<E, F>(words.expect("a block has a panel — a bug above"), n, out);
            }
        }
    }
}

impl<E> Panels<E> {
    /// All words, panel after panel.
    pub(super) fn words(&self) -> &[u32] {
        &self.words
    }
}
