//! Owns matrix multiplication: C = A·B, C += A·B, and the linear with its low-rank change, in f32 and in bf16 with sums in f32.
//!
//! Every element of C is a chain of sums over the depth, in order; linears and outer products cut it at multiples of [`DEPTH_BLOCK`] and add
//! the pieces up, which keeps long sums exact. It does not depend on the other rows, on the tile it falls into,
//! on blocks or threads, nor on the vector width (for bf16: on whether the machine multiplies pairs). So a row of a batch
//! equals its single run, serving equals training, and one thread equals many, all bit for bit.

mod kernel;
mod linear;
mod outer;
mod pack;
mod panels;
mod turn;
mod weight;

use std::marker::PhantomData;
use std::ops::Range;

use crate::cpu::element::{Element, Precision};
use crate::cpu::pool::{Pool, SharedMut};
pub(crate) use kernel::{Dot, ask_for};
use kernel::{Kernel, Segment, Target, Tile};
pub(crate) use linear::{LowRank, Out, linear};
pub(crate) use outer::add_outer;
pub(crate) use panels::Panels;
pub(crate) use weight::{Side, Weight};

/// Columns of a panel: one 512-bit vector of words, one cache line.
pub(crate) const PANEL: usize = 16;

/// Rows of a processor's own tile, and units of the depth: words of a row of A, rows of B.
const TILE: usize = 16;

/// Depth of a block: 48 columns of it are 96 KiB, which the second-level cache holds, and eight rows fill half of the first. Words.
const DEPTH_BLOCK: usize = 512;

/// Most columns of a tile on any machine.
const GROUP: usize = 3 * PANEL;

impl Dot {
    /// The product of operands that are both of `E`.
    pub(crate) fn of<E: Element>() -> Self {
        match E::PRECISION {
            Precision::Fp32 => Dot::F32,
            Precision::Bf16 => Dot::Bf16,
        }
    }
}

/// The left operand: rows of words.
#[derive(Clone, Copy)]
pub(crate) struct Left<'a, E> {
    start: *const u32,
    /// Words between rows, between groups of eight rows, and between units; of tiles, a sixteenth of what lies between them.
    row: usize,
    group: usize,
    unit: usize,
    /// Words that can be read from `start` on.
    len: usize,
    of: PhantomData<&'a E>,
}

// SAFETY: a shared borrow of numbers.
unsafe impl<E: Sync> Send for Left<'_, E> {}
unsafe impl<E: Sync> Sync for Left<'_, E> {}

impl<'a, E: Element> Left<'a, E> {
    /// A row-major matrix whose rows are `stride` apart. Where a word holds two numbers, rows begin at even places, and a row of odd
    /// length is followed by a zero.
    pub fn rows(values: &'a [E], stride: usize) -> Self {
        let start = values.as_ptr().cast::<u32>();
        assert!(
            start.is_aligned() && stride.is_multiple_of(E::PER_WORD),
            "rows must begin at whole words — a bug in the caller"
        );
        let row = stride / E::PER_WORD;
        Self {
            start,
            row,
            group: 8 * row,
            unit: 1,
            len: values.len().div_ceil(E::PER_WORD),
            of: PhantomData,
        }
    }

    /// The transpose of a (depth, rows) matrix that [`pack_left`] has packed.
    pub fn packed(words: &'a [u32], depth: usize) -> Self {
        let units = depth.div_ceil(E::PER_WORD);
        let (row, group, unit) = if in_tiles::<E>() {
            (TILE, 8 * units.next_multiple_of(TILE), TILE)
        } else {
            (1, 8 * units, 8)
        };
        Self {
            start: words.as_ptr(),
            row,
            group,
            unit,
            len: words.len(),
            of: PhantomData,
        }
    }

