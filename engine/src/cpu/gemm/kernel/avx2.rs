//! Vectors of 256 bits.

use std::arch::x86_64::*;

type V = __m256;
const LANES: usize = 8;
const HAS_DOT: bool = false;

#[inline]
fn dot(sum: V, _: V, _: V) -> V {
    sum
}

#[target_feature(enable = "avx2,fma")]
#[inline]
fn zero() -> V {
    _mm256_setzero_ps()
}

#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn load(from: *const f32) -> V {
    // SAFETY: promised by the caller.
    unsafe { _mm256_loadu_ps(from) }
}

#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn store(to: *mut f32, x: V) {
    // SAFETY: promised by the caller.
    unsafe { _mm256_storeu_ps(to, x) }
}

#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn store_rounded(to: *mut u16, x: V) {
    let mut lanes = [0.0f32; LANES];
    // SAFETY: promised by the caller.
    unsafe {
        store(lanes.as_mut_ptr(), x);
        for (j, x) in lanes.into_iter().enumerate() {
            *to.add(j) = round(x);
        }
    }
}

#[target_feature(enable = "avx2,fma")]
#[inline]
fn splat(word: u32) -> V {
    _mm256_castsi256_ps(_mm256_set1_epi32(word as i32))
}

#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn load_bytes(from: *const u8) -> V {
    // SAFETY: promised by the caller.
    let bytes = unsafe { _mm_loadl_epi64(from.cast()) };
    _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes))
}

#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn load_nibbles(from: *const u8) -> (V, V) {
    // SAFETY: promised by the caller.
    let bytes = _mm256_cvtepu8_epi32(unsafe { _mm_loadl_epi64(from.cast()) });
    let low = _mm256_and_si256(bytes, _mm256_set1_epi32(15));
    let high = _mm256_srli_epi32::<4>(bytes);
    (_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high))
}

#[target_feature(enable = "avx2,fma")]
#[inline]
fn mul_add(a: V, b: V, c: V) -> V {
    _mm256_fmadd_ps(a, b, c)
}

#[target_feature(enable = "avx2,fma")]
#[inline]
fn add(a: V, b: V) -> V {
    _mm256_add_ps(a, b)
}

#[target_feature(enable = "avx2,fma")]
#[inline]
fn low(words: V) -> V {
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_castps_si256(words)))
}

#[target_feature(enable = "avx2,fma")]
#[inline]
fn high(words: V) -> V {
    let mask = _mm256_set1_epi32(0xffff_0000u32 as i32);
    _mm256_castsi256_ps(_mm256_and_si256(_mm256_castps_si256(words), mask))
}

kernels!(
    #[target_feature(enable = "avx2,fma")]
    [4 x 1] [2 x 1] [1 x 1]
);
