//! Causal grouped-query attention, document by document: no row ever meets another document's keys.
//! Source: Vaswani et al. 2017, with the backward from saved log-sum-exps of Dao et al. 2022 (arXiv:2205.14135).

mod backward;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::ops::Range;

use crate::config::ModelConfig;
use crate::cpu::buffer::{Buffer, OutOfMemory};
use crate::cpu::element::Element;
use crate::cpu::gemm::{
    Left, PANEL, Right, Shape, Write, matmul_here, pack_rows_into, pack_weight_into, panels_len,
};
use crate::cpu::pool::{Pool, SharedMut};
use crate::cpu::simd::{exp, max, sum, vectorized};
use crate::nn::{rounding, softcap};
pub(crate) use backward::{BackwardScratch, Saved, backward};

/// Query rows that are scored together, (rows, keys) of scores being all that ever exists; and keys and values that lie together.
pub(crate) const BLOCK: usize = 64;

/// Keys and values of one head, in blocks of [`BLOCK`]; the last may be a part.
pub(crate) trait KeyValues<E> {
    /// (C, keys)
    fn keys(&self, block: usize) -> Right<'_, E>;
    /// (keys, C)
    fn values(&self, block: usize) -> Right<'_, E>;
}

/// Those of a whole document, in one piece.
struct InOnePiece<'a, E> {
    keys: Right<'a, E>,
    values: Right<'a, E>,
}

impl<E: Element> KeyValues<E> for InOnePiece<'_, E> {
    fn keys(&self, block: usize) -> Right<'_, E> {
        self.keys.skip_columns(block * BLOCK)
    }

    fn values(&self, block: usize) -> Right<'_, E> {
        self.values.skip_depth(block * BLOCK)
    }
}

/// What a layer makes of q·k before the softmax.
#[derive(Clone, Copy)]
pub(crate) struct Scores {
    scale: f32,
    /// Scaled scores s become c·tanh(s/c).
    cap: Option<f32>,
    /// Keys that a query sees at most, its own and those before.
    window: usize,
}

impl Scores {
    /// Scores become what the softmax is of but for a factor, which is returned.
    fn capped(self, scores: &mut [f32]) -> f32 {
        match self.cap {
            None => self.scale,
            Some(cap) => {
                softcap::cap(scores, self.scale, cap);
                1.0
            }
        }
    }

    /// The first key that the last of `n_seen` keys' query sees.
    fn first_key(self, n_seen: usize) -> usize {
        n_seen.saturating_sub(self.window)
    }

    /// Keys, in whole panels, that a block of queries whose first sees up to key `first_seen` does not see.
    fn skipped(self, first_seen: usize) -> usize {
        self.first_key(first_seen) / PANEL * PANEL
    }
}

/// The heads of a layer; a row of `qkv` is H·C queries, K·C keys, K·C values.
#[derive(Clone, Copy)]
pub(crate) struct Heads {
    /// H
    pub n_heads: usize,
    /// K
    pub n_kv_heads: usize,
    /// C
    pub head_dim: usize,
    pub scores: Scores,
}

impl Heads {
    pub fn new(config: &ModelConfig, layer: usize) -> Self {
        Self {
            n_heads: config.num_attention_heads,
            n_kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            scores: Scores {
                scale: config.attention_scale,
                cap: config.attn_logit_softcapping,
                window: config.layers[layer].sliding_window.unwrap_or(usize::MAX),
            },
        }
    }

    /// Width of a row of `qkv`.
    pub fn qkv_size(self) -> usize {
        (self.n_heads + 2 * self.n_kv_heads) * self.head_dim
    }

    /// Width of a row of the result.
    pub fn query_size(self) -> usize {
        self.n_heads * self.head_dim
    }

    /// Query heads that share a kv head.
    pub fn group(self) -> usize {
        self.n_heads / self.n_kv_heads
    }

    /// First column of the keys of kv head `kv` in a row of `qkv`.
    pub fn key_column(self, kv: usize) -> usize {
        (self.n_heads + kv) * self.head_dim
    }

    /// First column of the values of kv head `kv` in a row of `qkv`.
    pub fn value_column(self, kv: usize) -> usize {
        (self.n_heads + self.n_kv_heads + kv) * self.head_dim
    }
}

/// Memory for a block of queries.
#[derive(Default)]
struct Scratch {
    scores: Buffer<f32>,
    d_scores: Buffer<f32>,
    /// Probabilities, and the gradient of the scores, in the numbers of the model: words of them.
    p: Buffer<u32>,
    ds: Buffer<u32>,
    /// A transposed left operand.
    turned: Vec<u32>,
    /// A right operand.
    panels: Buffer<u32>,
    /// (rows, C)
    sums: Buffer<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::default());
}

/// `len` numbers of `E` in `words`.
fn numbers<E: Element>(words: &mut Buffer<u32>, len: usize) -> &mut [E] {
    words
        .ensure(len.div_ceil(E::PER_WORD))
        .expect("memory for a block of scores");
    &mut bytemuck::cast_slice_mut(words)[..len]
}

/// Distance of rows of `n` numbers that begin at whole words.
fn whole_words<E: Element>(n: usize) -> usize {
    n.next_multiple_of(E::PER_WORD)
}

