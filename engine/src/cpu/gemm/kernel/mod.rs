//! Owns the innermost loops: a tile of C held in registers, one kernel for each instruction-set level and kind of product.

#[macro_use]
mod tile;
#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;

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
    /// A word of B is four bytes, codes of columns side by side; code · scale + offset of its column meets an f32 of A: the chain of
    /// `F32` over the values that the codes stand for.
    Bytes = 3,
    /// The same with codes of two units in a byte, the first in its lower half.
    Nibbles = 4,
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
    /// Of codes, sixteen scales and sixteen offsets for each group of units, of which there is a whole number; null for all else.
    pub scales: *const f32,
    /// Between the scales of panels.
    pub scales_panel: usize,
    /// Units of codes that share a scale.
    pub scales_group: usize,
}

impl Segment {
    pub const NOTHING: Self = Self {
        units: 0,
        a: std::ptr::null(),
        a_row: 0,
        a_group: 0,
        a_unit: 0,
        b: std::ptr::null(),
        b_panel: 0,
        scales: std::ptr::null(),
        scales_panel: 0,
        scales_group: 1,
    };
}

/// What becomes of the sums.
#[derive(Clone, Copy)]
pub(super) enum Target {
    Set(*mut f32),
    Add(*mut f32),
    Round(*mut bf16),
}

/// One tile of C: a chain that begins with `start`, goes on over `change` in the product of A's own format, then over `main` in the
/// kernel's kind of product.
pub(super) struct Tile {
    pub main: Segment,
    pub change: Segment,
    /// What the sums begin with; null for zeros. Rows are `start_row` apart, and have room for whole panels.
    pub start: *const f32,
    pub start_row: usize,
    /// What is added to the sums at the end; null for nothing. Rows are `plus_row` apart.
    pub plus: *const f32,
    pub plus_row: usize,
    pub target: Target,
    /// Between rows of the target, in its own numbers.
    pub row: usize,
    /// Columns that are written; the last panel may be a part.
    pub n_columns: usize,
}

impl Target {
    /// The target `n` numbers further on.
    pub fn skip(self, n: usize) -> Self {
        match self {
            Target::Set(c) => Target::Set(c.wrapping_add(n)),
            Target::Add(c) => Target::Add(c.wrapping_add(n)),
            Target::Round(c) => Target::Round(c.wrapping_add(n)),
        }
    }
}

type TileFn = unsafe fn(&Tile);

/// A tile that there is a kernel for.
struct Form {
    rows: usize,
    panels: usize,
    /// By [`Dot`].
    run: [TileFn; 5],
}

/// The kernels of one level.
pub(super) struct Kernel {
    /// Most panels of a tile.
    pub panels: usize,
    /// Whether the processor multiplies bf16 in tiles of its own.
    has_tiles: bool,
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
            Isa::Amx | Isa::Avx512Bf16 => avx512::with_pairs::forms(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => avx512::plain::forms(),
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
            has_tiles: isa == Isa::Amx,
            forms: by_panels,
        }
    }

    /// The most rows of a tile.
    pub fn most_rows(&self, dot: Dot) -> usize {
        #[cfg(target_arch = "x86_64")]
        if self.in_tiles(dot) {
            return amx::MOST_ROWS;
        }
        24
    }

    /// Whether products of this kind are computed in the processor's own tiles, and a left operand for them is packed in such.
    pub fn in_tiles(&self, dot: Dot) -> bool {
        self.has_tiles && dot == Dot::Bf16
    }

    /// The most rows from `row` on, of `n_rows`, that one tile of `n_panels` can take: within a group of packed ones if it begins within
    /// one.
    #[inline]
    pub fn rows(&self, dot: Dot, row: usize, n_rows: usize, n_panels: usize) -> usize {
        #[cfg(target_arch = "x86_64")]
        if self.in_tiles(dot) {
            return amx::rows(n_rows);
        }
        let most = if row.is_multiple_of(8) {
            24
        } else {
            8 - row % 8
        };
        self.form(n_rows.min(most), n_panels).rows
    }

    /// Runs a tile of exactly [`Self::rows`] rows.
    ///
    /// # Safety
    /// `tile` must describe memory that is valid, and that nobody else uses for C.
    #[inline]
    pub unsafe fn run(&self, dot: Dot, n_rows: usize, n_panels: usize, tile: &Tile) {
        #[cfg(target_arch = "x86_64")]
        if self.in_tiles(dot) {
            // SAFETY: promised by the caller; the level has tiles.
            return unsafe { self.run_in_tiles(n_rows, n_panels, tile) };
        }
        // SAFETY: promised by the caller.
        unsafe { self.form(n_rows, n_panels).run[dot as usize](tile) }
    }

    /// The processor's tiles make the sums; what becomes of them is up to the forms, which add nothing to them.
    ///
    /// # Safety
    /// As for [`Self::run`]; the machine must have AMX.
    #[cfg(target_arch = "x86_64")]
    unsafe fn run_in_tiles(&self, n_rows: usize, n_panels: usize, tile: &Tile) {
        let mut sums = amx::Sums::uninit();
        // SAFETY: promised by the caller.
        unsafe { amx::sums(n_rows, n_panels, tile, &mut sums) };
        let mut row = 0;
        while row < n_rows {
            let form = self.form(n_rows - row, n_panels);
            let rest = Tile {
                main: Segment::NOTHING,
                change: Segment::NOTHING,
                start: sums.row(row),
                start_row: amx::SUMS_ROW,
                plus: if tile.plus.is_null() {
                    tile.plus
                } else {
                    tile.plus.wrapping_add(row * tile.plus_row)
                },
                target: tile.target.skip(row * tile.row),
                ..*tile
            };
            // SAFETY: promised by the caller; the sums of these rows are there.
            unsafe { form.run[Dot::Bf16 as usize](&rest) };
            row += form.rows;
        }
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
const BYTES: u8 = Dot::Bytes as u8;
const NIBBLES: u8 = Dot::Nibbles as u8;

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

/// Tiles of up to so many rows ask for the next one's panels: a product of few rows waits for B. In one of many rows it costs little.
const FEW_ROWS: usize = 8;

/// What the processor brings at once. Bytes.
const LINE: usize = 64;

/// Has the line at `address` brought into the second-level cache; an address at which nothing is does no harm.
#[inline(always)]
pub(crate) fn ask_for(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, which never faults; the instruction is part of every such processor.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}
