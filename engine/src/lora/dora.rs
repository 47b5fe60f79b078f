//! Owns the norms by which DoRA divides a changed weight's rows. Source: Liu et al. 2024 (arXiv:2402.09353), section 4.

use crate::cpu::gemm::Weight;
use crate::cpu::pool::Pool;
use crate::cpu::simd::vectorized;

/// A low-rank change s·B·A of some rows of a weight.
pub(crate) struct Change<'a> {
    pub scale: f32,
    /// (r, in)
    pub a: &'a [f32],
    /// (out, r)
    pub b: &'a [f32],
}

/// The norms of the rows from `first` on of W plus all `changes`, as many as `norms` holds.
pub(crate) fn row_norms(
    pool: &Pool,
    weight: &Weight,
    first: usize,
    changes: &[Change<'_>],
    norms: &mut [f32],
) {
    let n_in = weight.n_in();
    let n_out = norms.len();
    pool.for_rows(n_out, (norms, 1), |rows, norms| {
        let mut sum = vec![0.0; n_in];
        for (i, norm) in rows.zip(norms) {
            weight.copy_row(first + i, &mut sum);
            for Change { scale, a, b } in changes {
                let r = a.len() / n_in;
                for (a, b) in a.chunks_exact(n_in).zip(&b[i * r..(i + 1) * r]) {
                    add(&mut sum, scale * b, a);
                }
            }
            *norm = norm_of(&sum);
        }
    });
}

vectorized! {
    fn add(x: &mut [f32], factor: f32, y: &[f32]) {
        for (x, y) in x.iter_mut().zip(y) {
            *x = y.mul_add(factor, *x);
        }
    }
}

vectorized! {
    fn norm_of(x: &[f32]) -> f32 {
        let mut lanes = [0.0f32; 32];
        for part in x.chunks(32) {
            for (lane, x) in lanes.iter_mut().zip(part) {
                *lane = x.mul_add(*x, *lane);
            }
        }
        lanes.iter().map(|&x| f64::from(x)).sum::<f64>().sqrt() as f32
    }
}