/// Consecutive queries of one head.
#[derive(Clone, Copy)]
pub(crate) struct Queries<'a, E> {
    /// (rows, C)
    pub q: Left<'a, E>,
    pub rows: usize,
    pub scores: Scores,
    /// Keys up to the first row's own.
    pub first_seen: usize,
    /// By how many keys each further row's reaches on: 1 for rows at consecutive positions, 0 for heads at one position.
    pub seen_step: usize,
}

impl<E: Element> Queries<'_, E> {
    /// softmax(cap(Q·Kᵀ·scale))·V for these rows, `cache` having all keys and values up to the last of them; `lse` receives the
    /// log-sum-exp of each row. The sums of blocks of values are added up in order, wherever the blocks lie.
    ///
    /// # Safety
    /// `out` must hold (rows, C) with rows `stride` apart, which nobody else uses.
    pub unsafe fn attend(
        &self,
        cache: &impl KeyValues<E>,
        head_dim: usize,
        out: SharedMut<E>,
        stride: usize,
        lse: &mut [f32],
    ) {
        let skipped = self.scores.first_key(self.first_seen) / BLOCK * BLOCK;
        let n_keys = self.first_seen + (self.rows - 1) * self.seen_step - skipped;
        let blocks = (0..n_keys).step_by(BLOCK).map(|start| {
            let n = BLOCK.min(n_keys - start);
            (start, n, (skipped + start) / BLOCK)
        });
        SCRATCH.with_borrow_mut(
            |Scratch {
                 scores, p, sums, ..
             }| {
                for (buffer, width) in [(&mut *scores, n_keys), (&mut *sums, head_dim)] {
                    let room = buffer.ensure(self.rows * width);
                    room.expect("memory for a block of scores");
                }
                for (start, n, block) in blocks.clone() {
                    let shape = Shape {
                        rows: self.rows,
                        columns: n,
                        depth: head_dim,
                    };
                    let (keys, to) = (cache.keys(block), &mut scores[start..]);
                    matmul_here(shape, self.q, keys, to, n_keys, Write::Set);
                }
                let scale = self.scores.capped(scores);
                let p_stride = whole_words::<E>(n_keys);
                let p = numbers::<E>(p, self.rows * p_stride);
                for (i, (row, p)) in scores
                    .chunks_exact_mut(n_keys)
                    .zip(p.chunks_exact_mut(p_stride))
                    .enumerate()
                {
                    let n_seen = self.first_seen + i * self.seen_step;
                    let seen = self.scores.first_key(n_seen) - skipped..n_seen - skipped;
                    lse[i] = softmax_row(&mut row[seen.clone()], scale, &mut p[seen.clone()]);
                    p[..seen.start].fill(E::default());
                    p[seen.end..].fill(E::default());
                }
                for (start, n, block) in blocks {
                    let shape = Shape {
                        rows: self.rows,
                        columns: head_dim,
                        depth: n,
                    };
                    let (p, values) = (Left::rows(&p[start..], p_stride), cache.values(block));
                    let write = if start == 0 { Write::Set } else { Write::Add };
                    matmul_here(shape, p, values, sums, head_dim, write);
                }
                for (i, sums) in sums.chunks_exact(head_dim).enumerate() {
                    // SAFETY: promised by the caller.
                    let to = unsafe { out.slice(i * stride..i * stride + head_dim) };
                    rounding::round_all(sums, to);
                }
            },
        );
    }
}

vectorized! {
    /// `p` becomes the softmax of scale·scores, which are used up; returns the log-sum-exp.
    fn softmax_row[E](scores: &mut [f32], scale: f32, p: &mut [E]) -> f32 {
        let top = max(scores) * scale;
        for x in scores.iter_mut() {
            *x = exp(x.mul_add(scale, -top));
        }
        let total = sum(scores, |x| x);
        let inverse = 1.0 / total;
        for (p, x) in p.iter_mut().zip(scores) {
            *p = E::from_f32(*x * inverse);
        }
        top + total.ln()
    }
}

/// How one head's columns become a right operand.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Packing {
    /// (C, rows): what queries are multiplied with.
    Turned,
    /// (rows, C): what probabilities are multiplied with.
    Rows,
}

/// Keys or values of every document and kv head as panels.
#[derive(Default)]
pub(crate) struct PackedHeads {
    words: Buffer<u32>,
    /// Where each document's first kv head begins, and how long each of its heads is.
    places: Vec<(usize, usize)>,
}

