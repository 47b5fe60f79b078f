//! Rotary positions: pairs of channels of each head are turned by an angle that grows with the position.
//! Source: Su et al. 2021 (arXiv:2104.09864), in the layouts of Hugging Face.

use crate::config::{LayerRope, ModelConfig, RopePairs, RopeScaling};
use crate::cpu::element::Element;
use crate::cpu::pool::Pool;
use crate::cpu::simd::vectorized;

/// The rotations of a model, which layers share.
pub(crate) struct Ropes {
    ropes: Vec<Rope>,
    /// For each layer its rotation; `None`: positions turn nothing.
    of_layer: Vec<Option<usize>>,
}

/// The frequencies of one rotation.
struct Rope {
    /// Radians per position, for each of the `rotary_dim`/2 pairs.
    inv_freq: Vec<f64>,
    /// Those of documents with more tokens than the number.
    long: Option<(usize, Vec<f64>)>,
    /// Of cosine and sine.
    factor: f32,
    head_dim: usize,
    pairs: RopePairs,
}

/// A place in a document.
#[derive(Clone, Copy)]
pub(crate) struct Position {
    pub at: usize,
    /// Tokens that the document has, or can come to: this chooses between short and long frequencies once and for all of
    /// its tokens, so that cached keys stay as they are.
    pub n_tokens: usize,
}

/// Cosine and sine for the rows of a batch, (T, `rotary_dim`/2) each.
#[derive(Default)]
pub(crate) struct Angles {
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
    head_dim: usize,
    is_interleaved: bool,
}

impl Ropes {
    pub fn new(config: &ModelConfig) -> Self {
        let mut kinds: Vec<LayerRope> = Vec::new();
        let mut of_layer = Vec::new();
        for layer in &config.layers {
            let known = kinds.iter().position(|&kind| kind == layer.rope);
            let index = known.unwrap_or(kinds.len());
            if known.is_none() && layer.rope != LayerRope::None {
                kinds.push(layer.rope);
            }
            of_layer.push((layer.rope != LayerRope::None).then_some(index));
        }
        let ropes = kinds.into_iter().map(|kind| Rope::new(config, kind));
        Self {
            ropes: ropes.collect(),
            of_layer,
        }
    }

    /// Which of the tables that [`Self::angles`] fills is a layer's.
    pub fn of_layer(&self, layer: usize) -> Option<usize> {
        self.of_layer[layer]
    }

    /// Whether a document that can come to `n_tokens` turns by the frequencies of long ones.
    pub fn is_long(&self, n_tokens: usize) -> bool {
        let mut limits = self.ropes.iter().filter_map(|rope| rope.long.as_ref());
        limits.any(|(limit, _)| n_tokens > *limit)
    }

    /// The frequencies of each rotation, of documents of any length if it knows no long ones, and its factor.
    pub fn plain(&self) -> Vec<(Vec<f32>, f32)> {
        let frequencies = |rope: &Rope| rope.inv_freq.iter().map(|&x| x as f32).collect();
        let ropes = self.ropes.iter();
        ropes.map(|rope| (frequencies(rope), rope.factor)).collect()
    }

    /// The angles of rows at the given positions, a table for each rotation; memory is reused.
    pub fn angles(&self, positions: impl Iterator<Item = Position> + Clone, out: &mut Vec<Angles>) {
        out.resize_with(self.ropes.len(), Angles::default);
        for (rope, out) in self.ropes.iter().zip(out) {
            rope.angles(positions.clone(), out);
        }
    }
}

impl Rope {
    fn new(config: &ModelConfig, kind: LayerRope) -> Self {
        let (theta, scaling, long) = match kind {
            LayerRope::Theta(theta) => (theta, RopeScaling::None, None),
            _ => (
                config.rope_theta,
                config.rope_scaling,
                config.long_rope.as_ref(),
            ),
        };
        // Rounded to f32 as the reference keeps them; the angle itself is then exact.
        let power = |j: usize| theta.powf(2.0 * j as f32 / config.rotary_dim as f32);
        let stretched = |factors: &Vec<f32>| {
            let frequencies = factors.iter().enumerate();
            frequencies
                .map(|(j, factor)| f64::from(1.0 / (factor * power(j))))
                .collect()
        };
        let inv_freq = match long {
            Some(long) => stretched(&long.short_factor),
            None => (0..config.rotary_dim / 2)
                .map(|j| f64::from(scale(scaling, 1.0 / power(j))))
                .collect(),
        };
        let of_long = |long: &crate::config::LongRope| {
            (
                long.original_max_position_embeddings,
                stretched(&long.long_factor),
            )
        };
        Self {
            inv_freq,
            long: long.map(of_long),
            factor: long.map_or(1.0, |long| long.attention_factor),
            head_dim: config.head_dim,
            pairs: config.rope_pairs,
        }
    }

    fn angles(&self, positions: impl Iterator<Item = Position>, out: &mut Angles) {
        out.half = self.inv_freq.len();
        out.head_dim = self.head_dim;
        out.is_interleaved = self.pairs == RopePairs::Interleaved;
        out.cos.clear();
        out.sin.clear();
        for Position { at, n_tokens } in positions {
            let inv_freq = match &self.long {
                Some((original, long)) if n_tokens > *original => long,
                _ => &self.inv_freq,
            };
            for frequency in inv_freq {
                let (sin, cos) = f64::from((at as f64 * frequency) as f32).sin_cos();
                out.cos.push(cos as f32 * self.factor);
                out.sin.push(sin as f32 * self.factor);
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
    let turned = n_heads * angles.head_dim;
    let rotate_row = if angles.is_interleaved {
        rotate_neighbours::<E>
    } else {
        rotate_halves::<E>
    };
    pool.for_rows(x.len() / width, (x, width), |rows, x| {
        for (row, x) in rows.zip(x.chunks_exact_mut(width)) {
            let cos = &angles.cos[row * half..(row + 1) * half];
            let sin = &angles.sin[row * half..(row + 1) * half];
            rotate_row(cos, sin, sign, angles.head_dim, &mut x[..turned]);
        }
    });
}

vectorized! {
    /// Pairs (j, j + `rotary_dim`/2).
    fn rotate_halves[E](cos: &[f32], sin: &[f32], sign: f32, head_dim: usize, heads: &mut [E]) {
        let half = cos.len();
        for head in heads.chunks_exact_mut(head_dim) {
            let (first, second) = head[..2 * half].split_at_mut(half);
            for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                let (x, y, sin) = (a.to_f32(), b.to_f32(), sign * sin);
                *a = E::from_f32(x * cos - y * sin);
                *b = E::from_f32(y * cos + x * sin);
            }
        }
    }
}

vectorized! {
    /// Pairs (2j, 2j + 1).
    fn rotate_neighbours[E](cos: &[f32], sin: &[f32], sign: f32, head_dim: usize, heads: &mut [E]) {
        for head in heads.chunks_exact_mut(head_dim) {
            for ((pair, cos), sin) in head.as_chunks_mut::<2>().0.iter_mut().zip(cos).zip(sin) {
                let (x, y, sin) = (pair[0].to_f32(), pair[1].to_f32(), sign * sin);
                pair[0] = E::from_f32(x * cos - y * sin);
                pair[1] = E::from_f32(y * cos + x * sin);
            }
        }
    }
}
