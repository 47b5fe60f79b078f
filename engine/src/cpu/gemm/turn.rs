//! Owns transposes of small blocks of words: the plain loops, and their twins in AVX-512 instructions, which the compiler does not find.

use super::PANEL;
use crate::cpu::simd::Isa;

/// Words of sixteen rows of W and sixteen of its columns, as pairs.
pub(super) const PAIRS: usize = 8 * PANEL;

/// Sixteen rows of W from panels for X·Wᵀ, (8, 16) words of pairs along the columns, → a panel for dY·W, (8, 16) words of pairs along
/// the rows.
pub(super) fn pairs(words: &[u32; PAIRS], out: &mut [u32; PAIRS]) {
    match Isa::detect() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level was detected on this machine.
        Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx => unsafe { avx512::pairs(words, out) },
        _ => pairs_plainly(words, out),
    }
}

/// Two words side by side are a 2×2 block of numbers: each block is transposed, then the blocks are.
fn pairs_plainly(words: &[u32; PAIRS], out: &mut [u32; PAIRS]) {
    for (u, from) in words.as_chunks::<PANEL>().0.iter().enumerate() {
        for (p, [a, b]) in from.as_chunks::<2>().0.iter().enumerate() {
            out[p * PANEL + 2 * u] = a & 0xffff | b << 16;
            out[p * PANEL + 2 * u + 1] = a >> 16 | b & 0xffff_0000;
        }
    }
}

/// `out[u][j] = rows[j][u]`.
pub(super) fn words(rows: [&[u32; PANEL]; PANEL], out: &mut [[u32; PANEL]]) {
    match (Isa::detect(), out.as_mut_array::<PANEL>()) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level was detected on this machine.
        (Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx, Some(out)) => unsafe {
            avx512::words(rows, out)
        },
        _ => words_plainly(rows, out),
    }
}