    fn check(&self, rows: usize, depth: usize) {
        if rows == 0 || depth == 0 {
            return;
        }
        let (row, unit) = (rows - 1, depth.div_ceil(E::PER_WORD) - 1);
        let last = if self.unit == TILE {
            row / TILE * 2 * self.group
                + row % TILE * self.row
                + unit / TILE * TILE * TILE
                + unit % TILE
        } else {
            row / 8 * self.group + row % 8 * self.row + unit * self.unit
        };
        assert!(
            last < self.len,
            "A is too short for {rows} rows of {depth} — a bug in the caller"
        );
    }

    /// From row `row` (the first of those packed side by side where the operand is) and number `depth` (of a whole word) on.
    fn at(&self, row: usize, depth: usize) -> *const u32 {
        self.start.wrapping_add(
            row / 8 * self.group + row % 8 * self.row + depth / E::PER_WORD * self.unit,
        )
    }
}

/// Whether this machine multiplies `E` in tiles of its own.
fn in_tiles<E: Element>() -> bool {
    Kernel::detected().in_tiles(Dot::of::<E>())
}

/// Packs the transpose of a (depth, rows) matrix, row-major with rows `stride` apart, as a left operand; `words` is resized.
pub(crate) fn pack_left<S: Element, E: Element>(
    values: &[S],
    stride: usize,
    depth: usize,
    rows: usize,
    words: &mut Vec<u32>,
) {
    words.resize(packed_left_len::<E>(rows, depth), 0);
    pack_left_into::<S, E>(values, stride, depth, rows, words);
}

/// Length of a packed left operand of `rows` rows of `depth` numbers. Words.
pub(crate) fn packed_left_len<E: Element>(rows: usize, depth: usize) -> usize {
    let units = depth.div_ceil(E::PER_WORD);
    if in_tiles::<E>() {
        rows.next_multiple_of(TILE) * units.next_multiple_of(TILE)
    } else {
        rows.next_multiple_of(8) * units
    }
}

/// As [`pack_left`], into memory that is there.
pub(crate) fn pack_left_into<S: Element, E: Element>(
    values: &[S],
    stride: usize,
    depth: usize,
    rows: usize,
    words: &mut [u32],
) {
    if in_tiles::<E>() {
        pack::tiles::<S, E>(values, stride, depth, rows, words);
    } else {
        pack::rows::<8, S, E>(values, stride, depth, rows, 1.0, words);
    }
}

/// The right operand in panels of sixteen columns.
#[derive(Clone, Copy)]
pub(crate) struct Right<'a, E> {
    words: &'a [u32],
    /// Words of a panel.
    panel: usize,
    of: PhantomData<E>,
}

impl<'a, E: Element> Right<'a, E> {
    /// Panels of `depth` numbers.
    pub fn panels(words: &'a [u32], depth: usize) -> Self {
        Self {
            words,
            panel: PANEL * depth.div_ceil(E::PER_WORD),
            of: PhantomData,
        }
    }

    /// Without the first `n` columns, a multiple of sixteen.
    pub fn skip_columns(self, n: usize) -> Self {
        Self {
            words: &self.words[n / PANEL * self.panel..],
            ..self
        }
    }

    /// Without the first `n` numbers of each column, a multiple of sixteen.
    pub fn skip_depth(self, n: usize) -> Self {
        Self {
            words: &self.words[n / E::PER_WORD * PANEL..],
            ..self
        }
    }

    fn check(&self, columns: usize, depth: usize) {
        if columns == 0 || depth == 0 {
            return;
        }
        let end = (columns - 1) / PANEL * self.panel + depth.div_ceil(E::PER_WORD) * PANEL;
        assert!(
            end <= self.words.len(),
            "B is too short for {columns} columns of {depth} — a bug in the caller"
        );
    }
}

/// Length of the panels of `columns` columns of `depth` numbers. Words.
pub(crate) fn panels_len<E: Element>(columns: usize, depth: usize) -> usize {
    columns.div_ceil(PANEL) * PANEL * depth.div_ceil(E::PER_WORD)
}