impl PackedHeads {
    /// Packs C columns, from `column(kv)` on, of each row.
    /// Errors: `OutOfMemory`.
    fn pack<E: Element>(
        &mut self,
        pool: &Pool,
        heads: Heads,
        documents: &[Range<usize>],
        qkv: &[E],
        packing: Packing,
        column: impl Fn(usize) -> usize + Sync,
    ) -> Result<(), OutOfMemory> {
        self.places.clear();
        let mut end = 0;
        for document in documents {
            let len = match packing {
                Packing::Turned => panels_len::<E>(document.len(), heads.head_dim),
                Packing::Rows => panels_len::<E>(heads.head_dim, document.len()),
            };
            self.places.push((end, len));
            end += heads.n_kv_heads * len;
        }
        self.words.ensure(end)?;
        let out = SharedMut::new(&mut self.words);
        let (places, width) = (&self.places, heads.qkv_size());
        pool.run(documents.len() * heads.n_kv_heads, |task| {
            let (document, kv) = (task / heads.n_kv_heads, task % heads.n_kv_heads);
            let (rows, (start, len)) = (&documents[document], places[document]);
            let start = start + kv * len;
            // SAFETY: each (document, kv head) has its own piece.
            let out = unsafe { out.slice(start..start + len) };
            let from = &qkv[rows.start * width + column(kv)..];
            match packing {
                Packing::Turned => {
                    pack_weight_into::<E, E>(from, width, rows.len(), heads.head_dim, out)
                }
                Packing::Rows => {
                    pack_rows_into::<E, E>(from, width, rows.len(), heads.head_dim, out)
                }
            }
        });
        Ok(())
    }

    fn words(&self, document: usize, kv: usize) -> &[u32] {
        let (start, len) = self.places[document];
        &self.words[start + kv * len..start + (kv + 1) * len]
    }
}

/// Keys and values of a forward.
#[derive(Default)]
pub(crate) struct PackedKeyValues {
    keys: PackedHeads,
    values: PackedHeads,
}

/// Attention within each of `documents`, which are ranges of rows.
/// Shapes: `qkv` (T, (H+2K)·C) with q and k rotated, `out` (T, H·C), `lse` (H, T).
/// Errors: `OutOfMemory`.
pub(crate) fn forward<E: Element>(
    pool: &Pool,
    heads: Heads,
    documents: &[Range<usize>],
    qkv: &[E],
    packed: &mut PackedKeyValues,
    out: &mut [E],
    lse: &mut [f32],
) -> Result<(), OutOfMemory> {
    let PackedKeyValues { keys, values } = packed;
    keys.pack(pool, heads, documents, qkv, Packing::Turned, |kv| {
        heads.key_column(kv)
    })?;
    values.pack(pool, heads, documents, qkv, Packing::Rows, |kv| {
        heads.value_column(kv)
    })?;
    let (width, query_size, head_dim) = (heads.qkv_size(), heads.query_size(), heads.head_dim);
    let n_rows = lse.len() / heads.n_heads;
    // The longest blocks first: the threads end together.
    let mut blocks: Vec<(usize, usize)> = Vec::new();
    for (i, document) in documents.iter().enumerate() {
        blocks.extend((0..document.len()).step_by(BLOCK).map(|start| (i, start)));
    }
    blocks.sort_by_key(|&(_, start)| std::cmp::Reverse(start));
    let (out, lse) = (SharedMut::new(out), SharedMut::new(lse));
    pool.run(blocks.len() * heads.n_heads, |task| {
        let (document, start) = blocks[task / heads.n_heads];
        let head = task % heads.n_heads;
        let (kv, rows) = (head / heads.group(), documents[document].clone());
        let n = BLOCK.min(rows.len() - start);
        let row = rows.start + start;
        let queries = Queries {
            q: Left::rows(&qkv[row * width + head * head_dim..], width),
            rows: n,
            scores: heads.scores,
            first_seen: start + 1,
            seen_step: 1,
        };
        let document = InOnePiece {
            keys: Right::panels(keys.words(document, kv), head_dim),
            values: Right::panels(values.words(document, kv), rows.len()),
        };
        // SAFETY: each (block of rows, head) has its own rows and columns of `out`, and its own piece of `lse`.
        unsafe {
            let lse = lse.slice(head * n_rows + row..head * n_rows + row + n);
            queries.attend(
                &document,
                head_dim,
                out.skip(row * query_size + head * head_dim),
                query_size,
                lse,
            );
        }
    });
    Ok(())
}

/// Writes key number `i` of one head into its panels (C, keys).
pub(crate) fn put_key<E: Element>(key: &[E], i: usize, panels: &mut [u32]) {
    let panel = &mut panels[i / PANEL * PANEL * key.len().div_ceil(E::PER_WORD)..];
    for (unit, numbers) in key.chunks(E::PER_WORD).enumerate() {
        let second = numbers.get(1).copied().unwrap_or_default();
        panel[unit * PANEL + i % PANEL] = E::word(numbers[0], second);
    }
}

/// Writes value number `i` of one head into its panels (keys, C), made for `capacity` values; values come in order.
pub(crate) fn put_value<E: Element>(value: &[E], i: usize, capacity: usize, panels: &mut [u32]) {
    let is_first = i.is_multiple_of(E::PER_WORD);
    for (panel, lanes) in value.chunks(PANEL).enumerate() {
        let at = (panel * capacity.div_ceil(E::PER_WORD) + i / E::PER_WORD) * PANEL;
        for (to, &x) in panels[at..].iter_mut().zip(lanes) {
            // A word that is not full yet ends with a zero, whatever was there before.
            *to = if is_first {
                E::word(x, E::default())
            } else {
                *to | E::word(E::default(), x)
            };
        }
    }
}
