//! Owns GGML's commonest blocks in the order that products read them: sixteen rows side by side, so that unpacking needs no
//! transpose. A value is code · scale + offset, to the bit what the block stands for: the product of code and scale is exact, or the
//! offset is a multiple of the scale.

use std::ops::{Deref, Range};

use half::f16;

use super::ggml::{GgmlType, half};
use super::ggml_k;
use crate::cpu::buffer::{Buffer, OutOfMemory};
use crate::cpu::element::Element;
use crate::cpu::gemm::{PANEL, ask_for};
use crate::cpu::simd::vectorized;

/// How a kind of block is kept.
#[derive(Debug, Clone, Copy)]
struct Form {
    /// Of a code, 4 or 8.
    bits: usize,
    /// Weights that share a scale.
    group: usize,
    /// Weights that share what their scales are multiples of.
    coarse: usize,
    /// The code that stands for 0.
    zero: f32,
    has_minimum: bool,
    /// Whether groups have scales of their own, in 8 bits.
    is_fine: bool,
}

impl Form {
    fn of(kind: GgmlType) -> Option<Self> {
        let plain = Self {
            bits: 4,
            group: 32,
            coarse: 32,
            zero: 0.0,
            has_minimum: false,
            is_fine: false,
        };
        Some(match kind {
            GgmlType::Q8_0 => Self {
                bits: 8,
                zero: 128.0,
                ..plain
            },
            GgmlType::Q4_0 => Self { zero: 8.0, ..plain },
            GgmlType::Q4_1 => Self {
                has_minimum: true,
                ..plain
            },
            GgmlType::Q4K => Self {
                coarse: 256,
                has_minimum: true,
                is_fine: true,
                ..plain
            },
            GgmlType::Q6K => Self {
                bits: 8,
                group: 16,
                coarse: 256,
                zero: 32.0,
                is_fine: true,
                ..plain
            },
            _ => return None,
        })
    }
}

/// A matrix (rows, columns); rows are filled up with zeros to whole panels.
pub(crate) struct Coded {
    pub kind: GgmlType,
    form: Form,
    columns: usize,
    /// (panels, columns, 16), or (panels, columns / 2, 16) with the even column in the lower half of a byte.
    codes: Buffer<u8>,
    /// (panels, columns / coarse, 16)
    d: Buffer<f32>,
    /// The same, where there are minima; what is subtracted.
    dmin: Buffer<f32>,
    /// (panels, columns / group, 16), where scales are fine.
    scales: Buffer<i8>,
    minima: Buffer<i8>,
}

/// Codes from a row and a column on, as they lie.
pub(crate) struct Codes<'a> {
    pub bits: usize,
    /// Four bytes each.
    pub words: &'a [u32],
    /// Words of a panel.
    pub panel: usize,
    /// Units that share a scale.
    pub group: usize,
}

impl Coded {
    /// Takes the blocks of `rows` rows over, row after row; `None` for kinds that are kept as they are.
    /// Errors: `OutOfMemory`.
    pub fn from_blocks(
        kind: GgmlType,
        rows: usize,
        columns: usize,
        bytes: &[u8],
    ) -> Result<Option<Self>, OutOfMemory> {
        let Some(form) = Form::of(kind) else {
            return Ok(None);
        };
        let n = rows.next_multiple_of(PANEL) * columns;
        let len = |is_there: bool, group: usize| if is_there { n / group } else { 0 };
        let mut coded = Self {
            kind,
            form,
            columns,
            codes: Buffer::zeroed(n * form.bits / 8)?,
            d: Buffer::zeroed(n / form.coarse)?,
            dmin: Buffer::zeroed(len(form.has_minimum, form.coarse))?,
            scales: Buffer::zeroed(len(form.is_fine, form.group))?,
            minima: Buffer::zeroed(len(form.is_fine && form.has_minimum, form.group))?,
        };
        let per_row = columns / kind.block_len();
        for (i, block) in bytes.chunks_exact(kind.block_bytes()).enumerate() {
            coded.put(i / per_row, i % per_row * kind.block_len(), block);
        }
        Ok(Some(coded))
    }

    /// Puts the block of `row` that begins at `column` into its places.
    fn put(&mut self, row: usize, column: usize, block: &[u8]) {
        let Form { group, coarse, .. } = self.form;
        let (panel, lane) = (row / PANEL, row % PANEL);
        let columns = self.columns;
        let place = |column: usize, size: usize| (panel * columns + column) / size * PANEL + lane;
        let (d, dmin) = match self.kind {
            GgmlType::Q4_1 => (half(block, 0), -half(block, 2)),
            GgmlType::Q4K => (half(block, 0), half(block, 2)),
            GgmlType::Q6K => (half(block, 208), 0.0),
            _ => (half(block, 0), 0.0),
        };
        self.d[place(column, coarse)] = d;
        if self.form.has_minimum {
            self.dmin[place(column, coarse)] = dmin;
        }
        if self.form.is_fine {
            for part in 0..self.kind.block_len() / group {
                let at = place(column + part * group, group);
                if self.form.has_minimum {
                    let (scale, minimum) = ggml_k::scale_and_minimum(&block[4..16], part);
                    (self.scales[at], self.minima[at]) = (scale as i8, minimum as i8);
                } else {
                    self.scales[at] = block[192 + part] as i8;
                }
            }
        }
        for (i, code) in codes(self.kind, self.form.zero, block)
            .into_iter()
            .enumerate()
        {
            match self.form.bits {
                8 => self.codes[place(column + i, 1)] = code,
                _ => self.codes[place(column + i, 2)] |= code << (i % 2 * 4),
            }
        }
    }

