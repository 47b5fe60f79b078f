//! Owns bitsandbytes' dynamic 8-bit format (`quantize_blockwise`): numbers near zero keep as many digits as large ones.
//! Byte for byte as version 0.50.2 computes it on the CPU.
//! Source of the format: Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization" (arXiv:2110.02861), section 2.

use super::{absmax, with_room};
use crate::cpu::buffer::OutOfMemory;

/// Numbers that share a scale.
const BLOCK: usize = 256;

/// The values of the 256 codes, ascending: zero, one, and for each decade from 10^-6 on twice as many numbers as for the
/// one below, evenly over its upper nine tenths, with both signs.
pub(super) const MAP: [f32; 256] = map();

const fn map() -> [f32; 256] {
    const DECADES: [f32; 7] = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0];
    /// The code of zero; the numbers of both signs lie around it.
    const ZERO: usize = 127;
    let mut map = [0.0; 256];
    map[255] = 1.0;
    let mut decade = 0;
    while decade < 7 {
        let n = 1 << decade;
        let mut i = 0;
        while i < n {
            let mean = (boundary(n, i) + boundary(n, i + 1)) / 2.0;
            let value = DECADES[decade] * mean;
            let above_zero = n + i;
            map[ZERO + above_zero] = value;
            map[ZERO - above_zero] = -value;
            i += 1;
        }
        decade += 1;
    }
    map
}

/// Boundary `i` of `n` equal parts of [0.1, 1], rounded as PyTorch's `linspace` rounds it: counted from the nearer end.
const fn boundary(n: usize, i: usize) -> f32 {
    let step = ((1.0 - 0.1f32) / n as f32) as f64;
    if i < n.div_ceil(2) {
        (0.1f32 as f64 + step * i as f64) as f32
    } else {
        (1.0 - step * (n - i) as f64) as f32
    }
}

/// Numbers in 8 bits, with an f32 scale for each 256.
pub(super) struct Dynamic {
    pub codes: Vec<u8>,
    pub absmax: Vec<f32>,
}

impl Dynamic {
    pub fn quantize(values: &[f32]) -> Result<Self, OutOfMemory> {
        let mut codes = with_room(values.len())?;
        let mut scales = with_room(values.len().div_ceil(BLOCK))?;
        for block in values.chunks(BLOCK) {
            let scale = absmax(block);
            scales.push(scale);
            let inverse = 1.0 / scale;
            let encode = |&x: &f32| {
                if scale == 0.0 {
                    0
                } else {
                    nearest(x * inverse)
                }
            };
            codes.extend(block.iter().map(encode));
        }
        Ok(Self {
            codes,
            absmax: scales,
        })
    }

    #[inline(always)]
    pub fn get(&self, i: usize) -> f32 {
        MAP[usize::from(self.codes[i])] * self.absmax[i / BLOCK]
    }

    /// What `n` numbers take. Bytes.
    pub fn bytes_of(n: usize) -> usize {
        n + n.div_ceil(BLOCK) * 4
    }

    pub fn n_bytes(&self) -> usize {
        self.codes.len() + self.absmax.len() * 4
    }
}

/// The code nearest to `x` ∈ [−1, 1], after `x` was rounded to a multiple of 2/65535 as bitsandbytes rounds it.
fn nearest(x: f32) -> u8 {
    let step = ((x + 1.0) * 32_767.5 + 0.5).floor();
    let x = f64::from(step) / 32_767.5 - 1.0;
    let above = MAP.partition_point(|&value| f64::from(value) < x);
    let distance = |code: usize| (f64::from(MAP[code]) - x).abs();
    let code = match above {
        0 => 0,
        256 => 255,
        _ if distance(above - 1) <= distance(above) => above - 1,
        _ => above,
    };
    code as u8
}

/// The mean of `values`, added up in the order of PyTorch's `mean` on one thread, because the scales of double quantisation
/// are counted from it: 32 interleaved sums (4 below 8 values), each in four levels of which every one takes in 16 terms of
/// the level below.
pub(super) fn mean(values: &[f32]) -> f32 {
    let sum = if values.len() < 8 {
        interleaved::<1>(values)
    } else {
        interleaved::<8>(values)
    };
    sum / values.len() as f32
}

fn interleaved<const WIDTH: usize>(values: &[f32]) -> f32 {
    const LEVELS: usize = 4;
    let mut levels = [[[0.0f32; WIDTH]; 4]; LEVELS];
    let (vectors, tail) = values.as_chunks::<WIDTH>();
    let (groups, odd) = vectors.as_chunks::<4>();
    for (n, group) in (1..).zip(groups) {
        add(levels[0].as_flattened_mut(), group.as_flattened());
        let mut terms = 16;
        for level in 1..LEVELS {
            if n % terms != 0 {
                break;
            }
            let below = std::mem::replace(&mut levels[level - 1], [[0.0; WIDTH]; 4]);
            add(levels[level].as_flattened_mut(), below.as_flattened());
            terms *= 16;
        }
    }
    let [mut sums, higher @ ..] = levels;
    for level in higher {
        add(sums.as_flattened_mut(), level.as_flattened());
    }
    let [mut sum, others @ ..] = sums;
    for vector in odd.iter().chain(&others) {
        add(&mut sum, vector);
    }
    tail.iter().chain(&sum).fold(0.0, |sum, x| sum + x)
}

fn add(sums: &mut [f32], terms: &[f32]) {
    for (sum, term) in sums.iter_mut().zip(terms) {
        *sum += term;
    }
}
