//! Owns NF4, byte for byte as bitsandbytes 0.50.2 computes it on the CPU. Blocks run over the flattened matrix, so one may
//! begin in a row and end in the next.
//! Source of the format: Dettmers et al. 2023, "QLoRA" (arXiv:2305.14314), section 3.

use super::dynamic::{Dynamic, mean};
use super::{absmax, with_room};
use crate::cpu::buffer::OutOfMemory;
use crate::cpu::simd::vectorized;

/// Weights that share a scale.
const BLOCK: usize = 64;

/// The values of the 16 codes. Source: QLoRA, appendix E.
const MAP: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// Midway between neighbouring codes; a weight on the line goes to the lower one.
const THRESHOLDS: [f32; 15] = {
    let mut thresholds = [0.0; 15];
    let mut i = 0;
    while i < 15 {
        thresholds[i] = (MAP[i] + MAP[i + 1]) / 2.0;
        i += 1;
    }
    thresholds
};

/// The values of the two codes in each byte: one load where two would be needed.
static PAIRS: [[f32; 2]; 256] = {
    let mut pairs = [[0.0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        pairs[byte] = [MAP[byte >> 4], MAP[byte & 15]];
        byte += 1;
    }
    pairs
};

/// Two codes to a byte, the first in the high half, and a scale for each block.
pub(super) struct Nf4 {
    pub codes: Vec<u8>,
    pub scales: Scales,
}

/// The largest magnitude in each block.
pub(super) enum Scales {
    Plain(Vec<f32>),
    /// Differences from their mean, in 8 bits.
    Double {
        differences: Dynamic,
        offset: f32,
    },
}

impl Nf4 {
    pub fn quantize<T: Copy + Into<f32>>(values: &[T]) -> Result<Self, OutOfMemory> {
        let mut codes = with_room(values.len().div_ceil(2))?;
        let mut scales = with_room(values.len().div_ceil(BLOCK))?;
        for block in values.chunks(BLOCK) {
            let mut scaled = [0.0; BLOCK];
            for (out, &x) in scaled.iter_mut().zip(block) {
                *out = x.into();
            }
            let (scale, bytes) = encode(&mut scaled, block.len());
            scales.push(scale);
            codes.extend_from_slice(&bytes[..block.len().div_ceil(2)]);
        }
        Ok(Self {
            codes,
            scales: Scales::Plain(scales),
        })
    }

    /// Quantises the scales as well.
    pub fn double_quantized(self) -> Result<Self, OutOfMemory> {
        let Scales::Plain(mut scales) = self.scales else {
            return Ok(self);
        };
        let offset = mean(&scales);
        scales.iter_mut().for_each(|scale| *scale -= offset);
        let differences = Dynamic::quantize(&scales)?;
        Ok(Self {
            codes: self.codes,
            scales: Scales::Double {
                differences,
                offset,
            },
        })
    }

    pub fn is_double_quantized(&self) -> bool {
        matches!(self.scales, Scales::Double { .. })
    }

    /// What `n` weights take. Bytes.
    pub fn bytes_of(n: usize, is_double_quantized: bool) -> usize {
        let n_scales = n.div_ceil(BLOCK);
        let scales = match is_double_quantized {
            false => n_scales * 4,
            true => Dynamic::bytes_of(n_scales) + 4,
        };
        n.div_ceil(2) + scales
    }

    pub fn n_bytes(&self) -> usize {
        let scales = match &self.scales {
            Scales::Plain(scales) => scales.len() * 4,
            Scales::Double { differences, .. } => differences.n_bytes() + 4,
        };
        self.codes.len() + scales
    }

    /// The values from element `start` of the flattened matrix on.
    pub fn dequantize(&self, start: usize, out: &mut [f32]) {
        decode(self, start, out);
    }

    #[inline(always)]
    fn scale(&self, block: usize) -> f32 {
        match &self.scales {
            Scales::Plain(scales) => scales[block],
            Scales::Double {
                differences,
                offset,
            } => differences.get(block) + offset,
        }
    }
}

vectorized! {
    /// The scale and the codes of a block; `len` of its weights are there, the rest is zero.
    fn encode(block: &mut [f32; BLOCK], len: usize) -> (f32, [u8; BLOCK / 2]) {
        let scale = scale(block, len);
        let mut codes = [0u32; BLOCK];
        for threshold in THRESHOLDS {
            for (code, &x) in codes.iter_mut().zip(&*block) {
                *code += u32::from(x > threshold);
            }
        }
        let (pairs, _) = codes.as_chunks::<2>();
        let mut bytes = [0; BLOCK / 2];
        for (byte, pair) in bytes.iter_mut().zip(pairs) {
            *byte = (pair[0] << 4 | pair[1]) as u8;
        }
        (scale, bytes)
    }
}

/// Divides a block by its largest magnitude, which is returned.
#[inline(always)]
fn scale(block: &mut [f32; BLOCK], len: usize) -> f32 {
    /// bitsandbytes' guard against division by zero.
    const SMALLEST: f32 = 1e-38;
    let most = absmax(block);
    let divisor = most.max(SMALLEST);
    // bitsandbytes multiplies whole blocks by the inverse, but divides the last one if it is not whole.
    if len == BLOCK {
        let inverse = 1.0 / divisor;
        for x in block {
            *x = (*x * inverse).clamp(-1.0, 1.0);
        }
        most
    } else {
        for x in block {
            *x /= divisor;
        }
        divisor
    }
}

vectorized! {
    fn decode(nf4: &Nf4, start: usize, out: &mut [f32]) {
        let (mut at, mut rest) = (start, out);
        while !rest.is_empty() {
            let (block, offset) = (at / BLOCK, at % BLOCK);
            let (out, more) = rest.split_at_mut(rest.len().min(BLOCK - offset));
            let scale = nf4.scale(block);
            if out.len() == BLOCK {
                let codes = &nf4.codes[block * BLOCK / 2..][..BLOCK / 2];
                let (pairs, _) = out.as_chunks_mut::<2>();
                for (pair, &byte) in pairs.iter_mut().zip(codes) {
                    *pair = PAIRS[usize::from(byte)].map(|value| value * scale);
                }
            } else {
                for (i, out) in (at..).zip(out.iter_mut()) {
                    *out = PAIRS[usize::from(nf4.codes[i / 2])][i % 2] * scale;
                }
            }
            at += out.len();
            rest = more;
        }
    }
}
