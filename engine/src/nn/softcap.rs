//! Soft caps: s becomes c·tanh(s/c), which stays below c. Source: Gemma 2 (arXiv:2408.00118), §2.

use crate::cpu::simd::{tanh, vectorized};

vectorized! {
    /// c·tanh(scale·x/c)
    pub(crate) fn cap(x: &mut [f32], scale: f32, cap: f32) {
        for x in x.iter_mut() {
            *x = cap * tanh(*x * scale / cap);
        }
    }
}

vectorized! {
    /// Each x becomes c·tanh(x/c), and its slope what that does to a small change: 1 − tanh²(x/c).
    pub(crate) fn cap_with_slopes(x: &mut [f32], cap: f32, slopes: &mut [f32]) {
        for (x, slope) in x.iter_mut().zip(slopes) {
            let share = tanh(*x / cap);
            *x = cap * share;
            *slope = 1.0 - share * share;
        }
    }
}

vectorized! {
    /// Gradients behind a cap become those before it.
    pub(crate) fn uncap_gradient[E](slopes: &[f32], d: &mut [E]) {
        for (d, slope) in d.iter_mut().zip(slopes) {
            *d = E::from_f32(d.to_f32() * slope);
        }
    }
}
