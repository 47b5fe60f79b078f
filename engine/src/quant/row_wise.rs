//! Owns what codecs with a scale for each row share.

use super::with_room;
use crate::cpu::buffer::OutOfMemory;

/// The codes of a matrix, and what belongs to each row of them.
pub(super) struct RowWise<C> {
    pub codes: Vec<C>,
    pub scales: Vec<f32>,
}

impl<C: Copy + Default> RowWise<C> {
    /// `encode` writes the codes of a row and returns its scale.
    pub fn quantize<T: Copy + Into<f32>>(
        values: &[T],
        rows: usize,
        columns: usize,
        encode: impl Fn(&[f32], &mut [C]) -> f32,
    ) -> Result<Self, OutOfMemory> {
        let mut codes = with_room(values.len())?;
        codes.resize(values.len(), C::default());
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
        size_of_val(&self.codes[..]) + size_of_val(&self.scales[..])
    }

    /// `decode` makes the values of `row` from element `start` of the flattened matrix on out of their codes and the row's scale.
    pub fn dequantize(
        &self,
        row: usize,
        start: usize,
        out: &mut [f32],
        decode: impl Fn(&[C], f32, &mut [f32]),
    ) {
        decode(&self.codes[start..][..out.len()], self.scales[row], out);
    }
}
