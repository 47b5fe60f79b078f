//! Owns the innermost loops: a tile of C held in registers, one kernel for each instruction-set level and kind of product.

use std::sync::OnceLock;

use half::bf16;

use super::PANEL;
use crate::cpu::element::round;
use crate::cpu::simd::Isa;

/// How the words of A and B are multiplied and added up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dot {
    /// A word is one f32.
    F32 = 0,
    /// A word is a pair of bf16.
    Bf16 = 1,
    /// A word of B is a pair of bf16, which meets two f32 of A: the chain of `F32` over widened weights.
    Mixed = 2,
}

/// Part of the depth: where A and B lie for it. Distances are in 32-bit words.
#[derive(Clone, Copy)]
pub(super) struct Segment {
    /// Words of B for each column.
    pub units: usize,
    pub a: *const u32,
    /// Between rows of A, within a group of eight.
    pub a_row: usize,
    /// Between groups of eight rows of A.
    pub a_group: usize,
    /// Between units of A.
    pub a_unit: usize,
    pub b: *const u32,
    /// Between panels of B.
    pub b_panel: usize,
}

/// What becomes of the sums.
#[derive(Clone, Copy)]
pub(super) enum Target {
    Set(*mut f32),
    Add(*mut f32),
    Round(*mut bf16),
}

/// One tile of C: the sum over both segments, `first` in the kernel's kind of product, `second` in that of A's own format.
pub(super) struct Tile {
    pub first: Segment,
    pub second: Segment,
    /// What is added to the sums at the end; null for nothing. Rows are `plus_row` apart.
    pub plus: *const f32,
    pub plus_row: usize,
    pub target: Target,
    /// Between rows of the target, in its own numbers.
    pub row: usize,
    /// Columns that are written; the last panel may be a part.
    pub n_columns: usize,
}

type TileFn = unsafe fn(&Tile);

/// A tile that there is a kernel for.
struct Form {
    rows: usize,
    panels: usize,
    /// By [`Dot`].
    run: [TileFn; 3],
}

/// The kernels of one level.
pub(super) struct Kernel {
    /// Most panels of a tile.
    pub panels: usize,
    /// For each number of panels from 1 on, the forms with falling numbers of rows, down to 1.
    forms: Vec<Vec<Form>>,
}

impl Kernel {
    /// The kernels for this machine.
    pub fn detected() -> &'static Self {
        static KERNEL: OnceLock<Kernel> = OnceLock::new();
        KERNEL.get_or_init(|| Kernel::for_isa(Isa::detect()))
    }

    /// The kernels of a level, which the machine must have.
    pub fn for_isa(isa: Isa) -> Self {
        let forms = match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => avx512bf16::forms(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => avx512::forms(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2::forms(),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => neon::forms(),
            _ => portable::forms(),
        };
        let panels = forms.iter().map(|form| form.panels).max().unwrap_or(1);
        let mut by_panels: Vec<Vec<Form>> = (0..panels).map(|_| Vec::new()).collect();
        for form in forms {
            by_panels[form.panels - 1].push(form);
        }
        Self {
            panels,
            forms: by_panels,
        }
    }

    /// The most rows ≤ `n_rows` that one tile of `n_panels` can take.
    #[inline]
    pub fn rows(&self, n_rows: usize, n_panels: usize) -> usize {
        self.form(n_rows, n_panels).rows
    }

    /// Runs a tile of exactly [`Self::rows`] rows.
    ///
    /// # Safety
    /// `tile` must describe memory that is valid, and that nobody else uses for C.
    #[inline]
    pub unsafe fn run(&self, dot: Dot, n_rows: usize, n_panels: usize, tile: &Tile) {
        // SAFETY: promised by the caller.
        unsafe { self.form(n_rows, n_panels).run[dot as usize](tile) }
    }

    #[inline]
    fn form(&self, n_rows: usize, n_panels: usize) -> &Form {
        self.forms[n_panels - 1]
            .iter()
            .find(|form| form.rows <= n_rows)
            .expect("every level has forms of one row — a bug in this file")
    }
}

const F32: u8 = Dot::F32 as u8;
const BF16: u8 = Dot::Bf16 as u8;
const MIXED: u8 = Dot::Mixed as u8;

/// The lower bf16 of a word, as f32.
#[inline(always)]
fn low(word: u32) -> u32 {
    word << 16
}

/// The upper bf16 of a word, as f32.
#[inline(always)]
fn high(word: u32) -> u32 {
    word & 0xffff_0000
}

