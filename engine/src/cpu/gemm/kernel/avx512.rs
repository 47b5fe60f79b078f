//! Vectors of 512 bits, with products of bf16 pairs and without.

/// The vectors of both AVX-512 levels.
macro_rules! avx512_vectors {
    () => {
        use std::arch::x86_64::*;

        type V = __m512;
        const LANES: usize = 16;

        #[target_feature(enable = "avx512f")]
        #[inline]
        fn zero() -> V {
            _mm512_setzero_ps()
        }

        #[target_feature(enable = "avx512f")]
        #[inline]
        unsafe fn load(from: *const f32) -> V {
            // SAFETY: promised by the caller.
            unsafe { _mm512_loadu_ps(from) }
        }

        #[target_feature(enable = "avx512f")]
        #[inline]
        unsafe fn store(to: *mut f32, x: V) {
            // SAFETY: promised by the caller.
            unsafe { _mm512_storeu_ps(to, x) }
        }

        /// As `element::round`, sixteen at once.
        #[target_feature(enable = "avx512f")]
        #[inline]
        unsafe fn store_rounded(to: *mut u16, x: V) {
            let bits = _mm512_castps_si512(x);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let nearest = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
            let is_nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
            let bits = _mm512_mask_or_epi32(nearest, is_nan, bits, _mm512_set1_epi32(0x40_0000));
            let halves = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(bits));
            // SAFETY: promised by the caller.
            unsafe { _mm256_storeu_si256(to.cast(), halves) }
        }

        #[target_feature(enable = "avx512f")]
        #[inline]
        fn splat(word: u32) -> V {
            _mm512_castsi512_ps(_mm512_set1_epi32(word as i32))
        }

        #[target_feature(enable = "avx512f")]
        #[inline]
        unsafe fn load_bytes(from: *const u8) -> V {
            // SAFETY: promised by the caller.
            let bytes = unsafe { _mm_loadu_si128(from.cast()) };
            _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes))
        }

        #[target_feature(enable = "avx512f")]
        #[inline]
        unsafe fn load_nibbles(from: *const u8) -> (V, V) {
            // SAFETY: promised by the caller.
            let bytes = _mm512_cvtepu8_epi32(unsafe { _mm_loadu_si128(from.cast()) });
            let low = _mm512_and_si512(bytes, _mm512_set1_epi32(15));
            let high = _mm512_srli_epi32::<4>(bytes);
            (_mm512_cvtepi32_ps(low), _mm512_cvtepi32_ps(high))
        }

        #[target_feature(enable = "avx512f")]
        #[inline]
        fn mul_add(a: V, b: V, c: V) -> V {
            _mm512_fmadd_ps(a, b, c)
        }

        #[target_feature(enable = "avx512f")]
        #[inline]
        fn add(a: V, b: V) -> V {
            _mm512_add_ps(a, b)
        }

        #[target_feature(enable = "avx512f")]
        #[inline]
        fn low(words: V) -> V {
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_castps_si512(words)))
        }

        #[target_feature(enable = "avx512f")]
        #[inline]
        fn high(words: V) -> V {
            let mask = _mm512_set1_epi32(0xffff_0000u32 as i32);
            _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(words), mask))
        }
    };
}

pub(super) mod with_pairs {
    avx512_vectors!();

    const HAS_DOT: bool = true;

    #[target_feature(enable = "avx512f,avx512bf16")]
    #[inline]
    fn dot(sum: V, a: V, b: V) -> V {
        // SAFETY: both are 512 bits in which every pattern is valid.
        let (a, b) = unsafe {
            (
                std::mem::transmute::<V, __m512bh>(a),
                std::mem::transmute::<V, __m512bh>(b),
            )
        };
        _mm512_dpbf16_ps(sum, a, b)
    }

    kernels!(
        #[target_feature(enable = "avx512f,avx512bf16")]
        [8 x 3] [4 x 3] [2 x 3] [1 x 3]
        [8 x 2] [4 x 2] [2 x 2] [1 x 2]
        [24 x 1] [8 x 1] [4 x 1] [2 x 1] [1 x 1]
    );
}

pub(super) mod plain {
    avx512_vectors!();

    const HAS_DOT: bool = false;

    fn dot(sum: V, _: V, _: V) -> V {
        sum
    }

    kernels!(
        #[target_feature(enable = "avx512f")]
        [8 x 3] [4 x 3] [2 x 3] [1 x 3]
        [8 x 2] [4 x 2] [2 x 2] [1 x 2]
        [24 x 1] [8 x 1] [4 x 1] [2 x 1] [1 x 1]
    );
}
