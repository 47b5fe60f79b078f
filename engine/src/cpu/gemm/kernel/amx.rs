//! Tiles of AMX: sixteen rows by sixteen columns of sums, which one instruction moves on by 32 numbers of the depth.
//!
//! An element of C goes on from 32 numbers to the next: to it is added what the products at even places and those at odd ones come to, each a
//! chain. A part of the depth that ends within 32 numbers is filled up with zeros, which change no sum; so an element depends on its own row and
//! column alone, as everywhere. Source of the order: Intel's description of TDPBF16PS.
//!
//! Sums stay in the tile registers from one `asm!` to the next: nothing that the compiler writes touches those.

use std::arch::asm;
use std::arch::x86_64::{
    __m512i, _mm512_loadu_si512, _mm512_maskz_loadu_epi32, _mm512_setzero_si512,
};
use std::cell::Cell;
use std::mem::MaybeUninit;

use super::{PANEL, Segment, Tile};
use crate::cpu::gemm::TILE;

const MOST_PANELS: usize = 3;
pub(super) const MOST_ROWS: usize = 2 * TILE;
/// Between rows of the sums.
pub(super) const SUMS_ROW: usize = MOST_PANELS * PANEL;
/// Between rows of a panel, and of a tile of A that was copied. Bytes.
const ROW_BYTES: usize = 4 * TILE;

/// The sums of a tile of C before anything else happens to them.
#[repr(align(64))]
pub(super) struct Sums([MaybeUninit<[f32; SUMS_ROW]>; MOST_ROWS]);

impl Sums {
    pub fn uninit() -> Self {
        Self([const { MaybeUninit::uninit() }; MOST_ROWS])
    }

    pub fn row(&self, i: usize) -> *const f32 {
        self.0[i].as_ptr().cast()
    }
}

/// The most rows ≤ `n_rows` that are computed at once: two registers of sixteen, or one.
pub(super) fn rows(n_rows: usize) -> usize {
    match n_rows {
        MOST_ROWS.. => MOST_ROWS,
        TILE.. => TILE,
        fewer => fewer,
    }
}

/// What LDTILECFG reads.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

thread_local! {
    /// Rows of the registers of sums and of A on this thread; 0 before the first product.
    static N_ROWS: Cell<usize> = const { Cell::new(0) };
}

/// Gives the registers 0 to 5 (sums) and 6 (A) `n_rows` rows, and 7 (B) sixteen.
fn shape(n_rows: usize) {
    if N_ROWS.replace(n_rows) == n_rows {
        return;
    }
    let mut shapes = Shapes {
        palette: 1,
        start_row: 0,
        reserved: [0; 14],
        row_bytes: [0; 16],
        rows: [0; 16],
    };
    shapes.row_bytes[..8].fill(ROW_BYTES as u16);
    shapes.rows[..7].fill(n_rows as u8);
    shapes.rows[7] = TILE as u8;
    // SAFETY: reads 64 bytes; the shapes are those that the palette allows.
    unsafe {
        asm!("ldtilecfg [{shapes}]", shapes = in(reg) &shapes, options(nostack, readonly, preserves_flags))
    };
}

/// One instruction on each register of sums that there is for `$two` rows of tiles and `$panels` panels: `$what!(register, row of tiles, panel)`.
macro_rules! for_each_sum {
    ($two:expr, $panels:expr, $what:ident) => {
        $what!("tmm0", 0, 0);
        if $panels > 1 {
            $what!("tmm1", 0, 1);
        }
        if $panels > 2 {
            $what!("tmm2", 0, 2);
        }
        if $two {
            $what!("tmm3", 1, 0);
            if $panels > 1 {
                $what!("tmm4", 1, 1);
            }
            if $panels > 2 {
                $what!("tmm5", 1, 2);
            }
        }
    };
}

macro_rules! load {
    ($register:literal, $from:expr, $row_bytes:expr) => {
        asm!(concat!("tileloadd ", $register, ", [{from} + {row}]"), from = in(reg) $from, row = in(reg) $row_bytes,
            options(nostack, readonly, preserves_flags))
    };
}

/// The sums of `n_rows` rows and `n_panels` panels of a tile of C: its start, its change and its main product.
///
/// # Safety
/// As for `Kernel::run`; `n_rows` is what [`rows`] gives, and the machine has AMX.
pub(super) unsafe fn sums(n_rows: usize, n_panels: usize, t: &Tile, to: &mut Sums) {
    let two = n_rows == MOST_ROWS;
    shape(n_rows.min(TILE));
    // SAFETY: promised by the caller.
    unsafe {
        match (two, n_panels) {
            (false, 1) => sums_of::<false, 1>(n_rows, t, to),
            (false, 2) => sums_of::<false, 2>(n_rows, t, to),
            (false, _) => sums_of::<false, 3>(n_rows, t, to),
            (true, 1) => sums_of::<true, 1>(n_rows, t, to),
            (true, 2) => sums_of::<true, 2>(n_rows, t, to),
            (true, _) => sums_of::<true, 3>(n_rows, t, to),
        }
    }
}

