//! Owns the reordering of numbers into the words that the kernels read: pairs along the depth where a word holds two.

use super::{PANEL, turn};
use crate::cpu::element::Element;
use crate::cpu::simd::vectorized;

/// Words of the depth that are turned at once.
const BLOCK: usize = 16;

/// W (columns, depth), row-major with rows `stride` apart, times `scale` → panels for X·Wᵀ, (columns / 16, units, 16).
pub(super) fn weight<S: Element, E: Element>(
    w: &[S],
    stride: usize,
    columns: usize,
    depth: usize,
    scale: f32,
    out: &mut [u32],
) {
    let units = depth.div_ceil(E::PER_WORD);
    for (panel, out) in out.chunks_exact_mut((PANEL * units).max(1)).enumerate() {
        let n = PANEL.min(columns - panel * PANEL);
        for (block, out) in out.chunks_mut(PANEL * BLOCK).enumerate() {
            let first = block * BLOCK * E::PER_WORD;
            let rows: [&[S]; PANEL] = std::array::from_fn(|j| {
                if j < n {
                    let row = (panel * PANEL + j) * stride;
                    &w[row + first..row + depth]
                } else {
                    &[]
                }
            });
            let out = out.as_chunks_mut().0;
            let as_they_lie = rows.map(|row| words_of::<S, E>(row, scale));
            if let Some(words) = all(as_they_lie) {
                turn::words(words, out);
                continue;
            }
            let mut block = [[0; BLOCK]; PANEL];
            weight_block::<S, E>(&rows, scale, out.len(), &mut block);
            turn::words(block.each_ref(), out);
        }
    }
}

/// The first sixteen words of a row whose numbers are already what the words are made of.
fn words_of<S: Element, E: Element>(row: &[S], scale: f32) -> Option<&[u32; BLOCK]> {
    let row = row.get(..BLOCK * S::PER_WORD)?;
    let same = S::PRECISION == E::PRECISION && scale == 1.0;
    // A row of pairs may begin within a word.
    let words: &[u32] = bytemuck::try_cast_slice(row).ok().filter(|_| same)?;
    words.first_chunk()
}

/// All of them, if none is missing.
fn all<T: Copy, const N: usize>(parts: [Option<T>; N]) -> Option<[T; N]> {
    let first = parts[0]?;
    let mut whole = [first; N];
    for (to, part) in whole.iter_mut().zip(parts) {
        *to = part?;
    }
    Some(whole)
}

vectorized! {
    /// Sixteen rows of W → up to sixteen words of each.
    fn weight_block[S, E](rows: &[&[S]; PANEL], scale: f32, n_words: usize, block: &mut [[u32; BLOCK]; PANEL]) {
        for (words, row) in block.iter_mut().zip(rows) {
            let whole = (row.len() / E::PER_WORD).min(n_words);
            for (u, word) in words[..whole].iter_mut().enumerate() {
                *word = word_at::<S, E>(row[u * E::PER_WORD], row[u * E::PER_WORD + E::PER_WORD - 1], scale);
            }
            if whole < n_words && whole * E::PER_WORD < row.len() {
                words[whole] = E::word(scaled(row[whole * E::PER_WORD], scale), E::default());
            }
        }
    }
}

#[inline(always)]
fn scaled<S: Element, E: Element>(x: S, scale: f32) -> E {
    if scale == 1.0 {
        E::from_element(x)
    } else {
        E::from_f32(x.to_f32() * scale)
    }
}

#[inline(always)]
fn word_at<S: Element, E: Element>(first: S, second: S, scale: f32) -> u32 {
    E::word(scaled(first, scale), scaled(second, scale))
}

/// B (depth, columns), row-major with rows `stride` apart, times `scale` → groups of `WIDTH` columns, (columns / WIDTH, units, WIDTH),
/// zeros beyond the columns and the depth. `WIDTH` is 16 for a right operand, 8 for the transpose of a left one.
pub(super) fn rows<const WIDTH: usize, S: Element, E: Element>(
    b: &[S],
    stride: usize,
    depth: usize,
    columns: usize,
    scale: f32,
    out: &mut [u32],
) {
    let units = depth.div_ceil(E::PER_WORD);
    let groups = out
        .chunks_exact_mut((WIDTH * units).max(1))
        .take(columns.div_ceil(WIDTH));
    for (group, out) in groups.enumerate() {
        let first = group * WIDTH;
        let n = WIDTH.min(columns - first);
        group_of_rows::<S, E>(&b[first..], stride, depth, n, scale, out, WIDTH);
    }
}

/// The transpose of B (depth, columns), row-major with rows `stride` apart → tiles of a left operand, (columns / 16, units / 16, 16, 16):
/// sixteen words along the depth for each of sixteen columns; zeros beyond both.
pub(super) fn tiles<S: Element, E: Element>(
    b: &[S],
    stride: usize,
    depth: usize,
    columns: usize,
    out: &mut [u32],
) {
    let units = depth.div_ceil(E::PER_WORD).next_multiple_of(BLOCK);
    for (group, out) in out
        .chunks_exact_mut((PANEL * units).max(1))
        .take(columns.div_ceil(PANEL))
        .enumerate()
    {
        let first = group * PANEL;
        let n = PANEL.min(columns - first);
        for (block, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
            let row = block * BLOCK * E::PER_WORD;
            let depth = (depth - row).min(BLOCK * E::PER_WORD);
            let b = &b[row * stride + first..];
            let mut words = [[0; PANEL]; BLOCK];
            let whole = words[..depth.div_ceil(E::PER_WORD)].as_flattened_mut();
            group_of_rows::<S, E>(b, stride, depth, n, 1.0, whole, PANEL);
            let out: &mut [u32; PANEL * BLOCK] = out;
            turn::words(words.each_ref(), out.as_chunks_mut().0);
        }
    }
}

