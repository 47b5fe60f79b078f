//! SwiGLU: silu(gate) ∘ up. Source: Shazeer 2020 (arXiv:2002.05202).

use crate::pool::Pool;
use crate::simd::{exp, vectorized};

/// Shapes: `gate_up` (T, 2F), gate before up; `y` (T, F).
pub(crate) fn forward(pool: &Pool, gate_up: &[f32], y: &mut [f32], inner: usize) {
    pool.for_rows(gate_up.len() / (2 * inner), [(y, inner)], |rows, [y]| {
        for (row, y) in rows.zip(y.chunks_exact_mut(inner)) {
            let (gate, up) = gate_up[row * 2 * inner..(row + 1) * 2 * inner].split_at(inner);
            forward_row(gate, up, y);
        }
    });
}

vectorized! {
    fn forward_row(gate: &[f32], up: &[f32], y: &mut [f32]) {
        for ((y, g), u) in y.iter_mut().zip(gate).zip(up) {
            *y = g / (1.0 + exp(-g)) * u;
        }
    }
}

/// Replaces `gate_up` by its gradient; `dy` (T, F) is the gradient of the forward's result.
pub(crate) fn backward(pool: &Pool, dy: &[f32], gate_up: &mut [f32], inner: usize) {
    let n_rows = gate_up.len() / (2 * inner);
    pool.for_rows(n_rows, [(gate_up, 2 * inner)], |rows, [gate_up]| {
        for (row, gate_up) in rows.zip(gate_up.chunks_exact_mut(2 * inner)) {
            let (gate, up) = gate_up.split_at_mut(inner);
            backward_row(&dy[row * inner..(row + 1) * inner], gate, up);
        }
    });
}

vectorized! {
    fn backward_row(dy: &[f32], gate: &mut [f32], up: &mut [f32]) {
        for ((g, u), dy) in gate.iter_mut().zip(up).zip(dy) {
            let sigmoid = 1.0 / (1.0 + exp(-*g));
            let silu = *g * sigmoid;
            *g = dy * *u * (sigmoid + silu * (1.0 - sigmoid));
            *u = dy * silu;
        }
    }
}
