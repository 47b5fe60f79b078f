//! Between the stream, which is f32, and what linears read and write.

use crate::cpu::element::Element;
use crate::cpu::pool::Pool;
use crate::cpu::simd::vectorized;

/// `x` (T, `width`) in the numbers that linears read.
pub(crate) fn round<E: Element>(pool: &Pool, width: usize, x: &[f32], to: &mut [E]) {
    pool.for_rows(x.len() / width, (to, width), |rows, to| {
        round_all(&x[rows.start * width..rows.end * width], to);
    });
}

vectorized! {
    pub(crate) fn round_all[E](x: &[f32], to: &mut [E]) {
        for (to, x) in to.iter_mut().zip(x) {
            *to = E::from_f32(*x);
        }
    }
}

/// Adds `x` (T, `width`) to `onto`.
pub(crate) fn add<E: Element>(pool: &Pool, width: usize, x: &[E], onto: &mut [f32]) {
    pool.for_rows(x.len() / width, (onto, width), |rows, onto| {
        add_all(&x[rows.start * width..rows.end * width], onto);
    });
}

vectorized! {
    fn add_all[E](x: &[E], onto: &mut [f32]) {
        for (onto, x) in onto.iter_mut().zip(x) {
            *onto += x.to_f32();
        }
    }
}
