//! Owns the largest singular values and vectors of a matrix, by subspace iteration in f64; the same matrix always gives
//! the same bits. Source: Halko, Martinsson & Tropp 2011 (arXiv:0909.4061), with Rayleigh–Ritz in every iteration.

use crate::cpu::simd::vectorized;
use crate::rng::{Purpose, Stream};

/// Up to this many rows or columns the subspace is the whole space, and the result exact. It bounds the time of
/// [`eigen`], which is cubic.
const EXACT: usize = 128;
/// Directions beyond twice the wanted ones: the error shrinks, per iteration, by the square of the ratio of the first
/// singular value left out to the last one wanted.
const OVERSAMPLING: usize = 16;
/// What does not settle in so many iterations has nearly equal singular values, of which any will do.
const MAX_ITERATIONS: usize = 24;
/// Sum of the squared sines of the angles by which the subspace may still turn.
const SETTLED: f64 = 1e-13;

/// The `r` largest: W ≈ U·diag(s)·Vᵀ. Each right vector's largest entry is positive.
pub(crate) struct Svd {
    /// r vectors (m) end to end, each times its singular value.
    pub us: Vec<f64>,
    /// Descending.
    pub s: Vec<f64>,
    /// r vectors (n) end to end.
    pub v: Vec<f64>,
}

/// Of W (m, n), row-major, finite; `r` is at most the smaller side.
pub(crate) fn largest(w: &[f32], n: usize, r: usize) -> Svd {
    let w: Vec<f64> = w.iter().map(|&x| f64::from(x)).collect();
    let m = w.len() / n;
    let smaller = m.min(n);
    let k = if smaller <= EXACT {
        smaller
    } else {
        smaller.min(2 * r + OVERSAMPLING)
    };
    let mut v = start(k, n);
    let mut before = vec![0.0; r * n];
    for iteration in 1.. {
        orthonormalize(&mut v, n);
        let y = rows_times(&v, n, &w);
        let (squares, turn) = eigen(gram(&y, m));
        v = combine(&turn, &v, n);
        let us = combine(&turn, &y, m);
        let settled = r as f64 - overlap(&before, &v[..r * n], n) <= SETTLED;
        if settled || iteration == MAX_ITERATIONS {
            let s = squares[..r].iter().map(|x| x.max(0.0).sqrt()).collect();
            return with_signs(Svd {
                us: us[..r * m].to_vec(),
                s,
                v: v[..r * n].to_vec(),
            });
        }
        before.copy_from_slice(&v[..r * n]);
        v = combine(&us, &w, n);
    }
    unreachable!("the loop ends at MAX_ITERATIONS")
}

/// `k` vectors (n) of noise.
fn start(k: usize, n: usize) -> Vec<f64> {
    let stream = Stream::new(0, Purpose::AdapterInit, u64::MAX);
    (0..(k * n) as u64)
        .map(|i| 2.0 * stream.uniform_f64(i) - 1.0)
        .collect()
}

/// Gram–Schmidt over vectors (n) end to end, twice over each for f64's full accuracy; what depends on those before
/// becomes zero.
fn orthonormalize(v: &mut [f64], n: usize) {
    for i in 0..v.len() / n {
        let (before, rest) = v.split_at_mut(i * n);
        let x = &mut rest[..n];
        let length = dot(x, x).sqrt();
        for _ in 0..2 {
            for q in before.chunks_exact(n) {
                let along = dot(q, x);
                add(x, -along, q);
            }
        }
        let left = dot(x, x).sqrt();
        let factor = if left > 1e-12 * length {
            1.0 / left
        } else {
            0.0
        };
        x.iter_mut().for_each(|x| *x *= factor);
    }
}

/// For each vector (n) of `v`, its products with the rows of `w` (m, n): as many vectors (m).
fn rows_times(v: &[f64], n: usize, w: &[f64]) -> Vec<f64> {
    let m = w.len() / n;
    let mut out = vec![0.0; v.len() / n * m];
    for (i, row) in w.chunks_exact(n).enumerate() {
        for (k, v) in v.chunks_exact(n).enumerate() {
            out[k * m + i] = dot(row, v);
        }
    }
    out
}