/// One group of `width` columns, of which `n` are there.
fn group_of_rows<S: Element, E: Element>(
    b: &[S],
    stride: usize,
    depth: usize,
    n: usize,
    scale: f32,
    out: &mut [u32],
    width: usize,
) {
    match (n, width, scale == 1.0) {
        (16, 16, true) => sixteen_columns::<S, E>(b, stride, depth, out),
        (8, 8, true) => eight_columns::<S, E>(b, stride, depth, out),
        _ => part_of_rows::<S, E>(b, stride, depth, n, scale, out, width),
    }
}

vectorized! {
    fn sixteen_columns[S, E](b: &[S], stride: usize, depth: usize, out: &mut [u32]) {
        columns::<16, S, E>(b, stride, depth, out);
    }
}

vectorized! {
    fn eight_columns[S, E](b: &[S], stride: usize, depth: usize, out: &mut [u32]) {
        columns::<8, S, E>(b, stride, depth, out);
    }
}

/// The usual case, in which every loop over columns has a constant length.
#[inline(always)]
fn columns<const N: usize, S: Element, E: Element>(
    b: &[S],
    stride: usize,
    depth: usize,
    out: &mut [u32],
) {
    let zeros = [S::default(); N];
    for (u, out) in out.as_chunks_mut::<N>().0.iter_mut().enumerate() {
        let row = u * E::PER_WORD;
        let first: &[S; N] = b[row * stride..]
            .first_chunk()
            .expect("a row has all its columns — a bug in the caller");
        let second = if row + E::PER_WORD > depth {
            &zeros
        } else {
            b[(row + E::PER_WORD - 1) * stride..]
                .first_chunk()
                .expect("as above")
        };
        for j in 0..N {
            out[j] = E::word(E::from_element(first[j]), E::from_element(second[j]));
        }
    }
}

vectorized! {
    fn part_of_rows[S, E](b: &[S], stride: usize, depth: usize, n: usize, scale: f32, out: &mut [u32], width: usize) {
        let n_pairs = depth / E::PER_WORD;
        for (u, out) in out.chunks_exact_mut(width).enumerate() {
            let first = &b[u * E::PER_WORD * stride..][..n];
            let (out, rest) = out.split_at_mut(n);
            if u < n_pairs {
                let second = &b[(u * E::PER_WORD + E::PER_WORD - 1) * stride..][..n];
                for ((out, first), second) in out.iter_mut().zip(first).zip(second) {
                    *out = word_at::<S, E>(*first, *second, scale);
                }
            } else {
                for (out, first) in out.iter_mut().zip(first) {
                    *out = E::word(scaled(*first, scale), E::default());
                }
            }
            rest.fill(0);
        }
    }
}

/// Rows of a panel that one call of [`turn_block`] takes: sixteen columns of B, which are rows of W.
type PanelRows<S> = [[S; PANEL]; PANEL];

/// Part of panels for X·Wᵀ turned into a panel for dY·W: sixteen rows of W from `words` (sixteen columns of W, as words of `S`),
/// of which `n` are there, → `out`, (8 or 16 units, 16).
pub(super) fn turn_part<S: Element, E: Element>(words: &[u32], n: usize, out: &mut [u32]) {
    let pairs = S::PER_WORD == 2 && E::PER_WORD == 2;
    match (words.as_array(), out.as_mut_array()) {
        (Some(words), Some(out)) if pairs => turn::pairs(words, out),
        _ => turn_block::<S, E>(words, n, out),
    }
}

vectorized! {
    fn turn_block[S, E](words: &[u32], n: usize, out: &mut [u32]) {
        let mut rows: PanelRows<S> = [[S::default(); PANEL]; PANEL];
        for (u, words) in words.chunks_exact(PANEL).enumerate() {
            for (j, row) in rows.iter_mut().enumerate() {
                let pair: &[S] = bytemuck::cast_slice(std::slice::from_ref(&words[j]));
                for (h, x) in pair.iter().enumerate() {
                    row[u * S::PER_WORD + h] = *x;
                }
            }
        }
        for (pair, out) in rows.chunks_exact(E::PER_WORD).zip(out.chunks_exact_mut(PANEL)).take(n.div_ceil(E::PER_WORD)) {
            let (first, second) = (&pair[0], &pair[E::PER_WORD - 1]);
            for k in 0..PANEL {
                out[k] = word_at::<S, E>(first[k], second[k], 1.0);
            }
        }
    }
}

vectorized! {
    /// Words of f32 → half as many of bf16 pairs, (units, 16) → (units / 2 rounded up, 16).
    pub(super) fn narrow(words: &[u32], out: &mut [u32]) {
        for (pair, out) in words.chunks(2 * PANEL).zip(out.chunks_exact_mut(PANEL)) {
            let (first, second) = pair.split_at(PANEL);
            for j in 0..PANEL {
                let low = u32::from(crate::cpu::element::round(f32::from_bits(first[j])));
                let high = second.get(j).map_or(0, |x| u32::from(crate::cpu::element::round(f32::from_bits(*x))));
                out[j] = low | high << 16;
            }
        }
    }
}
