//! Owns matrix multiplication in f32: C = A·B or C += A·B, over strided views and panels.
//!
//! Every element of C is the same chain of fused multiply-adds over the depth, cut at multiples of [`DEPTH_BLOCK`]. It does
//! not depend on the other rows, on the tile it falls into, on the threads or on the vector width. So a row of a batch
//! equals its single run, serving equals training, and one thread equals many, all bit for bit.

mod kernel;
mod panels;

use std::cell::RefCell;
use std::ops::Range;

use crate::pool::{Pool, SharedMut};
use kernel::{Kernel, Tile};
pub(crate) use panels::{PANEL, Panels};

/// Depth summed in registers before it is added to C: 48 columns of it are 36 KiB, which the first-level cache holds.
pub(crate) const DEPTH_BLOCK: usize = 192;

/// Rows that one task takes: its block of A stays in the second-level cache while B streams past.
const ROWS_PER_TASK: usize = 128;

/// The left operand: element (i, p) is `values[i * row + p * depth]`.
#[derive(Clone, Copy)]
pub(crate) struct Left<'a> {
    pub values: &'a [f32],
    pub row: usize,
    pub depth: usize,
}

impl<'a> Left<'a> {
    /// A row-major matrix whose rows are `stride` apart.
    pub fn rows(values: &'a [f32], stride: usize) -> Self {
        Self {
            values,
            row: stride,
            depth: 1,
        }
    }

    /// The transpose of a row-major matrix whose rows are `stride` apart.
    pub fn transposed(values: &'a [f32], stride: usize) -> Self {
        Self {
            values,
            row: 1,
            depth: stride,
        }
    }
}

/// The right operand in panels of sixteen columns: element (p, j) is
/// `values[j / 16 * panel + p * depth + j % 16]`.
#[derive(Clone, Copy)]
pub(crate) struct Right<'a> {
    pub values: &'a [f32],
    pub panel: usize,
    pub depth: usize,
}

