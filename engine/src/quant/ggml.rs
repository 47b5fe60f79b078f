//! Owns the blocks of GGUF files with one scale each, and the way into any kind of block; `ggml_k` owns those of 256.
//! Source of the layouts: the documentation in the Python package `gguf` 0.19, whose `dequantize` gives the same bits: codes
//! times scales of 11 bits need no more than the 24 bits of an f32, so that at most one operation rounds.

use std::fmt;

use half::f16;

use super::{QuantError, absmax, ggml_k, with_room};
use crate::cpu::simd::vectorized;

/// The kinds of blocks that GGUF files hold quantised weights in, as GGML names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GgmlType {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
}

impl GgmlType {
    /// Every kind.
    pub const ALL: [Self; 10] = [
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
    ];

    /// Weights in a block.
    pub fn block_len(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            Self::Q2K | Self::Q3K | Self::Q4K | Self::Q5K | Self::Q6K => 256,
        }
    }

    /// Size of a block. Bytes.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q2K => 84,
            Self::Q3K => 110,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// As many whole blocks of `bytes` as fill `out`.
    pub(crate) fn dequantize(self, bytes: &[u8], out: &mut [f32]) {
        decode(self, bytes, out);
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Q4_0 => "q4_0",
            Self::Q4_1 => "q4_1",
            Self::Q5_0 => "q5_0",
            Self::Q5_1 => "q5_1",
            Self::Q8_0 => "q8_0",
            Self::Q2K => "q2_k",
            Self::Q3K => "q3_k",
            Self::Q4K => "q4_k",
            Self::Q5K => "q5_k",
            Self::Q6K => "q6_k",
        })
    }
}

/// Blocks of one kind, row after row.
pub(super) struct Blocks {
    pub kind: GgmlType,
    pub bytes: Vec<u8>,
}

impl Blocks {
    /// Quantises rows of whole blocks.
    pub fn quantize<T: Copy + Into<f32>>(kind: GgmlType, values: &[T]) -> Result<Self, QuantError> {
        let encode = match kind {
            GgmlType::Q8_0 => encode_q8_0,
            GgmlType::Q4_0 => encode_q4_0,
            _ => return Err(QuantError::ReadOnly(kind)),
        };
        let mut bytes = with_room(values.len() / 32 * kind.block_bytes())?;
        let (blocks, _) = values.as_chunks::<32>();
        for block in blocks {
            encode(&block.map(Into::into), &mut bytes);
        }
        Ok(Self { kind, bytes })
    }

    /// The values from element `start` of the flattened matrix on.
    pub fn dequantize(&self, start: usize, out: &mut [f32]) {
        let (len, size) = (self.kind.block_len(), self.kind.block_bytes());
        let (mut at, mut rest) = (start, out);
        while !rest.is_empty() {
            let (block, offset) = (at / len, at % len);
            let bytes = &self.bytes[block * size..];
            let n = match rest.len() / len * len {
                whole if offset == 0 && whole > 0 => {
                    decode(self.kind, bytes, &mut rest[..whole]);
                    whole
                }
                _ => {
                    let n = rest.len().min(len - offset);
                    let mut values = [0.0; 256];
                    decode(self.kind, bytes, &mut values[..len]);
                    rest[..n].copy_from_slice(&values[offset..][..n]);
                    n
                }
            };
            at += n;
            rest = &mut rest[n..];
        }
    }
}

vectorized! {
    /// As many whole blocks as fill `out`.
    fn decode(kind: GgmlType, bytes: &[u8], out: &mut [f32]) {
        match kind {
            GgmlType::Q4_0 => each(bytes, out, q4_0),
            GgmlType::Q4_1 => each(bytes, out, q4_1),
            GgmlType::Q5_0 => each(bytes, out, q5_0),
            GgmlType::Q5_1 => each(bytes, out, q5_1),
            GgmlType::Q8_0 => each(bytes, out, q8_0),
            GgmlType::Q2K => each(bytes, out, ggml_k::q2_k),
            GgmlType::Q3K => each(bytes, out, ggml_k::q3_k),
            GgmlType::Q4K => each(bytes, out, ggml_k::q4_k),
            GgmlType::Q5K => each(bytes, out, ggml_k::q5_k),
            GgmlType::Q6K => each(bytes, out, ggml_k::q6_k),
        }
    }
}

