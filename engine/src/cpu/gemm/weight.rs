//! Owns frozen weights in whatever form they are stored: each gives panels in the format that a product computes in.

use std::ops::Range;

use half::bf16;

use super::kernel::Dot;
use super::{PANEL, Panels, pack};
use crate::cpu::buffer::Buffer;
use crate::cpu::element::{Element, Precision};

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
}

/// Panels of a part of a weight.
pub(super) struct Block<'a> {
    pub words: &'a [u32],
    /// Words of a panel.
    pub panel: usize,
    pub dot: Dot,
}

impl Weight {
    /// N
    pub fn n_out(&self) -> usize {
        match self {
            Weight::F32(panels) => panels.columns(),
            Weight::Bf16(panels) => panels.columns(),
        }
    }

    /// K
    pub fn n_in(&self) -> usize {
        match self {
            Weight::F32(panels) => panels.depth(),
            Weight::Bf16(panels) => panels.depth(),
        }
    }

    /// Values of the matrix.
    pub fn n_values(&self) -> usize {
        self.n_out() * self.n_in()
    }

    /// Copies row `n` of W, (K).
    pub fn copy_row(&self, n: usize, to: &mut [f32]) {
        match self {
            Weight::F32(panels) => panels.copy_weight_row(n, to),
            Weight::Bf16(panels) => panels.copy_weight_row(n, to),
        }
    }

    /// (columns, depth) of the right operand.
    pub(super) fn size(&self, side: Side) -> (usize, usize) {
        match side {
            Side::Forward => (self.n_out(), self.n_in()),
            Side::Turned => (self.n_in(), self.n_out()),
        }
    }

    /// Panels of `columns` and `depth` for a product in `E`: where they lie, or unpacked into `scratch`. Both ranges begin at a multiple of 16.
    pub(super) fn block<'a, E: Element>(
        &'a self,
        side: Side,
        columns: Range<usize>,
        depth: Range<usize>,
        scratch: &'a mut Buffer<u32>,
    ) -> Block<'a> {
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
                let scratch = room(scratch, &columns, panel);
                for (from, to) in panels
                    .block(&columns, &depth)
                    .zip(scratch.chunks_exact_mut(panel))
                {
                    pack::narrow(from, to);
                }
                unpacked::<E>(scratch, panel)
            }
            (_, Side::Turned, _) => {
                let panel = PANEL * depth.len().div_ceil(E::PER_WORD);
                let scratch = room(scratch, &columns, panel);
                match self {
                    Weight::F32(panels) => panels.turn::<E>(depth, columns, scratch),
                    Weight::Bf16(panels) => panels.turn::<E>(depth, columns, scratch),
                }
                unpacked::<E>(scratch, panel)
            }
        }
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
    }
}
