//! Owns frozen weights in whatever form they are stored: each gives panels in the format that a product computes in.

use std::ops::Range;

use half::bf16;

use super::kernel::Dot;
use super::{PANEL, Panels, pack};
use crate::cpu::buffer::Buffer;
use crate::cpu::element::{Element, Precision};
use crate::quant::{Coded, Quantized};

/// Which product a weight W (N, K) is the right operand of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// X·Wᵀ: columns over N, depth over K.
    Forward,
    /// dY·W: columns over K, depth over N.
    Turned,
}

/// A frozen matrix W (N, K), packed once.
pub(crate) enum Weight {
    F32(Panels<f32>),
    Bf16(Panels<bf16>),
    /// Matrices below each other, all with K columns; every block of them is unpacked for the product at hand.
    Quantized(Vec<Quantized>),
}

/// Memory that a thread unpacks blocks in.
#[derive(Default)]
pub(super) struct Unpacked {
    words: Buffer<u32>,
    /// Rows of quantised values on their way into `words`.
    rows: Buffer<f32>,
}

/// Panels of a part of a weight.
pub(super) struct Block<'a> {
    pub words: &'a [u32],
    /// Words of a panel.
    pub panel: usize,
    pub dot: Dot,
    /// Of codes, (groups, 2, 16) for each panel; empty for all else.
    pub scales: &'a [f32],
    /// Numbers of them for a panel.
    pub scales_panel: usize,
    /// Units that share a scale.
    pub scales_group: usize,
}

impl Weight {
    /// N
    pub fn n_out(&self) -> usize {
        match self {
            Weight::F32(panels) => panels.columns(),
            Weight::Bf16(panels) => panels.columns(),
            Weight::Quantized(parts) => parts.iter().map(Quantized::rows).sum(),
        }
    }

    /// K
    pub fn n_in(&self) -> usize {
        match self {
            Weight::F32(panels) => panels.depth(),
            Weight::Bf16(panels) => panels.depth(),
            Weight::Quantized(parts) => parts.first().map_or(0, Quantized::columns),
        }
    }

    /// Values of the matrix.
    pub fn n_values(&self) -> usize {
        self.n_out() * self.n_in()
    }

    /// The memory that it takes. Bytes.
    pub fn n_bytes(&self) -> usize {
        match self {
            Weight::F32(panels) => size_of_val(panels.words()),
            Weight::Bf16(panels) => size_of_val(panels.words()),
            Weight::Quantized(parts) => parts.iter().map(Quantized::n_bytes).sum(),
        }
    }

    /// Copies row `n` of W, (K).
    pub fn copy_row(&self, n: usize, to: &mut [f32]) {
        match self {
            Weight::F32(panels) => panels.copy_weight_row(n, to),
            Weight::Bf16(panels) => panels.copy_weight_row(n, to),
            Weight::Quantized(parts) => dequantize(parts, n..n + 1, 0..to.len(), to),
        }
    }

    /// (columns, depth) of the right operand.
    pub(super) fn size(&self, side: Side) -> (usize, usize) {
        match side {
            Side::Forward => (self.n_out(), self.n_in()),
            Side::Turned => (self.n_in(), self.n_out()),
        }
    }

    /// Panels of `columns` and `depth` for a product of `n_rows` rows in `E`: where they lie, or unpacked into `scratch`. Both ranges
    /// begin at a multiple of 16.
    pub(super) fn block<'a, E: Element>(
        &'a self,
        side: Side,
        n_rows: usize,
        columns: Range<usize>,
        depth: Range<usize>,
        Unpacked { words, rows }: &'a mut Unpacked,
    ) -> Block<'a> {
        if let (Weight::Quantized(parts), Side::Forward, Precision::Fp32) =
            (self, side, E::PRECISION)
            && n_rows <= FEW_ROWS
            && let Some((coded, row)) = coded(parts, &columns)
        {
            return codes(coded, row, columns, depth, rows);
        }
        match (self, side, E::PRECISION) {
            (Weight::F32(panels), Side::Forward, Precision::Fp32) => {
                in_place(panels, columns, depth, Dot::F32)
            }
            (Weight::Bf16(panels), Side::Forward, Precision::Bf16) => {
                in_place(panels, columns, depth, Dot::Bf16)
            }
            (Weight::Bf16(panels), Side::Forward, Precision::Fp32) => {
                in_place(panels, columns, depth, Dot::Mixed)
            }
            (Weight::F32(panels), Side::Forward, Precision::Bf16) => {
                let panel = PANEL * depth.len().div_ceil(2);
                let scratch = room(words, &columns, panel);
                for (from, to) in panels
                    .block(&columns, &depth)
                    .zip(scratch.chunks_exact_mut(panel))
                {
                    pack::narrow(from, to);
                }
                unpacked::<E>(scratch, panel)
            }
            (_, side, _) => {
                let panel = PANEL * depth.len().div_ceil(E::PER_WORD);
                let scratch = room(words, &columns, panel);
                match (self, side) {
                    (Weight::F32(panels), _) => panels.turn::<E>(depth, columns, scratch),
                    (Weight::Bf16(panels), _) => panels.turn::<E>(depth, columns, scratch),
                    (Weight::Quantized(parts), _) if in_panels(parts) => {
                        unpack::<E>(parts, side, columns, depth, scratch);
                    }
                    (Weight::Quantized(parts), Side::Forward) => {
                        let (n, k) = (columns.len(), depth.len());
                        let values = unquantized(parts, columns, depth, rows);
                        pack::weight::<f32, E>(values, k, n, k, 1.0, scratch);
                    }
                    (Weight::Quantized(parts), Side::Turned) => {
                        let (n, k) = (depth.len(), columns.len());
                        let values = unquantized(parts, depth, columns, rows);
                        pack::rows::<PANEL, f32, E>(values, k, n, k, 1.0, scratch);
                    }
                }
                unpacked::<E>(scratch, panel)
            }
        }
    }
}

