//! Owns GGML's blocks of 256 weights, whose parts have scales that are quantised themselves.

use super::ggml::half;

/// Each part of `LEN` weights has a scale and a minimum: code · scale − minimum.
#[inline(always)]
fn fill<const LEN: usize>(
    out: &mut [f32; 256],
    scale: impl Fn(usize) -> (f32, f32),
    code: impl Fn(usize, usize) -> f32,
) {
    let (parts, _) = out.as_chunks_mut::<LEN>();
    for (part, out) in parts.iter_mut().enumerate() {
        let (d, m) = scale(part);
        for (i, out) in out.iter_mut().enumerate() {
            *out = d * code(part, i) - m;
        }
    }
}

/// The two bits of weight `i` of part `part` (16 weights): byte j of 32 holds weights j, j + 32, j + 64 and j + 96 of a half
/// of the block, the first in its lowest bits.
#[inline(always)]
fn two_bits(codes: &[u8], part: usize, i: usize) -> u8 {
    codes[part / 8 * 32 + part % 2 * 16 + i] >> (part % 8 / 2 * 2) & 3
}

/// 16 bytes of scales (low half) and minima (high half), 64 of codes, d, dmin: code · scale · d − minimum · dmin.
#[inline(always)]
pub(super) fn q2_k(block: &[u8; 84], out: &mut [f32; 256]) {
    let (d, dmin) = (half(block, 80), half(block, 82));
    fill::<16>(
        out,
        |part| {
            let scale = block[part];
            (d * f32::from(scale & 15), dmin * f32::from(scale >> 4))
        },
        |part, i| f32::from(two_bits(&block[16..80], part, i)),
    );
}

/// 32 bytes of third bits, 64 of codes, 12 of scales in 6 bits, d: (code − 4) · (scale − 32) · d.
#[inline(always)]
pub(super) fn q3_k(block: &[u8; 110], out: &mut [f32; 256]) {
    let (third, codes, scales, d) = (
        &block[..32],
        &block[32..96],
        &block[96..108],
        half(block, 108),
    );
    let scale = |part: usize| {
        let low = scales[part % 8] >> (part / 8 * 4) & 15;
        let high = scales[8 + part % 4] >> (part / 4 * 2) & 3;
        (d * (f32::from(low | high << 4) - 32.0), 0.0)
    };
    fill::<16>(out, scale, |part, i| {
        let high = third[part % 2 * 16 + i] >> (part / 2) & 1;
        f32::from(two_bits(codes, part, i) | high << 2) - 4.0
    });
}

/// Scale and minimum of one of eight parts, 6 bits each, from 12 bytes: four scales, four minima, then four bytes with the
/// low bits of the other scales and minima, whose high bits lie above the first ones.
#[inline(always)]
pub(super) fn scale_and_minimum(bytes: &[u8], part: usize) -> (f32, f32) {
    let (scale, minimum) = if part < 4 {
        (bytes[part] & 63, bytes[part + 4] & 63)
    } else {
        let low = bytes[part + 4];
        (
            low & 15 | bytes[part - 4] >> 6 << 4,
            low >> 4 | bytes[part] >> 6 << 4,
        )
    };
    (f32::from(scale), f32::from(minimum))
}

/// Four bits of weight `i` of part `part` (32 weights): two parts share 32 bytes, the first in the low halves.
#[inline(always)]
fn four_bits(codes: &[u8], part: usize, i: usize) -> u8 {
    codes[part / 2 * 32 + i] >> (part % 2 * 4) & 15
}

/// d, dmin, 12 bytes of scales and minima, 128 of codes: code · scale · d − minimum · dmin.
#[inline(always)]
pub(super) fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (d, dmin) = (half(block, 0), half(block, 2));
    let scale = |part| {
        let (scale, minimum) = scale_and_minimum(&block[4..16], part);
        (d * scale, dmin * minimum)
    };
    fill::<32>(out, scale, |part, i| {
        f32::from(four_bits(&block[16..], part, i))
    });
}

/// d, dmin, 12 bytes of scales and minima, 32 of fifth bits, 128 of codes: code · scale · d − minimum · dmin.
#[inline(always)]
pub(super) fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (d, dmin) = (half(block, 0), half(block, 2));
    let scale = |part| {
        let (scale, minimum) = scale_and_minimum(&block[4..16], part);
        (d * scale, dmin * minimum)
    };
    fill::<32>(out, scale, |part, i| {
        let fifth = block[16 + i] >> part & 1;
        f32::from(four_bits(&block[48..], part, i) | fifth << 4)
    });
}

/// 128 bytes of low bits, 64 of the two high bits, 16 signed scales, d: (code − 32) · scale · d.
#[inline(always)]
pub(super) fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let (low, high, scales, d) = (
        &block[..128],
        &block[128..192],
        &block[192..208],
        half(block, 208),
    );
    fill::<16>(
        out,
        |part| (d * f32::from(scales[part] as i8), 0.0),
        |part, i| {
            // Of each 128 weights, byte j of 64 holds j and j + 64.
            let low = low[part / 8 * 64 + part % 4 * 16 + i] >> (part % 8 / 4 * 4) & 15;
            f32::from(low | two_bits(high, part, i) << 4) - 32.0
        },
    );
}