/// Writes the kernels of a level. The module it is used in has, as functions with the attribute's features: a vector type `V` of
/// `LANES` f32, `zero`, `load`, `store`, `store_rounded` (to bf16), `splat` (of a word's bits), `mul_add`, `add`, `low` and `high` (of every word), and `dot`
/// for pairs of bf16, which is used where `HAS_DOT`.
macro_rules! kernels {
    ($(#[$attribute:meta])* $([$rows:literal x $panels:literal])*) => {
        use super::{BF16, F32, Form, MIXED, PANEL, Segment, Target, Tile, high as high_of, low as low_of, round};

        /// The products alone. Here every index is a constant once the loops are unrolled, so the sums stay in registers.
        ///
        /// # Safety
        /// As for `Kernel::run`.
        $(#[$attribute])*
        #[inline]
        unsafe fn products<const DOT: u8, const ROWS: usize, const VECTORS: usize>(
            s: &Segment,
            mut acc: [[V; VECTORS]; ROWS],
        ) -> [[V; VECTORS]; ROWS] {
            // SAFETY: promised by the caller.
            unsafe {
                let (mut a, mut b) = (s.a, s.b);
                for _ in 0..s.units {
                    let mut words = [zero(); VECTORS];
                    for v in 0..VECTORS {
                        words[v] = load(b.add(v * LANES / PANEL * s.b_panel + v * LANES % PANEL).cast());
                    }
                    let widened = DOT == MIXED || (DOT == BF16 && !HAS_DOT);
                    let (mut lows, mut highs) = ([zero(); VECTORS], [zero(); VECTORS]);
                    if widened {
                        for v in 0..VECTORS {
                            (lows[v], highs[v]) = (low(words[v]), high(words[v]));
                        }
                    }
                    for i in 0..ROWS {
                        let at = a.add(i / 8 * s.a_group + i % 8 * s.a_row);
                        if widened {
                            let (x, y) = if DOT == MIXED { (*at, *at.add(1)) } else { (low_of(*at), high_of(*at)) };
                            let (x, y) = (splat(x), splat(y));
                            for v in 0..VECTORS {
                                acc[i][v] = mul_add(y, highs[v], mul_add(x, lows[v], acc[i][v]));
                            }
                        } else {
                            let x = splat(*at);
                            for v in 0..VECTORS {
                                acc[i][v] = if DOT == F32 { mul_add(x, words[v], acc[i][v]) } else { dot(acc[i][v], x, words[v]) };
                            }
                        }
                    }
                    a = a.add(s.a_unit);
                    b = b.add(PANEL);
                }
                acc
            }
        }

        /// # Safety
        /// As for `Kernel::run`.
        $(#[$attribute])*
        unsafe fn tile<const DOT: u8, const SECOND: u8, const ROWS: usize, const VECTORS: usize>(t: &Tile) {
            // SAFETY: promised by the caller.
            unsafe {
                let mut sums = products::<DOT, ROWS, VECTORS>(&t.first, [[zero(); VECTORS]; ROWS]);
                if t.second.units > 0 {
                    sums = products::<SECOND, ROWS, VECTORS>(&t.second, sums);
                }
                if !t.plus.is_null() {
                    for (i, sums) in sums.iter_mut().enumerate() {
                        for (v, sum) in sums.iter_mut().enumerate() {
                            *sum = add(*sum, load(t.plus.add(i * t.plus_row + v * LANES)));
                        }
                    }
                }
                if t.n_columns < VECTORS * LANES {
                    for (i, sums) in sums.iter().enumerate() {
                        put_part(t, i, sums);
                    }
                    return;
                }
                match t.target {
                    Target::Set(c) => {
                        for (i, sums) in sums.iter().enumerate() {
                            for (v, &sum) in sums.iter().enumerate() {
                                store(c.add(i * t.row + v * LANES), sum);
                            }
                        }
                    }
                    Target::Add(c) => {
                        for (i, sums) in sums.iter().enumerate() {
                            for (v, &sum) in sums.iter().enumerate() {
                                let at = c.add(i * t.row + v * LANES);
                                store(at, add(load(at), sum));
                            }
                        }
                    }
                    Target::Round(c) => {
                        for (i, sums) in sums.iter().enumerate() {
                            for (v, &sum) in sums.iter().enumerate() {
                                store_rounded(c.add(i * t.row + v * LANES).cast(), sum);
                            }
                        }
                    }
                }
            }
        }

        /// Hands the columns that are there of row `i` to the target.
        ///
        /// # Safety
        /// As for `Kernel::run`.
        $(#[$attribute])*
        unsafe fn put_part<const VECTORS: usize>(t: &Tile, i: usize, sums: &[V; VECTORS]) {
            // SAFETY: promised by the caller.
            unsafe {
                let mut row = [[0.0f32; LANES]; VECTORS];
                for (to, &sum) in row.iter_mut().zip(sums) {
                    store(to.as_mut_ptr(), sum);
                }
                for (j, &x) in row.as_flattened()[..t.n_columns].iter().enumerate() {
                    let at = i * t.row + j;
                    match t.target {
                        Target::Set(c) => *c.add(at) = x,
                        Target::Add(c) => *c.add(at) += x,
                        Target::Round(c) => *c.add(at).cast::<u16>() = round(x),
                    }
                }
            }
        }

        pub fn forms() -> Vec<Form> {
            vec![$(Form {
                rows: $rows,
                panels: $panels,
                run: [
                    tile::<F32, F32, $rows, { $panels * PANEL / LANES }>,
                    tile::<BF16, BF16, $rows, { $panels * PANEL / LANES }>,
                    tile::<MIXED, F32, $rows, { $panels * PANEL / LANES }>,
                ],
            }),*]
        }
    };
}

/// The vectors of both AVX-512 levels.
#[cfg(target_arch = "x86_64")]
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

#[cfg(target_arch = "x86_64")]
mod avx512bf16 {
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

#[cfg(target_arch = "x86_64")]
mod avx512 {
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

#[cfg(target_arch = "x86_64")]
mod avx2 {
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
}

#[cfg(target_arch = "aarch64")]
mod neon {
    use std::arch::aarch64::*;

    type V = float32x4_t;
    const LANES: usize = 4;
    const HAS_DOT: bool = false;

    #[inline]
    fn dot(sum: V, _: V, _: V) -> V {
        sum
    }

    #[inline]
    fn zero() -> V {
        splat(0)
    }

    #[inline]
    unsafe fn load(from: *const f32) -> V {
        // SAFETY: promised by the caller.
        unsafe { vld1q_f32(from) }
    }

    #[inline]
    unsafe fn store(to: *mut f32, x: V) {
        // SAFETY: promised by the caller.
        unsafe { vst1q_f32(to, x) }
    }

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

    #[inline]
    fn splat(word: u32) -> V {
        // SAFETY: every aarch64 processor that Rust knows has these instructions.
        unsafe { vdupq_n_f32(f32::from_bits(word)) }
    }

    #[inline]
    fn mul_add(a: V, b: V, c: V) -> V {
        // SAFETY: as above.
        unsafe { vfmaq_f32(c, a, b) }
    }

    #[inline]
    fn add(a: V, b: V) -> V {
        // SAFETY: as above.
        unsafe { vaddq_f32(a, b) }
    }

    #[inline]
    fn low(words: V) -> V {
        // SAFETY: as above.
        unsafe { vreinterpretq_f32_u32(vshlq_n_u32::<16>(vreinterpretq_u32_f32(words))) }
    }

    #[inline]
    fn high(words: V) -> V {
        // SAFETY: as above.
        unsafe {
            vreinterpretq_f32_u32(vandq_u32(
                vreinterpretq_u32_f32(words),
                vdupq_n_u32(0xffff_0000),
            ))
        }
    }

    kernels!([4 x 1] [2 x 1] [1 x 1]);
}

mod portable {
    type V = f32;
    const LANES: usize = 1;
    const HAS_DOT: bool = false;

    fn dot(sum: V, _: V, _: V) -> V {
        sum
    }

    fn zero() -> V {
        0.0
    }

    unsafe fn load(from: *const f32) -> V {
        // SAFETY: promised by the caller.
        unsafe { *from }
    }

    unsafe fn store(to: *mut f32, x: V) {
        // SAFETY: promised by the caller.
        unsafe { *to = x }
    }

    unsafe fn store_rounded(to: *mut u16, x: V) {
        // SAFETY: promised by the caller.
        unsafe { *to = round(x) }
    }

    fn splat(word: u32) -> V {
        f32::from_bits(word)
    }

    fn mul_add(a: V, b: V, c: V) -> V {
        a.mul_add(b, c)
    }

    fn add(a: V, b: V) -> V {
        a + b
    }

    fn low(words: V) -> V {
        f32::from_bits(super::low(words.to_bits()))
    }

    fn high(words: V) -> V {
        f32::from_bits(super::high(words.to_bits()))
    }

    kernels!([4 x 1] [2 x 1] [1 x 1]);
}
