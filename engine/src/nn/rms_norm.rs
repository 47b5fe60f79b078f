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
            *rstd = factor(x, eps);
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

/// The factor of each row of `x`, (T).
pub(crate) fn factors<E: Element>(pool: &Pool, width: usize, x: &[E], eps: f32, rstd: &mut [f32]) {
    pool.for_rows(rstd.len(), (rstd, 1), |rows, rstd| {
        for (row, rstd) in rows.zip(rstd) {
            *rstd = factor(&x[row * width..(row + 1) * width], eps);
        }
    });
}

/// Adds the normed `x`, whose factors are known, to `onto`: the norm after a branch.
pub(crate) fn add<E: Element>(
    pool: &Pool,
    x: &[E],
    weight: &[f32],
    rstd: &[f32],
    onto: &mut [f32],
) {
    let width = weight.len();
    pool.for_rows(rstd.len(), (onto, width), |rows, onto| {
        for (row, onto) in rows.zip(onto.chunks_exact_mut(width)) {
            add_row(&x[row * width..(row + 1) * width], weight, rstd[row], onto);
        }
    });
}

/// 1/√(mean(x²) + ε)
pub(super) fn factor<E: Element>(x: &[E], eps: f32) -> f32 {
    1.0 / (mean_square(x) + eps).sqrt()
}

vectorized! {
    fn mean_square[E](x: &[E]) -> f32 {
        sum(x, |x| x.to_f32() * x.to_f32()) / x.len() as f32
    }
}

vectorized! {
    pub(super) fn scale_row[X, E](x: &[X], weight: &[f32], rstd: f32, y: &mut [E]) {
        for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
            *y = E::from_f32(x.to_f32() * rstd * w);
        }
    }
}

vectorized! {
    fn add_row[E](x: &[E], weight: &[f32], rstd: f32, y: &mut [f32]) {
        for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
            *y += x.to_f32() * rstd * w;
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

/// As [`backward`], with the gradient of the result in `d`, which becomes that of the input.
pub(crate) fn backward_in_place<E: Element>(
    pool: &Pool,
    x: &[E],
    weight: &[f32],
    rstd: &[f32],
    d: &mut [E],
) {
    let width = weight.len();
    pool.for_rows(rstd.len(), (d, width), |rows, d| {
        for (row, d) in rows.zip(d.chunks_exact_mut(width)) {
            backward_row_in_place(&x[row * width..(row + 1) * width], weight, rstd[row], d);
        }
    });
}

/// rstd³·mean(dy ∘ weight ∘ x)
#[inline(always)]
fn share_of_x<D: Element, X: Element>(dy: &[D], x: &[X], weight: &[f32], r: f32) -> f32 {
    let total = sum_of_three(dy, weight, x, |dy, w, x| dy.to_f32() * w * x.to_f32());
    total * r * r * r / weight.len() as f32
}

vectorized! {
    fn backward_row[E](dy: &[E], x: &[f32], weight: &[f32], r: f32, dx: &mut [f32]) {
        let width = weight.len();
        let (dy, x) = (&dy[..width], &x[..width]);
        let c = share_of_x(dy, x, weight, r);
        for (((dx, x), dy), w) in dx.iter_mut().zip(x).zip(dy).zip(weight) {
            *dx += r * dy.to_f32() * w - c * x;
        }
    }
}

vectorized! {
    pub(super) fn backward_row_in_place[E](x: &[E], weight: &[f32], r: f32, d: &mut [E]) {
        let c = share_of_x(d, x, weight, r);
        for ((d, x), w) in d.iter_mut().zip(x).zip(weight) {
            *d = E::from_f32(r * d.to_f32() * w - c * x.to_f32());
        }
    }
}
