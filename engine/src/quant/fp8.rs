//! Owns row-wise float8_e4m3fn: four bits of exponent, three of fraction, no infinity. Source of the format: Micikevicius et al. 2022, "FP8 Formats for
//! Deep Learning" (arXiv:2209.05433), table 1; codes are byte for byte those that PyTorch rounds to.

use super::absmax;
use super::row_wise::RowWise;
use crate::cpu::simd::vectorized;

/// The largest number that a code stands for.
const LARGEST: f32 = 448.0;
const LARGEST_CODE: u32 = 0x7e;

/// The smallest that has a whole fraction; those below are multiples of 2⁻⁹.
const SMALLEST_NORMAL: f32 = 1.0 / 64.0;
const STEPS_BELOW: f32 = 512.0;

/// Codes, and for each row what they are multiplied with: the largest weight of a row has the largest code.
pub(super) type Fp8 = RowWise<u8>;

vectorized! {
    /// Writes the codes of a row and returns its scale.
    pub(super) fn encode(row: &[f32], codes: &mut [u8]) -> f32 {
        let scale = absmax(row) / LARGEST;
        // A row of zeros, or of numbers too small for a scale.
        if scale == 0.0 {
            codes.fill(0);
            return scale;
        }
        for (code, x) in codes.iter_mut().zip(row) {
            let x = x / scale;
            let (magnitude, bits) = (x.abs(), x.abs().to_bits());
            let below = (magnitude * STEPS_BELOW).round_ties_even() as u32;
            // The fraction's upper three bits, rounded to nearest and halves to even; f32 counts exponents from 127, the code from 7.
            let rounded = bits + 0x7ffff + (bits >> 20 & 1);
            let normal = (rounded >> 20).wrapping_sub((127 - 7) << 3).min(LARGEST_CODE);
            let unsigned = if magnitude < SMALLEST_NORMAL { below } else { normal };
            *code = (unsigned | (x.to_bits() >> 24 & 0x80)) as u8;
        }
        scale
    }
}

vectorized! {
    pub(super) fn decode(codes: &[u8], scale: f32, out: &mut [f32]) {
        // An f32 with the same fields is smaller by the difference of where exponents are counted from.
        let exponents = f32::from_bits((127 + 120) << 23);
        for (out, &code) in out.iter_mut().zip(codes) {
            let code = u32::from(code);
            let bits = (code & 0x80) << 24 | (code & 0x7f) << 20;
            *out = f32::from_bits(bits) * exponents * scale;
        }
    }
}
