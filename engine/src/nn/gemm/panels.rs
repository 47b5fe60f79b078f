//! Owns the layout that vector loads want: sixteen columns of B side by side, for the whole depth.

use std::ops::Range;

use crate::buffer::{Buffer, OutOfMemory};
use crate::nn::gemm::Right;
use crate::pool::Pool;
use crate::simd::vectorized;

/// Columns of a panel: one 512-bit vector, one cache line.
pub(crate) const PANEL: usize = 16;

/// A matrix B (depth, columns) as panels: element (p, j) at `(j / 16 * depth + p) * 16 + j % 16`, zeros beyond the columns.
#[derive(Default)]
pub(crate) struct Panels {
    values: Buffer,
    columns: usize,
    depth: usize,
}

impl Panels {
    /// Zeros of the given size.
    /// Errors: `OutOfMemory`.
    pub fn zeroed(columns: usize, depth: usize) -> Result<Self, OutOfMemory> {
        Ok(Self {
            values: Buffer::zeroed(columns.div_ceil(PANEL) * PANEL * depth)?,
            columns,
            depth,
        })
    }

    /// Bᵀ = W: `weight(n, row)` writes row n of W (columns, depth), n counting columns of B.
    /// Errors: `OutOfMemory`.
    pub fn from_weight_rows(
        pool: &Pool,
        columns: usize,
        depth: usize,
        weight: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Result<Self, OutOfMemory> {
        let mut panels = Self::zeroed(columns, depth)?;
        let n_panels = columns.div_ceil(PANEL);
        pool.for_rows(
            n_panels,
            [(&mut panels.values, PANEL * depth)],
            |range, [values]| {
                let mut rows = vec![0.0; PANEL * depth];
                for (panel, values) in range.zip(values.chunks_exact_mut(PANEL * depth)) {
                    rows.fill(0.0);
                    for (j, row) in rows.chunks_exact_mut(depth).enumerate() {
                        if panel * PANEL + j < columns {
                            weight(panel * PANEL + j, row);
                        }
                    }
                    pack_transposed(&rows, depth, PANEL, depth, 1.0, values);
                }
            },
        );
        Ok(panels)
    }

    /// Packs W (columns, depth), row-major with rows `stride` apart, times `scale`, for X·Wᵀ; memory is reused.
    /// Errors: `OutOfMemory`.
    pub fn pack_weight(
        &mut self,
        w: &[f32],
        stride: usize,
        columns: usize,
        depth: usize,
        scale: f32,
    ) -> Result<(), OutOfMemory> {
        self.values
            .ensure(columns.div_ceil(PANEL) * PANEL * depth)?;
        (self.columns, self.depth) = (columns, depth);
        pack_transposed(w, stride, columns, depth, scale, &mut self.values);
        Ok(())
    }

    /// Packs B (depth, columns), row-major with rows `stride` apart, times `scale`; memory is reused.
    /// Errors: `OutOfMemory`.
    pub fn pack_rows(
        &mut self,
        b: &[f32],
        stride: usize,
        depth: usize,
        columns: usize,
        scale: f32,
    ) -> Result<(), OutOfMemory> {
        self.values
            .ensure(columns.div_ceil(PANEL) * PANEL * depth)?;
        (self.columns, self.depth) = (columns, depth);
        for (panel, values) in self
            .values
            .chunks_exact_mut((PANEL * depth).max(1))
            .enumerate()
        {
            let first = panel * PANEL;
            let n = PANEL.min(columns - first);
            for (p, row) in values.chunks_exact_mut(PANEL).enumerate() {
                for (to, from) in row.iter_mut().zip(&b[p * stride + first..][..n]) {
                    *to = from * scale;
                }
                row[n..].fill(0.0);
            }
        }
        Ok(())
    }

    /// As [`Self::pack_rows`], of small matrices at the edge of memory.
    pub fn from_rows(b: &[f32], stride: usize, depth: usize, columns: usize) -> Self {
        let mut panels = Self::default();
        panels
            .pack_rows(b, stride, depth, columns, 1.0)
            .expect("memory for a small matrix");
        panels
    }

    /// Columns of B, rows of W.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Rows of B, columns of W.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Values of the matrix, padding not counted.
    pub fn n_values(&self) -> usize {
        self.columns * self.depth
    }

    /// The panels as a right operand.
    pub fn right(&self) -> Right<'_> {
        Right {
            values: &self.values,
            panel: PANEL * self.depth,
            depth: PANEL,
        }
    }

    /// Copies row `j` of W, which is column `j` of B.
    pub fn copy_weight_row(&self, j: usize, to: &mut [f32]) {
        let panel = &self.values[j / PANEL * PANEL * self.depth..][..PANEL * self.depth];
        for (to, from) in to.iter_mut().zip(panel.chunks_exact(PANEL)) {
            *to = from[j % PANEL];
        }
    }

    /// Turns part of W, rows `rows` and columns `columns`, into panels over its columns, for dY·W.
    /// `out` is resized to hold (columns.len() / 16 rounded up, rows.len(), 16).
    pub fn turn(&self, rows: Range<usize>, columns: Range<usize>, out: &mut Vec<f32>) {
        debug_assert!(rows.start.is_multiple_of(PANEL));
        out.resize(columns.len().div_ceil(PANEL) * PANEL * rows.len(), 0.0);
        for (panel, out) in out.chunks_exact_mut(PANEL * rows.len()).enumerate() {
            let first = columns.start + panel * PANEL;
            let n = PANEL.min(columns.end - first);
            for (block, out) in out.chunks_mut(PANEL * PANEL).enumerate() {
                let start = (rows.start / PANEL + block) * PANEL * self.depth + first * PANEL;
                transpose(&self.values[start..start + n * PANEL], out);
            }
        }
    }
}

vectorized! {
    /// `out[j][i] = rows[i][j]`: rows of sixteen in, as many rows of sixteen out as it holds; missing rows are zeros.
    fn transpose(rows: &[f32], out: &mut [f32]) {
        let mut block = [[0.0f32; PANEL]; PANEL];
        for (to, from) in block.iter_mut().zip(rows.chunks_exact(PANEL)) {
            to.copy_from_slice(from);
        }
        for (j, to) in out.chunks_exact_mut(PANEL).enumerate() {
            for i in 0..PANEL {
                to[i] = block[i][j];
            }
        }
    }
}

/// W (columns, depth) with rows `stride` apart → panels, times `scale`.
fn pack_transposed(
    w: &[f32],
    stride: usize,
    columns: usize,
    depth: usize,
    scale: f32,
    out: &mut [f32],
) {
    for (panel, out) in out.chunks_exact_mut((PANEL * depth).max(1)).enumerate() {
        let n = PANEL.min(columns - panel * PANEL);
        for (p, to) in out.chunks_exact_mut(PANEL).enumerate() {
            for (j, to) in to[..n].iter_mut().enumerate() {
                *to = w[(panel * PANEL + j) * stride + p] * scale;
            }
            to[n..].fill(0.0);
        }
    }
}