/// Packs W (columns, depth) as [`Panels::pack_weight`] does, into memory that is there.
pub(crate) fn pack_weight_into<S: Element, E: Element>(
    w: &[S],
    stride: usize,
    columns: usize,
    depth: usize,
    words: &mut [u32],
) {
    pack::weight::<S, E>(w, stride, columns, depth, 1.0, words);
}

/// Packs B (depth, columns) as [`Panels::pack_rows`] does, into memory that is there.
pub(crate) fn pack_rows_into<S: Element, E: Element>(
    b: &[S],
    stride: usize,
    depth: usize,
    columns: usize,
    words: &mut [u32],
) {
    pack::rows::<PANEL, S, E>(b, stride, depth, columns, 1.0, words);
}

/// What happens to what is already in C.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Write {
    Set,
    Add,
}

/// Rows and columns of C, and the depth that is summed over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub rows: usize,
    pub columns: usize,
    pub depth: usize,
}

/// C = A·B in `E` with all threads of `pool`; C is row-major with rows `stride` apart.
pub(crate) fn matmul<E: Element>(
    pool: &Pool,
    shape: Shape,
    a: Left<'_, E>,
    b: Right<'_, E>,
    c: &mut [E],
    stride: usize,
) {
    check_c(shape, c.len(), stride);
    let row_step = shape
        .rows
        .div_ceil(4 * pool.n_threads())
        .next_multiple_of(Kernel::detected().most_rows(Dot::of::<E>()));
    let c = SharedMut::new(c);
    pool.run(shape.rows.div_ceil(row_step), |task| {
        let first = task * row_step;
        let rows = first..shape.rows.min(first + row_step);
        // SAFETY: C was checked above; tasks have rows of their own.
        unsafe { rectangle(rows, shape, a, b, rounded(c.at(0)), stride) };
    });
}

/// C = A·B rounded to `E`, on the calling thread, into memory of which other tasks write other parts.
///
/// # Safety
/// Every element of C must lie in `c`'s memory and be used by this call alone.
pub(crate) unsafe fn matmul_at<E: Element>(
    shape: Shape,
    a: Left<'_, E>,
    b: Right<'_, E>,
    c: SharedMut<E>,
    stride: usize,
) {
    // SAFETY: promised by the caller.
    unsafe { rectangle(0..shape.rows, shape, a, b, rounded(c.at(0)), stride) };
}

/// C = A·B or C += A·B in f32, on the calling thread.
pub(crate) fn matmul_here<E: Element>(
    shape: Shape,
    a: Left<'_, E>,
    b: Right<'_, E>,
    c: &mut [f32],
    stride: usize,
    write: Write,
) {
    check_c(shape, c.len(), stride);
    // SAFETY: C was checked and is borrowed mutably.
    unsafe {
        rectangle(
            0..shape.rows,
            shape,
            a,
            b,
            summed(c.as_mut_ptr(), write),
            stride,
        )
    };
}

fn check_c(shape: Shape, len: usize, stride: usize) {
    let end = match shape.rows {
        0 => 0,
        rows => (rows - 1) * stride + shape.columns,
    };
    assert!(
        end <= len,
        "C is too short for {shape:?} — a bug in the caller"
    );
}

/// C in `E`.
fn rounded<E: Element>(c: *mut E) -> Target {
    match E::PRECISION {
        Precision::Fp32 => Target::Set(c.cast()),
        Precision::Bf16 => Target::Round(c.cast()),
    }
}

/// C in f32.
fn summed(c: *mut f32, write: Write) -> Target {
    match write {
        Write::Set => Target::Set(c),
        Write::Add => Target::Add(c),
    }
}