#[inline(always)]
fn each<const SIZE: usize, const LEN: usize>(
    bytes: &[u8],
    out: &mut [f32],
    decode: impl Fn(&[u8; SIZE], &mut [f32; LEN]),
) {
    let (blocks, _) = bytes.as_chunks::<SIZE>();
    let (outs, _) = out.as_chunks_mut::<LEN>();
    for (block, out) in blocks.iter().zip(outs) {
        decode(block, out);
    }
}

/// The f16 at byte `at`.
#[inline(always)]
pub(super) fn half(block: &[u8], at: usize) -> f32 {
    // Without a look at what the processor can do, for it is not worth the time of one number.
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32_const()
}

/// Byte j holds the codes of weights j and j + 16, the first in its low half.
#[inline(always)]
fn nibbles(bytes: &[u8], out: &mut [f32; 32], value: impl Fn(usize, u8) -> f32) {
    let (low, high) = out.split_at_mut(16);
    for j in 0..16 {
        low[j] = value(j, bytes[j] & 15);
        high[j] = value(j + 16, bytes[j] >> 4);
    }
}

/// The scale d, 16 bytes of codes: (code − 8) · d.
#[inline(always)]
fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = half(block, 0);
    nibbles(&block[2..], out, |_, code| (f32::from(code) - 8.0) * d);
}

/// The scale d, the least value m, 16 bytes of codes: code · d + m.
#[inline(always)]
fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    nibbles(&block[4..], out, |_, code| f32::from(code) * d + m);
}

/// The fifth bits of 32 codes lie in the four bytes at `at`; this one, as 0 or 16.
#[inline(always)]
fn fifth(block: &[u8], at: usize, i: usize) -> u8 {
    (block[at + i / 8] >> (i % 8) & 1) << 4
}

/// The scale d, the fifth bits, 16 bytes of codes: (code − 16) · d.
#[inline(always)]
fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let d = half(block, 0);
    nibbles(&block[6..], out, |i, code| {
        (f32::from(code | fifth(block, 2, i)) - 16.0) * d
    });
}

/// The scale d, the least value m, the fifth bits, 16 bytes of codes: code · d + m.
#[inline(always)]
fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    nibbles(&block[8..], out, |i, code| {
        f32::from(code | fifth(block, 4, i)) * d + m
    });
}

/// The scale d, 32 signed bytes: code · d.
#[inline(always)]
fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = half(block, 0);
    for (out, &code) in out.iter_mut().zip(&block[2..]) {
        *out = f32::from(code as i8) * d;
    }
}

/// 1 / `d`; 0 for 0.
fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// The largest magnitude becomes 127; halves go away from zero. Codes are counted in the scale before it is rounded.
pub(crate) fn encode_q8_0(values: &[f32; 32], bytes: &mut Vec<u8>) {
    let d = absmax(values) / 127.0;
    let inverse = inverse(d);
    bytes.extend(f16::from_f32(d).to_le_bytes());
    bytes.extend(values.map(|x| (x * inverse).round() as i8 as u8));
}

/// The value of the largest magnitude, with its sign, becomes −8; of two as large the first counts.
fn encode_q4_0(values: &[f32; 32], bytes: &mut Vec<u8>) {
    let most = values.iter().fold(
        0.0f32,
        |most, &x| if x.abs() > most.abs() { x } else { most },
    );
    let d = most / -8.0;
    let inverse = inverse(d);
    let code = |x: f32| ((x * inverse + 8.5) as u8).min(15);
    bytes.extend(f16::from_f32(d).to_le_bytes());
    bytes.extend((0..16).map(|j| code(values[j]) | code(values[j + 16]) << 4));
}