/// So few rows read codes as they lie; for more they are unpacked once.
const FEW_ROWS: usize = 16;

/// The matrix in whose panels all `columns` lie, and its row that is the first of them.
fn coded<'a>(parts: &'a [Quantized], columns: &Range<usize>) -> Option<(&'a Coded, usize)> {
    let mut first = 0;
    for part in parts {
        let last = first + part.rows();
        if columns.start < last {
            let row = columns.start - first;
            let is_whole = columns.end <= last && row.is_multiple_of(PANEL);
            return part.coded().filter(|_| is_whole).map(|coded| (coded, row));
        }
        first = last;
    }
    None
}

/// The codes as they lie, and their scales in `room`.
fn codes<'a>(
    coded: &'a Coded,
    row: usize,
    columns: Range<usize>,
    depth: Range<usize>,
    room: &'a mut Buffer<f32>,
) -> Block<'a> {
    let (codes, len) = (
        coded.codes_at(row, depth.start),
        coded.scales_len(depth.len()),
    );
    room.ensure(columns.len().div_ceil(PANEL) * len)
        .expect("memory for the scales of a block");
    for (panel, scales) in (row / PANEL..).zip(room.chunks_exact_mut(len)) {
        coded.scales(panel, depth.clone(), scales);
    }
    Block {
        words: codes.words,
        panel: codes.panel,
        dot: if codes.bits == 8 {
            Dot::Bytes
        } else {
            Dot::Nibbles
        },
        scales: room,
        scales_panel: len,
        scales_group: codes.group,
    }
}

/// Whether sixteen rows of W, from a multiple of sixteen on, are always sixteen of one matrix, in order.
fn in_panels(parts: &[Quantized]) -> bool {
    let (_, above) = parts.split_last().expect("a weight has a matrix");
    parts.iter().all(|part| part.coded().is_some())
        && above.iter().all(|part| part.rows().is_multiple_of(PANEL))
}

/// Panels of such a W for a product in `E`.
fn unpack<E: Element>(
    parts: &[Quantized],
    side: Side,
    columns: Range<usize>,
    depth: Range<usize>,
    out: &mut [u32],
) {
    let rows_at = |mut row: usize, columns: Range<usize>, out: &mut [u32]| {
        let part = parts.iter().find(|part| {
            let is_here = row < part.rows();
            row -= if is_here { 0 } else { part.rows() };
            is_here
        });
        let coded = part.and_then(Quantized::coded);
        let coded = coded.expect("the row is one of the matrices' — a bug in the caller");
        coded.unpack::<E>(row / PANEL, columns, out);
    };
    let panel = PANEL * depth.len().div_ceil(E::PER_WORD);
    let panels = out
        .chunks_exact_mut(panel)
        .zip(columns.clone().step_by(PANEL));
    for (out, first) in panels {
        if side == Side::Forward {
            rows_at(first, depth.clone(), out);
            continue;
        }
        let block_len = PANEL * PANEL / E::PER_WORD;
        let last = columns.end.min(first + PANEL);
        for (out, row) in out.chunks_mut(block_len).zip(depth.clone().step_by(PANEL)) {
            let mut words = [0; PANEL * PANEL];
            let words = &mut words[..PANEL * (last - first).div_ceil(E::PER_WORD)];
            rows_at(row, first..last, words);
            pack::turn_part::<E, E>(words, depth.end.min(row + PANEL) - row, out);
        }
    }
}

/// Rows and columns of W, row-major.
fn unquantized<'a>(
    parts: &[Quantized],
    rows: Range<usize>,
    columns: Range<usize>,
    values: &'a mut Buffer<f32>,
) -> &'a [f32] {
    values
        .ensure(rows.len() * columns.len())
        .expect("memory for a block of a weight");
    dequantize(parts, rows, columns, values);
    values
}

fn dequantize(parts: &[Quantized], rows: Range<usize>, columns: Range<usize>, to: &mut [f32]) {
    let (mut parts, mut first) = (parts.iter(), 0);
    let mut part = parts.next();
    for (row, to) in rows.zip(to.chunks_exact_mut(columns.len())) {
        while let Some(above) = part.filter(|part| row >= first + part.rows()) {
            first += above.rows();
            part = parts.next();
        }
        let part = part.expect("the row is one of the matrices' — a bug in the caller");
        part.dequantize(row - first, columns.clone(), to);
    }
}

fn in_place<F: Element>(
    panels: &Panels<F>,
    columns: Range<usize>,
    depth: Range<usize>,
    dot: Dot,
) -> Block<'_> {
    let panel = PANEL * panels.depth().div_ceil(F::PER_WORD);
    let start = columns.start / PANEL * panel + depth.start / F::PER_WORD * PANEL;
    Block {
        words: &panels.words()[start..],
        panel,
        dot,
        scales: &[],
        scales_panel: 0,
        scales_group: 1,
    }
}

fn room<'a>(scratch: &'a mut Buffer<u32>, columns: &Range<usize>, panel: usize) -> &'a mut [u32] {
    scratch
        .ensure(columns.len().div_ceil(PANEL) * panel)
        .expect("memory for a block of a weight");
    scratch
}

fn unpacked<E: Element>(words: &[u32], panel: usize) -> Block<'_> {
    Block {
        words,
        panel,
        dot: Dot::of::<E>(),
        scales: &[],
        scales_panel: 0,
        scales_group: 1,
    }
}