/// Rows of C, all columns.
///
/// # Safety
/// The target must hold the rows, which nobody else may use.
unsafe fn rectangle<E: Element>(
    rows: Range<usize>,
    shape: Shape,
    a: Left<'_, E>,
    b: Right<'_, E>,
    target: Target,
    stride: usize,
) {
    a.check(rows.end, shape.depth);
    b.check(shape.columns, shape.depth);
    let kernel = Kernel::detected();
    let step = kernel.panels * PANEL;
    for column in (0..shape.columns).step_by(step) {
        let strip = Strip {
            n_columns: (shape.columns - column).min(step),
            dot: Dot::of::<E>(),
            main: Operands::new(a, b, column, 0, shape.depth),
            change: None,
            start: std::ptr::null(),
            start_row: 0,
            plus: std::ptr::null(),
            plus_row: 0,
            target: target.skip(column),
            stride,
        };
        // SAFETY: the operands were checked, the target is promised by the caller.
        unsafe { strip.run(kernel, rows.clone()) };
    }
}

/// Both operands for a strip of columns and a part of the depth.
#[derive(Clone, Copy)]
struct Operands {
    a: *const u32,
    row: usize,
    group: usize,
    unit: usize,
    b: *const u32,
    panel: usize,
    units: usize,
    scales: *const f32,
    scales_panel: usize,
    scales_group: usize,
}

impl Operands {
    fn new<E: Element>(
        a: Left<'_, E>,
        b: Right<'_, E>,
        column: usize,
        first: usize,
        depth: usize,
    ) -> Self {
        Self {
            a: a.at(0, first),
            row: a.row,
            group: a.group,
            unit: a.unit,
            b: b.words
                .as_ptr()
                .wrapping_add(column / PANEL * b.panel + first / E::PER_WORD * PANEL),
            panel: b.panel,
            units: depth.div_ceil(E::PER_WORD),
            scales: std::ptr::null(),
            scales_panel: 0,
            scales_group: 1,
        }
    }

    fn segment(&self, row: usize) -> Segment {
        Segment {
            units: self.units,
            a: self
                .a
                .wrapping_add(row / 8 * self.group + row % 8 * self.row),
            a_row: self.row,
            a_group: self.group,
            a_unit: self.unit,
            b: self.b,
            b_panel: self.panel,
            scales: self.scales,
            scales_panel: self.scales_panel,
            scales_group: self.scales_group,
        }
    }
}

/// At most [`GROUP`] columns of C.
struct Strip {
    n_columns: usize,
    dot: Dot,
    main: Operands,
    /// What the sums begin with; null for zeros.
    start: *const f32,
    start_row: usize,
    /// Summed over before the main product; its row 0 is the given one.
    change: Option<(Operands, usize)>,
    plus: *const f32,
    plus_row: usize,
    target: Target,
    stride: usize,
}

impl Strip {
    /// Runs `rows` tile by tile.
    ///
    /// # Safety
    /// Everything the strip points to must be there for these rows; nobody else may use its target.
    unsafe fn run(&self, kernel: &Kernel, rows: Range<usize>) {
        let n_panels = self.n_columns.div_ceil(PANEL);
        let mut row = rows.start;
        while row < rows.end {
            let n_rows = kernel.rows(self.dot, row, rows.end - row, n_panels);
            let change = self
                .change
                .as_ref()
                .map_or(Segment::NOTHING, |(operands, first_row)| {
                    operands.segment(row - first_row)
                });
            let tile = Tile {
                main: self.main.segment(row),
                change,
                start: if self.start.is_null() {
                    self.start
                } else {
                    self.start.wrapping_add(row * self.start_row)
                },
                start_row: self.start_row,
                plus: if self.plus.is_null() {
                    self.plus
                } else {
                    self.plus.wrapping_add(row * self.plus_row)
                },
                plus_row: self.plus_row,
                target: self.target.skip(row * self.stride),
                row: self.stride,
                n_columns: self.n_columns,
            };
            // SAFETY: promised by the caller.
            unsafe { kernel.run(self.dot, n_rows, n_panels, &tile) };
            row += n_rows;
        }
    }
}

#[cfg(test)]
mod tests;