/// # Safety
/// As for [`sums`].
unsafe fn sums_of<const TWO: bool, const PANELS: usize>(n_rows: usize, t: &Tile, to: &mut Sums) {
    let (to, to_row) = (to.0.as_mut_ptr().cast::<f32>(), 4 * SUMS_ROW);
    // SAFETY: promised by the caller.
    unsafe {
        macro_rules! zero {
            ($register:literal, $i:literal, $panel:literal) => {
                asm!(
                    concat!("tilezero ", $register),
                    options(nostack, nomem, preserves_flags)
                )
            };
        }
        macro_rules! start {
            ($register:literal, $i:literal, $panel:literal) => {
                load!(
                    $register,
                    t.start.add($i * TILE * t.start_row + $panel * PANEL),
                    4 * t.start_row
                )
            };
        }
        macro_rules! store {
            ($register:literal, $i:literal, $panel:literal) => {
                asm!(concat!("tilestored [{to} + {row}], ", $register), to = in(reg) to.add($i * TILE * SUMS_ROW + $panel * PANEL),
                    row = in(reg) to_row, options(nostack, preserves_flags))
            };
        }
        if t.start.is_null() {
            for_each_sum!(TWO, PANELS, zero);
        } else {
            for_each_sum!(TWO, PANELS, start);
        }
        add::<TWO, PANELS>(n_rows, &t.change);
        add::<TWO, PANELS>(n_rows, &t.main);
        for_each_sum!(TWO, PANELS, store);
    }
}

/// Both operands for one step of the depth. Distances are in words.
struct Step {
    a: *const u32,
    a_row: usize,
    /// Between sixteen rows of A and the next.
    a_tile: usize,
    b: *const u32,
    b_panel: usize,
}

/// Adds the products of a part of the depth to the sums.
///
/// # Safety
/// As for [`sums`].
#[inline(always)]
unsafe fn add<const TWO: bool, const PANELS: usize>(n_rows: usize, s: &Segment) {
    let mut step = Step {
        a: s.a,
        a_row: s.a_row,
        a_tile: 2 * s.a_group,
        b: s.b,
        b_panel: s.b_panel,
    };
    for _ in 0..s.units / TILE {
        // SAFETY: promised by the caller.
        unsafe { multiply::<TWO, PANELS>(&step) };
        step.a = step.a.wrapping_add(TILE * s.a_unit);
        step.b = step.b.wrapping_add(TILE * PANEL);
    }
    let rest = s.units % TILE;
    if rest > 0 {
        // SAFETY: promised by the caller.
        unsafe { multiply_rest::<TWO, PANELS>(n_rows, rest, &step) };
    }
}

/// # Safety
/// As for [`sums`].
#[inline(always)]
unsafe fn multiply<const TWO: bool, const PANELS: usize>(step: &Step) {
    // SAFETY: promised by the caller.
    unsafe {
        macro_rules! multiply {
            ($register:literal, $i:literal, $panel:literal) => {
                if $panel == 0 {
                    load!(
                        "tmm6",
                        step.a.wrapping_add($i * step.a_tile),
                        4 * step.a_row
                    );
                }
                load!(
                    "tmm7",
                    step.b.wrapping_add($panel * step.b_panel),
                    ROW_BYTES
                );
                asm!(
                    concat!("tdpbf16ps ", $register, ", tmm6, tmm7"),
                    options(nostack, nomem, preserves_flags)
                );
            };
        }
        for_each_sum!(TWO, PANELS, multiply);
    }
}

/// The last `rest` units of a part of the depth, filled up with zeros.
///
/// # Safety
/// As for [`sums`].
#[target_feature(enable = "avx512f")]
unsafe fn multiply_rest<const TWO: bool, const PANELS: usize>(
    n_rows: usize,
    rest: usize,
    step: &Step,
) {
    #[repr(align(64))]
    struct Copied<const N: usize>([MaybeUninit<__m512i>; N]);
    let mut a = Copied::<MOST_ROWS>([const { MaybeUninit::uninit() }; MOST_ROWS]);
    let mut b = Copied::<{ MOST_PANELS * TILE }>([const { MaybeUninit::uninit() }; _]);
    let there = (1 << rest) - 1;
    // SAFETY: promised by the caller; the copies have room for whole tiles.
    unsafe {
        for (i, row) in a.0[..n_rows].iter_mut().enumerate() {
            let from = step
                .a
                .wrapping_add(i / TILE * step.a_tile + i % TILE * step.a_row);
            row.write(_mm512_maskz_loadu_epi32(there, from.cast()));
        }
        for (panel, to) in b.0.chunks_exact_mut(TILE).take(PANELS).enumerate() {
            let from = step.b.wrapping_add(panel * step.b_panel);
            for (unit, row) in to.iter_mut().enumerate() {
                row.write(if unit < rest {
                    _mm512_loadu_si512(from.add(unit * PANEL).cast())
                } else {
                    _mm512_setzero_si512()
                });
            }
        }
        multiply::<TWO, PANELS>(&Step {
            a: a.0.as_ptr().cast(),
            a_row: TILE,
            a_tile: TILE * TILE,
            b: b.0.as_ptr().cast(),
            b_panel: TILE * PANEL,
        });
    }
}
