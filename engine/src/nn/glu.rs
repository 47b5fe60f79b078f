//! Gated linear units: act(gate) ∘ up. Source: Shazeer 2020 (arXiv:2002.05202); the GELU is the tanh form of
//! Hendrycks & Gimpel 2016 (arXiv:1606.08415), written with ½(1 + tanh u) = σ(2u).

use crate::config::Activation;
use crate::cpu::element::Element;
use crate::cpu::pool::Pool;
use crate::cpu::simd::{exp, vectorized};

/// Shapes: `gate_up` (T, 2F), gate before up; `y` (T, F).
pub(crate) fn forward<E: Element>(
    pool: &Pool,
    act: Activation,
    gate_up: &[E],
    y: &mut [E],
    inner: usize,
) {
    let forward_row = match act {
        Activation::Silu => silu_row::<E>,
        Activation::GeluTanh => gelu_row::<E>,
    };
    pool.for_rows(gate_up.len() / (2 * inner), (y, inner), |rows, y| {
        for (row, y) in rows.zip(y.chunks_exact_mut(inner)) {
            let (gate, up) = gate_up[row * 2 * inner..(row + 1) * 2 * inner].split_at(inner);
            forward_row(gate, up, y);
        }
    });
}

vectorized! {
    fn silu_row[E](gate: &[E], up: &[E], y: &mut [E]) {
        for ((y, g), u) in y.iter_mut().zip(gate).zip(up) {
            let g = g.to_f32();
            *y = E::from_f32(g / (1.0 + exp(-g)) * u.to_f32());
        }
    }
}

/// √(2/π), and the cubic term's factor.
const GELU: (f32, f32) = (0.797_884_6, 0.044_715);

vectorized! {
    fn gelu_row[E](gate: &[E], up: &[E], y: &mut [E]) {
        for ((y, g), u) in y.iter_mut().zip(gate).zip(up) {
            let g = g.to_f32();
            let inside = GELU.0 * (g + GELU.1 * g * g * g);
            *y = E::from_f32(g / (1.0 + exp(-2.0 * inside)) * u.to_f32());
        }
    }
}

/// Replaces `gate_up` by its gradient; `dy` (T, F) is the gradient of the forward's result.
pub(crate) fn backward<E: Element>(
    pool: &Pool,
    act: Activation,
    dy: &[E],
    gate_up: &mut [E],
    inner: usize,
) {
    let backward_row = match act {
        Activation::Silu => silu_backward_row::<E>,
        Activation::GeluTanh => gelu_backward_row::<E>,
    };
    let n_rows = gate_up.len() / (2 * inner);
    pool.for_rows(n_rows, (gate_up, 2 * inner), |rows, gate_up| {
        for (row, gate_up) in rows.zip(gate_up.chunks_exact_mut(2 * inner)) {
            let (gate, up) = gate_up.split_at_mut(inner);
            backward_row(&dy[row * inner..(row + 1) * inner], gate, up);
        }
    });
}

vectorized! {
    fn silu_backward_row[E](dy: &[E], gate: &mut [E], up: &mut [E]) {
        for ((gate, up), dy) in gate.iter_mut().zip(up).zip(dy) {
            let (g, u, dy) = (gate.to_f32(), up.to_f32(), dy.to_f32());
            let sigmoid = 1.0 / (1.0 + exp(-g));
            let silu = g * sigmoid;
            *gate = E::from_f32(dy * u * (sigmoid + silu * (1.0 - sigmoid)));
            *up = E::from_f32(dy * silu);
        }
    }
}

vectorized! {
    fn gelu_backward_row[E](dy: &[E], gate: &mut [E], up: &mut [E]) {
        for ((gate, up), dy) in gate.iter_mut().zip(up).zip(dy) {
            let (g, u, dy) = (gate.to_f32(), up.to_f32(), dy.to_f32());
            let inside = GELU.0 * (g + GELU.1 * g * g * g);
            let sigmoid = 1.0 / (1.0 + exp(-2.0 * inside));
            let slope = 2.0 * GELU.0 * (1.0 + 3.0 * GELU.1 * g * g);
            *gate = E::from_f32(dy * u * (sigmoid + g * sigmoid * (1.0 - sigmoid) * slope));
            *up = E::from_f32(dy * g * sigmoid);
        }
    }
}