    /// What a matrix (rows, columns) takes; `None` for kinds that are kept as they are. Bytes.
    pub fn bytes_of(kind: GgmlType, rows: usize, columns: usize) -> Option<usize> {
        let form = Form::of(kind)?;
        let n = rows.next_multiple_of(PANEL) * columns;
        let n_both = 1 + usize::from(form.has_minimum);
        let fine = if form.is_fine { n / form.group } else { 0 };
        Some(n * form.bits / 8 + n_both * (n / form.coarse * 4 + fine))
    }

    /// The memory that codes and scales take. Bytes.
    pub fn n_bytes(&self) -> usize {
        let floats = self.d.len() + self.dmin.len();
        self.codes.len() + floats * 4 + self.scales.len() + self.minima.len()
    }

    /// The values of `row` from column `start` on.
    pub fn dequantize(&self, row: usize, start: usize, out: &mut [f32]) {
        let Form {
            bits,
            group,
            coarse,
            zero,
            ..
        } = self.form;
        let (panel, lane) = (row / PANEL, row % PANEL);
        let fine = |scales: &[i8], at: usize| scales.get(at).map_or(1.0, |&x| f32::from(x));
        for (column, out) in (start..).zip(out) {
            let place = |size: usize| (panel * self.columns + column) / size * PANEL + lane;
            let code = match bits {
                8 => self.codes[place(1)],
                _ => self.codes[place(2)] >> (column % 2 * 4) & 15,
            };
            let scale = self.d[place(coarse)] * fine(&self.scales, place(group));
            *out = match self.dmin.get(place(coarse)) {
                Some(dmin) => f32::from(code) * scale - dmin * fine(&self.minima, place(group)),
                None => (f32::from(code) - zero) * scale,
            };
        }
    }

    /// From `row`, a multiple of sixteen, and `column`, a multiple of a group, on.
    pub fn codes_at(&self, row: usize, column: usize) -> Codes<'_> {
        let per_byte = 8 / self.form.bits;
        let codes = &self.codes[(row * self.columns + column * PANEL) / per_byte..];
        Codes {
            bits: self.form.bits,
            words: bytemuck::cast_slice(&codes[..codes.len() / 4 * 4]),
            panel: self.columns * PANEL / per_byte / 4,
            group: self.form.group,
        }
    }

    /// Length of [`Self::scales`] for so many columns of a panel.
    pub fn scales_len(&self, columns: usize) -> usize {
        columns.div_ceil(self.form.group) * 2 * PANEL
    }

    /// Scales and offsets of a panel in `columns`, from a group's first on: (groups, 2, 16).
    pub fn scales(&self, panel: usize, columns: Range<usize>, out: &mut [f32]) {
        let Form {
            group,
            coarse,
            zero,
            ..
        } = self.form;
        let first = columns.start / group;
        let groups_of_d = coarse / group;
        // Of this panel; nothing where there is none of it.
        let (wide, narrow) = (self.columns / coarse, self.columns / group);
        expand(
            rows(&self.d, panel, wide),
            rows(&self.dmin, panel, wide),
            (
                rows(&self.scales, panel, narrow),
                rows(&self.minima, panel, narrow),
            ),
            zero,
            first..columns.end.div_ceil(group),
            groups_of_d.ilog2(),
            out,
        );
    }

    /// The values of a panel in `columns`, from a multiple of sixteen on, as words (units, 16) of `E`: the panel of a right operand.
    pub fn unpack<E: Element>(&self, panel: usize, columns: Range<usize>, out: &mut [u32]) {
        let Form { bits, group, .. } = self.form;
        let per_byte = 8 / bits;
        let mut scales = [0.0; 2 * PANEL];
        let (mut column, mut rest) = (columns.start, out);
        while column < columns.end {
            let first = column / group * group;
            let end = columns.end.min(first + group);
            self.scales(panel, first..first + 1, &mut scales);
            let codes = &self.codes[(panel * self.columns + column) * PANEL / per_byte..];
            let codes = &codes[..((end - column) * PANEL).div_ceil(per_byte)];
            let (to, after) = std::mem::take(&mut rest)
                .split_at_mut((end - column).div_ceil(E::PER_WORD) * PANEL);
            match bits {
                8 => unpack_bytes::<E>(codes, &scales, to),
                _ => unpack_nibbles::<E>(codes, end - column, &scales, to),
            }
            (column, rest) = (end, after);
        }
    }
}

