//! Owns sums over the rows of two matrices, AᵀB: the gradients of the low-rank matrices.

use std::cell::RefCell;

use super::{
    DEPTH_BLOCK, Left, PANEL, Right, Shape, Write, check_c, pack, pack_left_into, packed_left_len,
    panels_len, rectangle, summed,
};
use crate::cpu::buffer::Buffer;
use crate::cpu::element::Element;
use crate::cpu::pool::{Pool, SharedMut};

/// Columns of the wider matrix that one task takes: packed, they stay in the second-level cache.
const WIDE_PER_TASK: usize = 6 * PANEL;

thread_local! {
    /// The narrower matrix, and the part of the wider one, that this thread has packed last.
    static PACKED: [RefCell<Buffer<u32>>; 2] = Default::default();
}

/// C += AᵀB. Shapes: `a` (T, M) with rows `a_stride` apart, `b` (T, N) with rows `b_stride` apart, `c` (M, N); `shape.depth` is T.
pub(crate) fn add_outer<E: Element>(
    pool: &Pool,
    shape: Shape,
    a: &[E],
    a_stride: usize,
    b: &[E],
    b_stride: usize,
    c: &mut [f32],
) {
    check_c(shape, c.len(), shape.columns);
    let step = DEPTH_BLOCK * E::PER_WORD;
    for start in (0..shape.depth).step_by(step) {
        let shape = Shape {
            depth: step.min(shape.depth - start),
            ..shape
        };
        let (a, b) = (&a[start * a_stride..], &b[start * b_stride..]);
        add_block(pool, shape, a, a_stride, b, b_stride, SharedMut::new(c));
    }
}

/// The narrower matrix is packed once, the wider piece by piece, each by the task that needs it.
fn add_block<E: Element>(
    pool: &Pool,
    shape: Shape,
    a: &[E],
    a_stride: usize,
    b: &[E],
    b_stride: usize,
    c: SharedMut<f32>,
) {
    let Shape {
        rows,
        columns,
        depth,
    } = shape;
    // Either can be the left operand or the right one.
    let room = |n| packed_left_len::<E>(n, depth).max(panels_len::<E>(n, depth));
    let a_is_narrow = rows <= columns;
    let n_narrow = rows.min(columns);
    let mut narrow = PACKED.with(|[narrow, _]| narrow.take());
    narrow
        .ensure(room(n_narrow))
        .expect("memory for a gradient's operand");
    if a_is_narrow {
        pack_left_into::<E, E>(a, a_stride, depth, rows, &mut narrow);
    } else {
        pack::rows::<PANEL, E, E>(b, b_stride, depth, columns, 1.0, &mut narrow);
    }
    let n_wide = rows.max(columns);
    pool.run(n_wide.div_ceil(WIDE_PER_TASK), |task| {
        let first = task * WIDE_PER_TASK;
        let n = WIDE_PER_TASK.min(n_wide - first);
        PACKED.with(|[_, wide]| {
            let wide = &mut *wide.borrow_mut();
            wide.ensure(room(n))
                .expect("memory for a block of a gradient's operand");
            let (shape, at, left, right);
            if a_is_narrow {
                pack::rows::<PANEL, E, E>(&b[first..], b_stride, depth, n, 1.0, wide);
                (shape, at) = (shape_of(rows, n, depth), first);
                (left, right) = (
                    Left::<E>::packed(&narrow, depth),
                    Right::panels(wide, depth),
                );
            } else {
                pack_left_into::<E, E>(&a[first..], a_stride, depth, n, wide);
                (shape, at) = (shape_of(n, columns, depth), first * columns);
                (left, right) = (
                    Left::<E>::packed(wide, depth),
                    Right::panels(&narrow, depth),
                );
            }
            // SAFETY: C was checked above; tasks have columns or rows of their own.
            unsafe {
                rectangle(
                    0..shape.rows,
                    shape,
                    left,
                    right,
                    summed(c.at(at), Write::Add),
                    columns,
                )
            };
        });
    });
    PACKED.with(|[place, _]| place.replace(narrow));
}

fn shape_of(rows: usize, columns: usize, depth: usize) -> Shape {
    Shape {
        rows,
        columns,
        depth,
    }
}
