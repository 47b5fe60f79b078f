//! Root-mean-square normalisation. Source: Zhang & Sennrich 2019, eq. 4 (arXiv:1910.07467).

use crate::cpu::element::Element;
use crate::cpu::pool::Pool;
use crate::cpu::simd::{sum, sum_of_three, vectorized};

/// Scales each row of `x` to unit root mean square, then by `weight`; `rstd` keeps each row's factor for the backward.
/// Shapes: `x` and `y` (T, D), `weight` (D), `rstd` (T).
pub(crate) fn forward<E: Element>(
    pool: &Pool,
    x: &[f32],
    weight: &[f32],
    eps: f32,
    y: &mut [E],
    rstd: &mut [f32],
) {
    let width = weight.len();
    pool.for_rows_of_two(rstd.len(), (y, width), (rstd, 1), |rows, y, rstd| {
        for ((row, y), rstd) in rows.zip(y.chunks_exact_mut(width)).zip(rstd) {
            let x = &x[row * width..(row + 1) * width];
            *rstd = 1.0 / (mean_square(x) + eps).sqrt();
            scale_row(x, weight, *rstd, y);
        }
    });
}

/// The forward's `y` again, from the `rstd` it kept.
pub(crate) fn recompute<E: Element>(
    pool: &Pool,
    x: &[f32],
    weight: &[f32],
    rstd: &[f32],
    y: &mut [E],
) {
    let width = weight.len();
    pool.for_rows(rstd.len(), (y, width), |rows, y| {
        for (row, y) in rows.zip(y.chunks_exact_mut(width)) {
            scale_row(&x[row * width..(row + 1) * width], weight, rstd[row], y);
        }
    });
}

vectorized! {
    fn mean_square(x: &[f32]) -> f32 {
        sum(x, |x| x * x) / x.len() as f32
    }
}

vectorized! {
    fn scale_row[E](x: &[f32], weight: &[f32], rstd: f32, y: &mut [E]) {
        for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
            *y = E::from_f32(x * rstd * w);
        }
    }
}

/// Adds the gradient of the input to `dx`: with g = dy ∘ weight, dx += rstd·g − x·rstd³·mean(g ∘ x).
/// Shapes: `dy`, `x`, `dx` (T, D).
pub(crate) fn backward<E: Element>(
    pool: &Pool,
    dy: &[E],
    x: &[f32],
    weight: &[f32],
    rstd: &[f32],
    dx: &mut [f32],
) {
    let width = weight.len();
    pool.for_rows(rstd.len(), (dx, width), |rows, dx| {
        for (row, dx) in rows.zip(dx.chunks_exact_mut(width)) {
            let at = row * width..(row + 1) * width;
            backward_row(&dy[at.clone()], &x[at], weight, rstd[row], dx);
        }
    });
}

vectorized! {
    fn backward_row[E](dy: &[E], x: &[f32], weight: &[f32], r: f32, dx: &mut [f32]) {
        let width = weight.len();
        let (dy, x) = (&dy[..width], &x[..width]);
        let c = sum_of_three(dy, weight, x, |dy, w, x| dy.to_f32() * w * x) * r * r * r / width as f32;
        for (((dx, x), dy), w) in dx.iter_mut().zip(x).zip(dy).zip(weight) {
            *dx += r * dy.to_f32() * w - c * x;
        }
    }
}
