//! Rotary positions: pairs (j, j + C/2) of each head are turned by an angle that grows with the position.
//! Source: Su et al. 2021 (arXiv:2104.09864), in the half-split layout of Hugging Face.

use crate::config::{ModelConfig, RopeScaling};
use crate::cpu::element::Element;
use crate::cpu::pool::Pool;
use crate::cpu::simd::vectorized;

/// The frequencies of a model.
pub(crate) struct Rope {
    /// Radians per position, for each of the C/2 pairs.
    inv_freq: Vec<f64>,
    head_dim: usize,
}

/// Cosine and sine for the rows of a batch, (T, C/2) each.
#[derive(Default)]
pub(crate) struct Angles {
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
}

impl Rope {
    pub fn new(config: &ModelConfig) -> Self {
        let head_dim = config.head_dim;
        // Rounded to f32 as the reference keeps them; the angle itself is then exact.
        let inv_freq = (0..head_dim / 2)
            .map(|j| {
                let base = 1.0 / config.rope_theta.powf(2.0 * j as f32 / head_dim as f32);
                f64::from(scale(config.rope_scaling, base))
            })
            .collect();
        Self { inv_freq, head_dim }
    }

    /// The angles of rows at the given positions; memory is reused.
    pub fn angles(&self, positions: impl Iterator<Item = usize>, out: &mut Angles) {
        out.half = self.head_dim / 2;
        out.cos.clear();
        out.sin.clear();
        for position in positions {
            for frequency in &self.inv_freq {
                let (sin, cos) = f64::from((position as f64 * frequency) as f32).sin_cos();
                out.cos.push(cos as f32);
                out.sin.push(sin as f32);
            }
        }
    }
}

/// Source: the `linear` and `llama3` rules of transformers' `modeling_rope_utils`.
fn scale(scaling: RopeScaling, frequency: f32) -> f32 {
    match scaling {
        RopeScaling::None => frequency,
        RopeScaling::Linear { factor } => frequency / factor,
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => {
            let wavelength = 2.0 * std::f32::consts::PI / frequency;
            if wavelength < original_max_position_embeddings / high_freq_factor {
                frequency
            } else if wavelength > original_max_position_embeddings / low_freq_factor {
                frequency / factor
            } else {
                let share = (original_max_position_embeddings / wavelength - low_freq_factor)
                    / (high_freq_factor - low_freq_factor);
                (1.0 - share) * frequency / factor + share * frequency
            }
        }
    }
}

/// Which way the pairs are turned.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    Forward,
    /// The transpose of a rotation: for gradients.
    Back,
}

/// Turns the first `n_heads` heads of each row of `x` in place. Shape: `x` (T, `width`).
pub(crate) fn rotate<E: Element>(
    pool: &Pool,
    angles: &Angles,
    n_heads: usize,
    x: &mut [E],
    width: usize,
    turn: Turn,
) {
    let (half, sign) = (angles.half, if turn == Turn::Forward { 1.0 } else { -1.0 });
    pool.for_rows(x.len() / width, (x, width), |rows, x| {
        for (row, x) in rows.zip(x.chunks_exact_mut(width)) {
            let cos = &angles.cos[row * half..(row + 1) * half];
            let sin = &angles.sin[row * half..(row + 1) * half];
            rotate_row(cos, sin, sign, &mut x[..n_heads * 2 * half]);
        }
    });
}

vectorized! {
    fn rotate_row[E](cos: &[f32], sin: &[f32], sign: f32, heads: &mut [E]) {
        let half = cos.len();
        for head in heads.chunks_exact_mut(2 * half) {
            let (first, second) = head.split_at_mut(half);
            for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                let (x, y, sin) = (a.to_f32(), b.to_f32(), sign * sin);
                *a = E::from_f32(x * cos - y * sin);
                *b = E::from_f32(y * cos + x * sin);
            }
        }
    }
}