/// The codes of a block: its values where the scale is 1, no minimum is subtracted, and `zero` is added.
fn codes(kind: GgmlType, zero: f32, block: &[u8]) -> Vec<u8> {
    let mut block = block.to_vec();
    let [low, high] = f16::ONE.to_le_bytes();
    let d = if kind == GgmlType::Q6K { 208 } else { 0 };
    block[d..d + 2].copy_from_slice(&[low, high]);
    match kind {
        GgmlType::Q4_1 => block[2..4].fill(0),
        GgmlType::Q4K => {
            block[2..4].fill(0);
            block[4..16].copy_from_slice(&[1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1]);
        }
        GgmlType::Q6K => block[192..208].fill(1),
        _ => {}
    }
    let mut values = vec![0.0; kind.block_len()];
    kind.dequantize(&block, &mut values);
    values.into_iter().map(|x| (x + zero) as u8).collect()
}

/// The rows of sixteen that belong to `panel`, of which there are `n` for each panel; none if `all` is empty.
fn rows<T>(all: &Buffer<T>, panel: usize, n: usize) -> &[[T; PANEL]]
where
    Buffer<T>: Deref<Target = [T]>,
{
    let all = all.as_chunks().0;
    all.get(panel * n..(panel + 1) * n).unwrap_or_default()
}

/// How many rows of `d` ahead of its use one is asked for.
const ROWS_AHEAD: usize = 32;

vectorized! {
    /// Scales and offsets of `groups`, 2^`shift` of which share a `d`.
    fn expand(
        d: &[[f32; PANEL]],
        dmin: &[[f32; PANEL]],
        fine: (&[[i8; PANEL]], &[[i8; PANEL]]),
        zero: f32,
        groups: Range<usize>,
        shift: u32,
        out: &mut [f32],
    ) {
        for (group, out) in groups.zip(out.as_chunks_mut::<{ 2 * PANEL }>().0) {
            let coarse = group >> shift;
            let (scales, offsets) = out.split_at_mut(PANEL);
            ask_for(d.as_ptr().wrapping_add(coarse + ROWS_AHEAD).cast());
            scales.copy_from_slice(&d[coarse]);
            if let Some(fine) = fine.0.get(group) {
                for j in 0..PANEL {
                    scales[j] *= f32::from(fine[j]);
                }
            }
            match (dmin.get(coarse), fine.1.get(group)) {
                (None, _) => {
                    for j in 0..PANEL {
                        offsets[j] = -(zero * scales[j]);
                    }
                }
                (Some(dmin), None) => {
                    for j in 0..PANEL {
                        offsets[j] = -dmin[j];
                    }
                }
                (Some(dmin), Some(fine)) => {
                    for j in 0..PANEL {
                        offsets[j] = -(dmin[j] * f32::from(fine[j]));
                    }
                }
            }
        }
    }
}

vectorized! {
    fn unpack_bytes[E](codes: &[u8], scales: &[f32; 2 * PANEL], out: &mut [u32]) {
        let codes = codes.as_chunks::<PANEL>().0;
        for (to, codes) in out.as_chunks_mut::<PANEL>().0.iter_mut().zip(codes.chunks(E::PER_WORD)) {
            let second = if codes.len() > 1 { values(&codes[1], scales) } else { [0.0; PANEL] };
            let first = values(&codes[0], scales);
            for j in 0..PANEL {
                to[j] = E::word(E::from_f32(first[j]), E::from_f32(second[j]));
            }
        }
    }
}

vectorized! {
    fn unpack_nibbles[E](codes: &[u8], n: usize, scales: &[f32; 2 * PANEL], out: &mut [u32]) {
        let out = out.as_chunks_mut::<PANEL>().0;
        for (i, codes) in codes.as_chunks::<PANEL>().0.iter().enumerate() {
            let (mut low, mut high) = ([0; PANEL], [0; PANEL]);
            for j in 0..PANEL {
                low[j] = codes[j] & 15;
                high[j] = codes[j] >> 4;
            }
            let first = values(&low, scales);
            let second = if 2 * i + 1 < n { values(&high, scales) } else { [0.0; PANEL] };
            if E::PER_WORD == 2 {
                for j in 0..PANEL {
                    out[i][j] = E::word(E::from_f32(first[j]), E::from_f32(second[j]));
                }
                continue;
            }
            for (k, values) in [first, second].into_iter().enumerate().take(n - 2 * i) {
                for j in 0..PANEL {
                    out[2 * i + k][j] = E::word(E::from_f32(values[j]), E::default());
                }
            }
        }
    }
}

#[inline(always)]
fn values(codes: &[u8; PANEL], scales: &[f32; 2 * PANEL]) -> [f32; PANEL] {
    let mut values = [0.0; PANEL];
    for j in 0..PANEL {
        values[j] = f32::from(codes[j]).mul_add(scales[j], scales[PANEL + j]);
    }
    values
}
