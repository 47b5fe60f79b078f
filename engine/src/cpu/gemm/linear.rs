//! Owns the product with a frozen weight and, in the same pass, its low-rank change: Y = X·W + H·Q, forward and backward alike.

use std::cell::RefCell;
use std::ops::Range;

use super::kernel::{Dot, Kernel, Target};
use super::weight::Unpacked;
use super::{
    DEPTH_BLOCK, GROUP, Left, Operands, PANEL, Panels, Right, Side, Strip, Weight, rounded, summed,
};
use crate::cpu::buffer::Buffer;
use crate::cpu::element::Element;
use crate::cpu::gemm::Write;
use crate::cpu::pool::{Pool, SharedMut};

/// Where the result goes, rows one after the other.
pub(crate) enum Out<'a, E> {
    Set(&'a mut [E]),
    SetSums(&'a mut [f32]),
    AddSums(&'a mut [f32]),
}

/// The low-rank change of some rows: H·Q is added to them.
pub(crate) struct LowRank<'a, E> {
    pub rows: Range<usize>,
    /// (rows, R), row 0 being the first of `rows`.
    pub h: Left<'a, E>,
    /// (R, columns)
    pub q: &'a Panels<E>,
    /// Which part of R reaches which columns; what is in none is not changed.
    pub reach: &'a [(Range<usize>, Range<usize>)],
}

/// One pointer of the three kinds, to be shared between tasks.
#[derive(Clone, Copy)]
enum SharedOut<E> {
    Set(SharedMut<E>),
    SetSums(SharedMut<f32>),
    AddSums(SharedMut<f32>),
}

/// Memory of a thread.
#[derive(Default)]
struct Scratch {
    /// The block of a weight that was unpacked last.
    unpacked: Unpacked,
    /// The sums of the blocks of the depth before, (rows, [`GROUP`]).
    sums: Buffer<f32>,
    /// The low-rank changes of rows that have different ones, (rows, [`GROUP`]).
    changes: Buffer<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Y = X·W (+ bias) + H·Q, W being `side` of `weight`. Shapes: `x` (T, depth), result (T, columns), `bias` (columns, rounded up to whole
/// panels).
pub(crate) fn linear<E: Element>(
    pool: &Pool,
    rows: usize,
    x: Left<'_, E>,
    (weight, side): (&Weight, Side),
    bias: Option<&[f32]>,
    low_rank: &[LowRank<'_, E>],
    out: Out<'_, E>,
) {
    let (columns, depth) = weight.size(side);
    x.check(rows, depth);
    for change in low_rank {
        change.h.check(change.rows.len(), change.q.depth());
        assert!(
            change.q.columns() == columns && change.rows.end <= rows,
            "a change of another linear — a bug in the caller"
        );
    }
    assert!(
        bias.is_none_or(|bias| bias.len() >= columns.next_multiple_of(PANEL)),
        "a bias without its padding — a bug in the caller"
    );
    let (len, out) = match out {
        Out::Set(y) => (y.len(), SharedOut::Set(SharedMut::new(y))),
        Out::SetSums(y) => (y.len(), SharedOut::SetSums(SharedMut::new(y))),
        Out::AddSums(y) => (y.len(), SharedOut::AddSums(SharedMut::new(y))),
    };
    assert!(
        len >= rows * columns,
        "the result is too short — a bug in the caller"
    );
    let product = Product {
        kernel: Kernel::detected(),
        x,
        weight,
        side,
        bias,
        low_rank,
        out,
    };
    let n_strips = columns.div_ceil(GROUP);
    // Rows are cut only where there are too few strips for the threads: a block of a weight is unpacked once for all rows.
    let n_parts = if pool.n_threads() == 1 {
        1
    } else {
        (8 * pool.n_threads())
            .div_ceil(n_strips)
            .min(rows.div_ceil(64))
            .max(1)
    };
    let rows_per_part = rows
        .div_ceil(n_parts)
        .next_multiple_of(product.kernel.most_rows(Dot::of::<E>()));
    pool.run(n_strips * n_parts, |task| {
        let first = task % n_parts * rows_per_part;
        let column = task / n_parts * GROUP;
        let rows = first.min(rows)..rows.min(first + rows_per_part);
        if !rows.is_empty() {
            product.strip(rows, column..columns.min(column + GROUP));
        }
    });
}

struct Product<'a, E> {
    kernel: &'static Kernel,
    x: Left<'a, E>,
    weight: &'a Weight,
    side: Side,
    bias: Option<&'a [f32]>,
    low_rank: &'a [LowRank<'a, E>],
    out: SharedOut<E>,
}

impl<E: Element> Product<'_, E> {
    /// Some rows of a strip of columns, block by block of the depth; the sums of all but the last wait in f32.
    fn strip(&self, rows: Range<usize>, columns: Range<usize>) {
        let (n_columns, depth) = self.weight.size(self.side);
        let step = DEPTH_BLOCK * E::PER_WORD;
        SCRATCH.with_borrow_mut(|scratch| {
            let Scratch {
                unpacked,
                sums,
                changes,
            } = scratch;
            for start in (0..depth).step_by(step) {
                let part = start..depth.min(start + step);
                let is_last = part.end == depth;
                if !is_last && start == 0 {
                    sums.ensure(rows.len() * GROUP)
                        .expect("memory for a strip of sums");
                }
                let sums_at = sums.as_mut_ptr().wrapping_sub(rows.start * GROUP);
                // A sum goes through f32 memory from block to block; the bias joins the first.
                let (plus, plus_row) = match (start, self.bias) {
                    (0, Some(bias)) => (bias[columns.start..].as_ptr(), 0),
                    (0, None) => (std::ptr::null(), 0),
                    _ => (sums_at.cast_const(), GROUP),
                };
                let block = self.weight.block::<E>(
                    self.side,
                    rows.len(),
                    columns.clone(),
                    part.clone(),
                    unpacked,
                );
                let mixed = block.dot == Dot::Mixed;
                let strip = |narrow: Range<usize>| Strip {
                    n_columns: narrow.len(),
                    dot: block.dot,
                    main: Operands {
                        a: self.x.at(0, start),
                        row: self.x.row,
                        group: self.x.group,
                        unit: if mixed { 2 } else { self.x.unit },
                        b: block.words[(narrow.start - columns.start) / PANEL * block.panel..]
                            .as_ptr(),
                        panel: block.panel,
                        scales: match block.scales {
                            [] => std::ptr::null(),
                            scales => scales
                                [(narrow.start - columns.start) / PANEL * block.scales_panel..]
                                .as_ptr(),
                        },
                        scales_panel: block.scales_panel,
                        scales_group: block.scales_group,
                        units: if mixed {
                            part.len() / 2
                        } else {
                            part.len().div_ceil(E::PER_WORD)
                        },
                    },
                    change: None,
                    start: std::ptr::null(),
                    start_row: 0,
                    plus: if plus.is_null() {
                        plus
                    } else {
                        plus.wrapping_add(narrow.start - columns.start)
                    },
                    plus_row,
                    target: if is_last {
                        self.target(narrow.start)
                    } else {
                        Target::Set(sums_at.wrapping_add(narrow.start - columns.start))
                    },
                    stride: if is_last { n_columns } else { GROUP },
                };
                let width = self.kernel.panels * PANEL;
                for first in columns.clone().step_by(width) {
                    let narrow = first..columns.end.min(first + width);
                    let strip = strip(narrow.clone());
                    match start {
                        0 => self.changed(strip, rows.clone(), narrow, changes),
                        // SAFETY: `linear` has checked all operands and the result; tasks write disjoint parts of it.
                        _ => unsafe { strip.run(self.kernel, rows.clone()) },
                    }
                }
            }
        });
    }

    /// Runs the rows; the sums of each begin with the change that is its own.
    fn changed(
        &self,
        mut strip: Strip,
        rows: Range<usize>,
        columns: Range<usize>,
        room: &mut Buffer<f32>,
    ) {
        let changes = self.low_rank.iter().filter_map(|change| {
            let own = change.rows.start.max(rows.start)..change.rows.end.min(rows.end);
            let operands = (!own.is_empty()).then(|| change.operands(&columns))??;
            Some((own, operands, change.rows.start))
        });
        let changes: Vec<_> = changes.collect();
        match &changes[..] {
            [] => {}
            [(own, operands, first)] if *own == rows => strip.change = Some((*operands, *first)),
            // The rows of several adapters share the main product: their changes come first, into memory.
            several => {
                room.ensure(rows.len() * GROUP)
                    .expect("memory for a strip of changes");
                room.fill(0.0);
                let start = room.as_mut_ptr().wrapping_sub(rows.start * GROUP);
                for (own, operands, first) in several {
                    let change = Strip {
                        n_columns: strip.n_columns,
                        dot: Dot::of::<E>(),
                        main: *operands,
                        change: None,
                        start: std::ptr::null(),
                        start_row: 0,
                        plus: std::ptr::null(),
                        plus_row: 0,
                        target: Target::Set(start.wrapping_add(first * GROUP)),
                        stride: GROUP,
                    };
                    // SAFETY: `linear` has checked the operands; the room was made for these rows.
                    unsafe { change.run(self.kernel, own.start - first..own.end - first) };
                }
                (strip.start, strip.start_row) = (start, GROUP);
            }
        }
        // SAFETY: as above; tasks write disjoint parts of the result.
        unsafe { strip.run(self.kernel, rows) };
    }

    fn target(&self, column: usize) -> Target {
        match self.out {
            SharedOut::Set(y) => rounded(y.at(column)),
            SharedOut::SetSums(y) => summed(y.at(column), Write::Set),
            SharedOut::AddSums(y) => summed(y.at(column), Write::Add),
        }
    }
}

impl<E: Element> LowRank<'_, E> {
    /// The ranks that reach any of `columns`, with both operands there.
    fn operands(&self, columns: &Range<usize>) -> Option<Operands> {
        let reaching = self
            .reach
            .iter()
            .filter(|(reached, _)| reached.start < columns.end && reached.end > columns.start);
        let ranks = reaching
            .map(|(_, ranks)| ranks.clone())
            .reduce(|a, b| a.start.min(b.start)..a.end.max(b.end))?;
        let right: Right<'_, E> = self.q.right();
        Some(Operands::new(
            self.h,
            right,
            columns.start,
            ranks.start,
            ranks.len(),
        ))
    }
}