fn words_plainly(rows: [&[u32; PANEL]; PANEL], out: &mut [[u32; PANEL]]) {
    for (u, out) in out.iter_mut().enumerate() {
        for (j, out) in out.iter_mut().enumerate() {
            *out = rows[j][u];
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use super::{PAIRS, PANEL};

    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) fn pairs(words: &[u32; PAIRS], out: &mut [u32; PAIRS]) {
        // Of the four numbers of a 2×2 block the middle two change places.
        let swap = _mm512_broadcast_i32x4(_mm_setr_epi8(
            0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15,
        ));
        let rows: [__m512i; 8] = std::array::from_fn(|u| {
            // SAFETY: sixteen words from a multiple of sixteen on lie within the 128.
            let row = unsafe { _mm512_loadu_si512(words.as_ptr().add(u * PANEL).cast()) };
            _mm512_shuffle_epi8(row, swap)
        });
        for (p, row) in eight_by_eight(rows).into_iter().enumerate() {
            // SAFETY: as above.
            unsafe { _mm512_storeu_si512(out.as_mut_ptr().add(p * PANEL).cast(), row) };
        }
    }

    /// The transpose of 8×8 numbers of 64 bits.
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn eight_by_eight(r: [__m512i; 8]) -> [__m512i; 8] {
        let even: [__m512i; 4] =
            std::array::from_fn(|i| _mm512_unpacklo_epi64(r[2 * i], r[2 * i + 1]));
        let odd: [__m512i; 4] =
            std::array::from_fn(|i| _mm512_unpackhi_epi64(r[2 * i], r[2 * i + 1]));
        let (even, odd) = (lanes(even), lanes(odd));
        [
            even[0], odd[0], even[1], odd[1], even[2], odd[2], even[3], odd[3],
        ]
    }

    /// The transpose of 4×4 lanes of 128 bits.
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn lanes(r: [__m512i; 4]) -> [__m512i; 4] {
        let (low, high) = (
            [
                _mm512_shuffle_i64x2::<0x44>(r[0], r[1]),
                _mm512_shuffle_i64x2::<0x44>(r[2], r[3]),
            ],
            [
                _mm512_shuffle_i64x2::<0xee>(r[0], r[1]),
                _mm512_shuffle_i64x2::<0xee>(r[2], r[3]),
            ],
        );
        [
            _mm512_shuffle_i64x2::<0x88>(low[0], low[1]),
            _mm512_shuffle_i64x2::<0xdd>(low[0], low[1]),
            _mm512_shuffle_i64x2::<0x88>(high[0], high[1]),
            _mm512_shuffle_i64x2::<0xdd>(high[0], high[1]),
        ]
    }

    #[target_feature(enable = "avx512f")]
    pub(super) fn words(rows: [&[u32; PANEL]; PANEL], out: &mut [[u32; PANEL]; PANEL]) {
        // SAFETY: a row is sixteen words.
        let load = |i: usize| unsafe { _mm512_loadu_si512(rows[i].as_ptr().cast()) };
        // 2×2 blocks of words first, then the blocks as numbers of 64 bits: rows 0..8 and 8..16 make the two halves.
        for half in 0..2 {
            let pairs = |first: usize| -> ([__m512i; 4], [__m512i; 4]) {
                let low = std::array::from_fn(|i| {
                    _mm512_unpacklo_epi32(load(first + 2 * i), load(first + 2 * i + 1))
                });
                let high = std::array::from_fn(|i| {
                    _mm512_unpackhi_epi32(load(first + 2 * i), load(first + 2 * i + 1))
                });
                (low, high)
            };
            let (low, high) = pairs(8 * half);
            for (offset, part) in [(0, low), (2, high)] {
                // Four vectors hold, in each lane l, words 4·l + offset and 4·l + offset + 1 of two rows each.
                let first: [__m512i; 2] =
                    std::array::from_fn(|i| _mm512_unpacklo_epi64(part[2 * i], part[2 * i + 1]));
                let second: [__m512i; 2] =
                    std::array::from_fn(|i| _mm512_unpackhi_epi64(part[2 * i], part[2 * i + 1]));
                for (word, [a, b]) in [(offset, first), (offset + 1, second)] {
                    let even = _mm512_shuffle_i64x2::<0x88>(a, b);
                    let odd = _mm512_shuffle_i64x2::<0xdd>(a, b);
                    // `even` is lanes 0 and 2 of both, `odd` lanes 1 and 3.
                    let sorted = [
                        _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 1, 4, 5, 2, 3, 6, 7), even),
                        _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 1, 4, 5, 2, 3, 6, 7), odd),
                    ];
                    for (i, both) in sorted.into_iter().enumerate() {
                        let (near, far) = (word + 4 * i, word + 8 + 4 * i);
                        // SAFETY: eight words from a multiple of eight on lie within a row.
                        unsafe {
                            let to = |row: usize, out: &mut [[u32; PANEL]; PANEL]| {
                                out[row].as_mut_ptr().add(8 * half).cast::<__m256i>()
                            };
                            _mm256_storeu_si256(to(near, out), _mm512_castsi512_si256(both));
                            _mm256_storeu_si256(to(far, out), _mm512_extracti64x4_epi64::<1>(both));
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fast_twins_transpose_as_the_plain_loops_do() {
        let numbers: [u32; PAIRS] =
            std::array::from_fn(|i| (2 * i) as u32 | (2 * i as u32 + 1) << 16);
        let (mut fast, mut plain) = ([0; PAIRS], [0; PAIRS]);
        pairs(&numbers, &mut fast);
        pairs_plainly(&numbers, &mut plain);
        assert_eq!(fast, plain);

        let rows: [[u32; PANEL]; PANEL] =
            std::array::from_fn(|j| std::array::from_fn(|u| (100 * j + u) as u32));
        let (mut fast, mut plain) = ([[0; PANEL]; PANEL], [[0; PANEL]; PANEL]);
        words(rows.each_ref(), &mut fast);
        words_plainly(rows.each_ref(), &mut plain);
        assert_eq!(fast, plain);
    }
}