/// For each row of `factors` (k, p), that combination of the p rows (n) of `v`: k vectors (n).
fn combine(factors: &[f64], v: &[f64], n: usize) -> Vec<f64> {
    let p = v.len() / n;
    let mut out = vec![0.0; factors.len() / p * n];
    for (i, row) in v.chunks_exact(n).enumerate() {
        for (factors, out) in factors.chunks_exact(p).zip(out.chunks_exact_mut(n)) {
            add(out, factors[i], row);
        }
    }
    out
}

/// The products of vectors (m) end to end with each other.
fn gram(y: &[f64], m: usize) -> Vec<f64> {
    let rows = || y.chunks_exact(m);
    rows()
        .flat_map(|a| rows().map(move |b| dot(a, b)))
        .collect()
}

/// Sum of the squared products of each vector of one orthonormal set with each of another.
fn overlap(a: &[f64], b: &[f64], n: usize) -> f64 {
    rows_times(a, n, b).iter().map(|x| x * x).sum()
}

/// Eigenvalues, descending, and eigenvectors, as rows, of a symmetric matrix. Source: Jacobi's cyclic rotations, as in
/// Golub & Van Loan, Matrix Computations, section 8.5.
fn eigen(mut g: Vec<f64>) -> (Vec<f64>, Vec<f64>) {
    let k = g.len().isqrt();
    let mut q: Vec<f64> = (0..k * k)
        .map(|i| if i / k == i % k { 1.0 } else { 0.0 })
        .collect();
    // Quadratic at the end: ten sweeps settle hundreds of rows, and what is settled costs a sweep of comparisons.
    for _ in 0..30 {
        let mut has_turned = false;
        for a in 0..k {
            for b in a + 1..k {
                let (off, aa, bb) = (g[a * k + b], g[a * k + a], g[b * k + b]);
                if off.abs() > 1e-16 * (aa.abs() * bb.abs()).sqrt() && off.abs() > f64::MIN_POSITIVE
                {
                    has_turned = true;
                    let theta = (bb - aa) / (2.0 * off);
                    let t = theta.signum() / (theta.abs() + theta.hypot(1.0));
                    let cos = 1.0 / t.hypot(1.0);
                    rotate_columns(&mut g, k, a, b, cos, t * cos);
                    rotate_rows(&mut g, k, a, b, cos, t * cos);
                    rotate_rows(&mut q, k, a, b, cos, t * cos);
                }
            }
        }
        if !has_turned {
            break;
        }
    }
    let mut order: Vec<usize> = (0..k).collect();
    order.sort_by(|&i, &j| g[j * k + j].total_cmp(&g[i * k + i]));
    let values = order.iter().map(|&i| g[i * k + i]).collect();
    let vectors = order.iter().flat_map(|&i| q[i * k..(i + 1) * k].to_vec());
    (values, vectors.collect())
}

fn rotate_rows(g: &mut [f64], k: usize, a: usize, b: usize, cos: f64, sin: f64) {
    let (upper, lower) = g.split_at_mut(b * k);
    for (x, y) in upper[a * k..(a + 1) * k].iter_mut().zip(lower) {
        (*x, *y) = (cos * *x - sin * *y, sin * *x + cos * *y);
    }
}

fn rotate_columns(g: &mut [f64], k: usize, a: usize, b: usize, cos: f64, sin: f64) {
    for row in g.chunks_exact_mut(k) {
        (row[a], row[b]) = (cos * row[a] - sin * row[b], sin * row[a] + cos * row[b]);
    }
}

