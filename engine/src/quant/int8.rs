//! Owns row-wise int8, byte for byte as bitsandbytes 0.50.2 computes it on the CPU (`int8_vectorwise_quant`).
//! Source of the format: Dettmers et al. 2022, "LLM.int8()" (arXiv:2208.07339), section 2.1.

use super::{absmax, with_room};
use crate::cpu::buffer::OutOfMemory;
use crate::cpu::simd::vectorized;

/// Codes, and for each row the magnitude that code 127 stands for; bitsandbytes calls them `CB` and `SCB`.
/// Differs: bitsandbytes' `Linear8bitLt` rounds weights to f16 before; here they are quantised as they are.
pub(super) struct Int8 {
    pub codes: Vec<i8>,
    pub scales: Vec<f32>,
}

impl Int8 {
    pub fn quantize<T: Copy + Into<f32>>(
        values: &[T],
        rows: usize,
        columns: usize,
    ) -> Result<Self, OutOfMemory> {
        let mut codes = with_room(values.len())?;
        codes.resize(values.len(), 0);
        let mut scales = with_room(rows)?;
        let mut row = with_room(columns)?;
        for start in (0..rows).map(|row| row * columns) {
            row.clear();
            row.extend(values[start..][..columns].iter().map(|&x| x.into()));
            scales.push(encode(&row, &mut codes[start..][..columns]));
        }
        Ok(Self { codes, scales })
    }

    pub fn n_bytes(&self) -> usize {
        self.codes.len() + self.scales.len() * 4
    }

    /// The values of `row` from element `start` of the flattened matrix on.
    pub fn dequantize(&self, row: usize, start: usize, out: &mut [f32]) {
        decode(&self.codes[start..][..out.len()], self.scales[row], out);
    }
}

vectorized! {
    /// Writes the codes of a row and returns its scale.
    fn encode(row: &[f32], codes: &mut [i8]) -> f32 {
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
    fn decode(codes: &[i8], scale: f32, out: &mut [f32]) {
        for (out, &code) in out.iter_mut().zip(codes) {
            *out = f32::from(code) * scale * (1.0 / 127.0);
        }
    }
}