impl<'a> Right<'a> {
    /// A row-major matrix (depth, columns) whose rows are `stride` apart.
    pub fn rows(values: &'a [f32], stride: usize) -> Self {
        Self {
            values,
            panel: PANEL,
            depth: stride,
        }
    }
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

/// C = A·B or C += A·B with all threads of `pool`; C is row-major with rows `stride` apart.
pub(crate) fn matmul(
    pool: &Pool,
    shape: Shape,
    a: Left<'_>,
    b: Right<'_>,
    c: &mut [f32],
    stride: usize,
    write: Write,
) {
    check(shape, a, c.len(), stride);
    let guarded;
    let b = if reads_past_the_end(shape, b) {
        guarded = Panels::from_rows(b.values, b.depth, shape.depth, shape.columns);
        guarded.right()
    } else {
        b
    };
    let (row_step, column_step) = task_size(pool, shape);
    let n_column_tasks = shape.columns.div_ceil(column_step);
    let n_tasks = shape.rows.div_ceil(row_step) * n_column_tasks;
    let c = SharedMut::new(c);
    pool.run(n_tasks, |task| {
        let (row, column) = (
            task / n_column_tasks * row_step,
            task % n_column_tasks * column_step,
        );
        let rows = row..shape.rows.min(row + row_step);
        let columns = column..shape.columns.min(column + column_step);
        // SAFETY: operands were checked above; tasks write disjoint parts of C.
        unsafe { Kernel::detected().block(rows, columns, shape.depth, a, b, c, stride, write) };
    });
}

/// As [`matmul`], on the calling thread alone.
pub(crate) fn matmul_here(
    shape: Shape,
    a: Left<'_>,
    b: Right<'_>,
    c: &mut [f32],
    stride: usize,
    write: Write,
) {
    check(shape, a, c.len(), stride);
    // SAFETY: operands were checked; `c` is borrowed mutably.
    unsafe { matmul_at(shape, a, b, SharedMut::new(c), stride, write) };
}

/// As [`matmul_here`], into memory of which other tasks write other columns.
///
/// # Safety
/// Every element of C must lie in `c`'s memory and be used by this call alone.
pub(crate) unsafe fn matmul_at(
    shape: Shape,
    a: Left<'_>,
    b: Right<'_>,
    c: SharedMut,
    stride: usize,
    write: Write,
) {
    check_left(shape, a);
    let guarded;
    let b = if reads_past_the_end(shape, b) {
        guarded = Panels::from_rows(b.values, b.depth, shape.depth, shape.columns);
        guarded.right()
    } else {
        b
    };
    // SAFETY: A is checked, B is guarded, C is promised by the caller.
    unsafe {
        Kernel::detected().block(
            0..shape.rows,
            0..shape.columns,
            shape.depth,
            a,
            b,
            c,
            stride,
            write,
        )
    };
}

/// dX = dY·W, where `weight` holds W (N, K) as panels over N, made for X·Wᵀ: each task turns the columns it needs.
/// Shapes: `dy` (T, N) with rows `dy_stride` apart, `dx` (T, K).
pub(crate) fn matmul_turned(
    pool: &Pool,
    rows: usize,
    dy: &[f32],
    dy_stride: usize,
    weight: &Panels,
    dx: &mut [f32],
) {
    /// Columns that one task turns: 192 deep they are 144 KiB, a small part of the second-level cache.
    const COLUMNS_PER_TASK: usize = 12 * PANEL;
    let (depth, columns) = (weight.columns(), weight.depth());
    let shape = Shape {
        rows,
        columns,
        depth,
    };
    let dy = Left::rows(dy, dy_stride);
    check(shape, dy, dx.len(), columns);
    let columns_per_task = COLUMNS_PER_TASK.min(
        columns
            .div_ceil(2 * pool.n_threads())
            .next_multiple_of(3 * PANEL),
    );
    let c = SharedMut::new(dx);
    pool.run(columns.div_ceil(columns_per_task), |task| {
        let first = task * columns_per_task;
        let columns = first..columns.min(first + columns_per_task);
        TURNED.with_borrow_mut(|turned| {
            for start in (0..depth).step_by(DEPTH_BLOCK) {
                let block = start..depth.min(start + DEPTH_BLOCK);
                weight.turn(block.clone(), columns.clone(), turned);
                let b = Right {
                    values: turned,
                    panel: PANEL * block.len(),
                    depth: PANEL,
                };
                let a = Left {
                    values: &dy.values[start..],
                    ..dy
                };
                let write = if start == 0 { Write::Set } else { Write::Add };
                // SAFETY: operands were checked above; tasks write disjoint columns of C.
                unsafe {
                    let c = c.skip(first);
                    Kernel::detected().block(
                        0..rows,
                        0..columns.len(),
                        block.len(),
                        a,
                        b,
                        c,
                        shape.columns,
                        write,
                    );
                }
            }
        });
    });
}

thread_local! {
    /// The block of a weight that this thread has turned last.
    static TURNED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Tall products are cut by rows, so that A is read once; flat ones by columns, so that B is.
fn task_size(pool: &Pool, shape: Shape) -> (usize, usize) {
    let tasks_wanted = 2 * pool.n_threads();
    if pool.n_threads() == 1 {
        return (ROWS_PER_TASK, shape.columns.max(1));
    }
    let row_step = if shape.rows >= tasks_wanted * 32 {
        ROWS_PER_TASK.min(shape.rows.div_ceil(tasks_wanted).next_multiple_of(8))
    } else {
        shape.rows.clamp(1, ROWS_PER_TASK)
    };
    let n_row_tasks = shape.rows.div_ceil(row_step).max(1);
    let n_column_tasks = tasks_wanted.div_ceil(n_row_tasks);
    (
        row_step,
        shape
            .columns
            .div_ceil(n_column_tasks)
            .next_multiple_of(3 * PANEL)
            .max(1),
    )
}

fn check(shape: Shape, a: Left<'_>, c_len: usize, stride: usize) {
    check_left(shape, a);
    let c_end = if shape.rows == 0 {
        0
    } else {
        (shape.rows - 1) * stride + shape.columns
    };
    assert!(
        c_end <= c_len,
        "C is too short for {shape:?} — a bug in the caller"
    );
}

fn check_left(shape: Shape, a: Left<'_>) {
    let empty = shape.rows == 0 || shape.depth == 0;
    let a_end = if empty {
        0
    } else {
        (shape.rows - 1) * a.row + (shape.depth - 1) * a.depth + 1
    };
    assert!(
        a_end <= a.values.len(),
        "A is too short for {shape:?} — a bug in the caller"
    );
}

/// Whole panels are loaded: with rows as panels the last one can reach beyond the memory.
fn reads_past_the_end(shape: Shape, b: Right<'_>) -> bool {
    if shape.columns == 0 || shape.depth == 0 {
        return false;
    }
    let end = (shape.columns - 1) / PANEL * b.panel + (shape.depth - 1) * b.depth + PANEL;
    if end <= b.values.len() {
        return false;
    }
    let last = (shape.columns - 1) / PANEL * b.panel
        + (shape.depth - 1) * b.depth
        + (shape.columns - 1) % PANEL;
    assert!(
        b.panel == PANEL && last < b.values.len(),
        "B is too short for {shape:?} — a bug in the caller"
    );
    true
}

impl Kernel {
    /// One rectangle of C: for each group of columns, for each block of the depth, down the rows.
    ///
    /// # Safety
    /// The operands must hold the rectangle; nobody else may use it.
    #[allow(clippy::too_many_arguments)]
    unsafe fn block(
        &self,
        rows: Range<usize>,
        columns: Range<usize>,
        depth: usize,
        a: Left<'_>,
        b: Right<'_>,
        c: SharedMut,
        stride: usize,
        write: Write,
    ) {
        debug_assert!(columns.start.is_multiple_of(PANEL));
        if depth == 0 && write == Write::Set {
            for row in rows.clone() {
                // SAFETY: within the rectangle that the caller promised.
                unsafe { c.slice(row * stride + columns.start..row * stride + columns.end) }
                    .fill(0.0);
            }
        }
        for column in columns.clone().step_by(self.panels * PANEL) {
            let n_columns = (columns.end - column).min(self.panels * PANEL);
            for start in (0..depth).step_by(DEPTH_BLOCK) {
                let n_depth = (depth - start).min(DEPTH_BLOCK);
                for row in rows.clone().step_by(self.rows) {
                    let n_rows = (rows.end - row).min(self.rows);
                    // SAFETY: all offsets lie within the operands, which the caller promised.
                    unsafe {
                        let tile = Tile {
                            depth: n_depth,
                            a: a.values.as_ptr().add(row * a.row + start * a.depth),
                            a_row: a.row,
                            a_depth: a.depth,
                            b: b.values
                                .as_ptr()
                                .add(column / PANEL * b.panel + start * b.depth),
                            b_panel: b.panel,
                            b_depth: b.depth,
                            c: c.at(row * stride + column),
                            c_row: stride,
                            n_columns,
                            add: start > 0 || write == Write::Add,
                        };
                        self.run(n_rows, n_columns.div_ceil(PANEL), &tile);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