fn with_signs(mut svd: Svd) -> Svd {
    let r = svd.s.len();
    let (m, n) = (svd.us.len() / r, svd.v.len() / r);
    for (u, v) in svd.us.chunks_exact_mut(m).zip(svd.v.chunks_exact_mut(n)) {
        let largest = v
            .iter()
            .fold(0.0f64, |x, &y| if y.abs() > x.abs() { y } else { x });
        if largest < 0.0 {
            u.iter_mut().chain(v).for_each(|x| *x = -*x);
        }
    }
    svd
}

vectorized! {
    fn dot(a: &[f64], b: &[f64]) -> f64 {
        let mut lanes = [0.0f64; 32];
        let (a, a_rest) = a.as_chunks::<32>();
        let (b, b_rest) = b.as_chunks::<32>();
        for (a, b) in a.iter().zip(b) {
            for (lane, (a, b)) in lanes.iter_mut().zip(a.iter().zip(b)) {
                *lane = a.mul_add(*b, *lane);
            }
        }
        let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
        lanes.iter().sum::<f64>() + rest
    }
}

vectorized! {
    /// x += factor·y
    fn add(x: &mut [f64], factor: f64, y: &[f64]) {
        for (x, y) in x.iter_mut().zip(y) {
            *x = y.mul_add(factor, *x);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(n: usize) -> Vec<f64> {
        let stream = Stream::new(5, Purpose::Sampling, 1);
        (0..n as u64).map(|i| stream.uniform_f64(i) - 0.5).collect()
    }

    /// A matrix (m, n) with the singular values 1, q, q², …, and its vectors.
    fn known(m: usize, n: usize, q: f64) -> (Vec<f32>, Vec<f64>, Vec<f64>) {
        let k = m.min(n);
        let mut u = noise(k * m);
        let mut v = noise(k * n);
        orthonormalize(&mut u, m);
        orthonormalize(&mut v, n);
        let mut w = vec![0.0; m * n];
        for ((u, v), i) in u.chunks_exact(m).zip(v.chunks_exact(n)).zip(0..) {
            for (row, u) in w.chunks_exact_mut(n).zip(u) {
                add(row, u * q.powi(i), v);
            }
        }
        (w.iter().map(|&x| x as f32).collect(), u, v)
    }

    #[test]
    fn the_largest_singular_vectors_are_found_in_every_shape() {
        // Exactly, wide and tall, and by iteration.
        for (m, n, r, q) in [
            (40, 70, 7, 0.95),
            (70, 40, 40, 0.9),
            (200, 150, 6, 0.96),
            (33, 33, 1, 0.5),
        ] {
            let (w, u, v) = known(m, n, q);
            let svd = largest(&w, n, r);
            for i in 0..r {
                // 2e-7: the matrix was rounded to f32.
                let s = q.powi(i as i32);
                assert!((svd.s[i] - s).abs() < 2e-7, "{m}x{n}, value {i}");
                let of = |a: &[f64], size: usize| a[i * size..(i + 1) * size].to_vec();
                let along_v = dot(&of(&svd.v, n), &of(&v, n));
                let along_u = dot(&of(&svd.us, m), &of(&u, m)) / svd.s[i];
                // A vector turns by the rounding over the distance to the next value, s·(1−q) > 1e-3·s.
                assert!((along_v.abs() - 1.0).abs() < 1e-6 && along_v.signum() == along_u.signum());
                assert!((along_u.abs() - 1.0).abs() < 1e-6, "{m}x{n}, vector {i}");
            }
        }
    }

    #[test]
    fn a_matrix_of_low_rank_has_zeros_for_the_rest() {
        let row: Vec<f32> = (0..30).map(|j| j as f32 - 11.0).collect();
        let w: Vec<f32> = (0..20)
            .flat_map(|i| row.iter().map(move |x| x * i as f32))
            .collect();
        let svd = largest(&w, 30, 4);
        assert!(
            svd.s[0] > 1e3 && svd.s[1..].iter().all(|s| s.abs() < 1e-4),
            "{:?}",
            svd.s
        );
        assert!(svd.us.iter().chain(&svd.v).all(|x| x.is_finite()));
    }
}
