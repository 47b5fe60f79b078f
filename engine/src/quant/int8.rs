//! Owns row-wise int8, byte for byte as bitsandbytes 0.50.2 computes it on the CPU (`int8_vectorwise_quant`).
//! Source of the format: Dettmers et al. 2022, "LLM.int8()" (arXiv:2208.07339), section 2.1.

use super::absmax;
use super::row_wise::RowWise;
use crate::cpu::simd::vectorized;

/// Codes, and for each row the magnitude that code 127 stands for; bitsandbytes calls them `CB` and `SCB`.
/// Differs: bitsandbytes' `Linear8bitLt` rounds weights to f16 before; here they are quantised as they are.
pub(super) type Int8 = RowWise<i8>;

vectorized! {
    /// Writes the codes of a row and returns its scale.
    pub(super) fn encode(row: &[f32], codes: &mut [i8]) -> f32 {
        let scale = absmax(row);
        let factor = 127.0 / scale;
        for (code, x) in codes.iter_mut().zip(row) {
            // A row of zeros gives NaN, which is cast to 0.
            *code = (x * factor).round_ties_even() as i8;
        }
        scale
    }
}

vectorized! {
    pub(super) fn decode(codes: &[i8], scale: f32, out: &mut [f32]) {
        for (out, &code) in out.iter_mut().zip(codes) {
            *out = f32::from(code) * scale * (1.0 / 127.0);
        }
    }
}
