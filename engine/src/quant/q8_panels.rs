//! Owns q8_0 in the order that products read it: sixteen rows side by side, so that unpacking needs no transpose.

use std::ops::Range;

use half::f16;

use crate::cpu::buffer::{Buffer, OutOfMemory};
use crate::cpu::element::Element;
use crate::cpu::gemm::{CODES_PER_SCALE, PANEL};
use crate::cpu::simd::{prefetch, vectorized};

/// Weights that share a scale.
const GROUP: usize = CODES_PER_SCALE;
/// How far ahead codes are fetched: strips are too short for the processor to see where they lead. Columns.
const AHEAD: usize = 128;
/// Bytes of a block: an f16 scale, then the codes.
const BLOCK_BYTES: usize = 2 + GROUP;

/// A matrix (rows, columns); rows are filled up with zeros to whole panels.
pub(super) struct Q8Panels {
    columns: usize,
    /// (panels, columns, 16)
    codes: Buffer<i8>,
    /// (panels, groups, 16)
    scales: Buffer<f32>,
}

/// Codes from a row and a column on, as they lie.
pub(crate) struct Codes<'a> {
    /// Four codes each.
    pub words: &'a [u32],
    /// Words of a panel.
    pub panel: usize,
    pub scales: &'a [f32],
    /// Scales of a panel.
    pub scales_panel: usize,
}

impl Q8Panels {
    /// Takes the blocks of `rows` rows over, row after row.
    /// Errors: `OutOfMemory`.
    pub fn from_blocks(rows: usize, columns: usize, bytes: &[u8]) -> Result<Self, OutOfMemory> {
        let (n_padded, n_groups) = (rows.next_multiple_of(PANEL), columns / GROUP);
        let mut codes = Buffer::<i8>::zeroed(n_padded * columns)?;
        let mut scales = Buffer::<f32>::zeroed(n_padded * n_groups)?;
        for (i, block) in bytes.chunks_exact(BLOCK_BYTES).enumerate() {
            let (row, group) = (i / n_groups, i % n_groups);
            let (panel, lane) = (row / PANEL, row % PANEL);
            let scale = f16::from_le_bytes([block[0], block[1]]);
            scales[(panel * n_groups + group) * PANEL + lane] = scale.to_f32();
            let first = (panel * columns + group * GROUP) * PANEL + lane;
            for (to, &code) in codes[first..].iter_mut().step_by(PANEL).zip(&block[2..]) {
                *to = code as i8;
            }
        }
        Ok(Self {
            columns,
            codes,
            scales,
        })
    }

    /// The memory that codes and scales take. Bytes.
    pub fn n_bytes(&self) -> usize {
        self.codes.len() + self.scales.len() * 4
    }

    /// The values of `row` from column `start` on.
    pub fn dequantize(&self, row: usize, start: usize, out: &mut [f32]) {
        let (panel, lane) = (row / PANEL, row % PANEL);
        let scales = &self.scales[panel * self.columns / GROUP * PANEL..];
        let codes = &self.codes[(panel * self.columns + start) * PANEL..];
        for (i, (out, codes)) in out.iter_mut().zip(codes.chunks_exact(PANEL)).enumerate() {
            let scale = scales[(start + i) / GROUP * PANEL + lane];
            *out = f32::from(codes[lane]) * scale;
        }
    }

    /// From `row`, a multiple of sixteen, and `column`, a multiple of 32, on.
    pub fn codes_at(&self, row: usize, column: usize) -> Codes<'_> {
        let (panel, n_groups) = (row / PANEL, self.columns / GROUP);
        let codes = &self.codes[(panel * self.columns + column) * PANEL..];
        Codes {
            words: bytemuck::cast_slice(codes),
            panel: self.columns * PANEL / 4,
            scales: &self.scales[(panel * n_groups + column / GROUP) * PANEL..],
            scales_panel: n_groups * PANEL,
        }
    }

    /// The values of a panel in `columns`, from a word's first on, as words (units, 16) of `E`: the panel of a right operand.
    pub fn unpack<E: Element>(&self, panel: usize, columns: Range<usize>, out: &mut [u32]) {
        let codes = (panel * self.columns + columns.start) * PANEL;
        let n_groups = self.columns / GROUP;
        let scales = &self.scales[panel * n_groups * PANEL..][..n_groups * PANEL];
        let codes = &self.codes[codes..][..columns.len() * PANEL];
        unpack::<E>(codes, scales, columns.start, out);
    }
}

vectorized! {
    fn unpack[E](codes: &[i8], scales: &[f32], start: usize, out: &mut [u32]) {
        let (mut codes, mut out) = (codes.as_chunks::<PANEL>().0, out.as_chunks_mut::<PANEL>().0);
        let mut column = start;
        // A group at a time: its scales stay in a register.
        while !codes.is_empty() {
            let n = codes.len().min(GROUP - column % GROUP);
            prefetch(codes.as_ptr().wrapping_add(AHEAD).cast(), n * PANEL);
            let scales = scales[column / GROUP * PANEL..].first_chunk().expect("a group has its scales");
            let (here, further) = codes.split_at(n);
            let (to, rest) = out.split_at_mut(n.div_ceil(E::PER_WORD));
            for (to, codes) in to.iter_mut().zip(here.chunks(E::PER_WORD)) {
                let first = values(&codes[0], scales);
                let second = if codes.len() > 1 { values(&codes[1], scales) } else { [0.0; PANEL] };
                for j in 0..PANEL {
                    to[j] = E::word(E::from_f32(first[j]), E::from_f32(second[j]));
                }
            }
            (codes, out, column) = (further, rest, column + n);
        }
    }
}

#[inline(always)]
fn values(codes: &[i8; PANEL], scales: &[f32; PANEL]) -> [f32; PANEL] {
    let mut values = [0.0; PANEL];
    for j in 0..PANEL {
        values[j] = f32::from(codes[j]) * scales[j];
    }
    values
}
