//! Owns the innermost loops: a tile of C held in registers, one kernel for each instruction-set level.

use std::sync::OnceLock;

use super::PANEL;
use crate::simd::Isa;

/// One tile: C (rows, columns) from A (rows, depth) and B (depth, columns), both where they lie.
pub(super) struct Tile {
    pub depth: usize,
    pub a: *const f32,
    pub a_row: usize,
    pub a_depth: usize,
    pub b: *const f32,
    pub b_panel: usize,
    pub b_depth: usize,
    pub c: *mut f32,
    pub c_row: usize,
    /// Columns that are written; the last panel may be a part.
    pub n_columns: usize,
    /// Add to C instead of overwriting it.
    pub add: bool,
}

type TileFn = unsafe fn(&Tile);

/// The kernels of one level.
pub(super) struct Kernel {
    /// Most rows of a tile.
    pub rows: usize,
    /// Most panels of a tile.
    pub panels: usize,
    /// For n rows and m panels at `(n - 1) * panels + m - 1`.
    tiles: Vec<TileFn>,
}

impl Kernel {
    /// The kernels for this machine.
    pub fn detected() -> &'static Self {
        static KERNEL: OnceLock<Kernel> = OnceLock::new();
        KERNEL.get_or_init(|| Kernel::for_isa(Isa::detect()))
    }

    /// The kernels of a level, which the machine must have.
    pub fn for_isa(isa: Isa) -> Self {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => Self {
                rows: 8,
                panels: 3,
                tiles: avx512::tiles(),
            },
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => Self {
                rows: 6,
                panels: 1,
                tiles: avx2::tiles(),
            },
            _ => Self {
                rows: 4,
                panels: 1,
                tiles: portable::tiles(),
            },
        }
    }

    /// # Safety
    /// `tile` must describe memory that is valid, and that nobody else uses for C; `n_rows` ≤ `rows`, `n_panels` ≤ `panels`.
    #[inline]
    pub unsafe fn run(&self, n_rows: usize, n_panels: usize, tile: &Tile) {
        // SAFETY: promised by the caller.
        unsafe { self.tiles[(n_rows - 1) * self.panels + n_panels - 1](tile) }
    }
}

/// Writes a kernel for `lanes`-wide vectors. `vectors` of them make the columns of the tile.
macro_rules! tile_kernel {
    ($(#[$attribute:meta])* $vector:ty, $lanes:literal, $zero:expr, $load:expr, $store:expr, $splat:expr, $mul_add:expr, $add:expr) => {
        /// The products alone. Here every index is a constant once the loops are unrolled, so the sums stay in registers;
        /// in one function with the stores below, the compiler keeps them in memory.
        ///
        /// # Safety
        /// As for `Kernel::run`.
        $(#[$attribute])*
        #[inline]
        unsafe fn products<const ROWS: usize, const VECTORS: usize>(t: &Tile) -> [[$vector; VECTORS]; ROWS] {
            // SAFETY: promised by the caller.
            unsafe {
                let mut acc = [[$zero; VECTORS]; ROWS];
                let (mut a, mut b) = (t.a, t.b);
                let (a_row, a_depth, b_panel, b_depth) = (t.a_row, t.a_depth, t.b_panel, t.b_depth);
                for _ in 0..t.depth {
                    let mut row_of_b = [$zero; VECTORS];
                    for v in 0..VECTORS {
                        row_of_b[v] = $load(b.add(v * $lanes / PANEL * b_panel + v * $lanes % PANEL));
                    }
                    for i in 0..ROWS {
                        let x = $splat(*a.add(i * a_row));
                        for v in 0..VECTORS {
                            acc[i][v] = $mul_add(x, row_of_b[v], acc[i][v]);
                        }
                    }
                    a = a.add(a_depth);
                    b = b.add(b_depth);
                }
                acc
            }
        }

        /// # Safety
        /// As for `Kernel::run`.
        $(#[$attribute])*
        unsafe fn tile<const ROWS: usize, const VECTORS: usize>(t: &Tile) {
            // SAFETY: promised by the caller.
            unsafe {
                let sums = products::<ROWS, VECTORS>(t);
                for (i, sums) in sums.iter().enumerate() {
                    let c = t.c.add(i * t.c_row);
                    if t.n_columns == VECTORS * $lanes {
                        for (v, &sum) in sums.iter().enumerate() {
                            let c = c.add(v * $lanes);
                            $store(c, if t.add { $add($load(c), sum) } else { sum });
                        }
                    } else {
                        let mut row = [[0.0f32; $lanes]; VECTORS];
                        for (to, &sum) in row.iter_mut().zip(sums) {
                            $store(to.as_mut_ptr(), sum);
                        }
                        for (j, &x) in row.as_flattened()[..t.n_columns].iter().enumerate() {
                            *c.add(j) = if t.add { *c.add(j) + x } else { x };
                        }
                    }
                }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::{PANEL, Tile, TileFn};
    use std::arch::x86_64::*;

    tile_kernel!(
        #[target_feature(enable = "avx512f")]
        __m512,
        16,
        _mm512_setzero_ps(),
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_set1_ps,
        _mm512_fmadd_ps,
        _mm512_add_ps
    );

    #[rustfmt::skip]
    pub fn tiles() -> Vec<TileFn> {
        vec![
            tile::<1, 1>, tile::<1, 2>, tile::<1, 3>,
            tile::<2, 1>, tile::<2, 2>, tile::<2, 3>,
            tile::<3, 1>, tile::<3, 2>, tile::<3, 3>,
            tile::<4, 1>, tile::<4, 2>, tile::<4, 3>,
            tile::<5, 1>, tile::<5, 2>, tile::<5, 3>,
            tile::<6, 1>, tile::<6, 2>, tile::<6, 3>,
            tile::<7, 1>, tile::<7, 2>, tile::<7, 3>,
            tile::<8, 1>, tile::<8, 2>, tile::<8, 3>,
        ]
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::{PANEL, Tile, TileFn};
    use std::arch::x86_64::*;

    tile_kernel!(
        #[target_feature(enable = "avx2,fma")]
        __m256,
        8,
        _mm256_setzero_ps(),
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_set1_ps,
        _mm256_fmadd_ps,
        _mm256_add_ps
    );

    pub fn tiles() -> Vec<TileFn> {
        vec![
            tile::<1, 2>,
            tile::<2, 2>,
            tile::<3, 2>,
            tile::<4, 2>,
            tile::<5, 2>,
            tile::<6, 2>,
        ]
    }
}

mod portable {
    use super::{PANEL, Tile, TileFn};

    unsafe fn load(from: *const f32) -> f32 {
        // SAFETY: promised by the caller.
        unsafe { *from }
    }

    unsafe fn store(to: *mut f32, x: f32) {
        // SAFETY: promised by the caller.
        unsafe { *to = x }
    }

    tile_kernel!(
        f32,
        1,
        0.0,
        load,
        store,
        std::convert::identity,
        f32::mul_add,
        |a: f32, b: f32| a + b
    );

    pub fn tiles() -> Vec<TileFn> {
        vec![tile::<1, 16>, tile::<2, 16>, tile::<3, 16>, tile::<4, 16>]
    }
}
