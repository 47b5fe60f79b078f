//! Causal grouped-query attention, document by document: no row ever meets another document's keys.
//! Source: Vaswani et al. 2017, with the backward from saved log-sum-exps of Dao et al. 2022 (arXiv:2205.14135).

mod backward;

use std::cell::RefCell;
use std::ops::Range;

use crate::buffer::{Buffer, OutOfMemory};
use crate::config::ModelConfig;
use crate::nn::gemm::{Left, PANEL, Right, Shape, Write, matmul_at, matmul_here};
use crate::pool::{Pool, SharedMut};
use crate::simd::{exp, max, sum, vectorized};
pub(crate) use backward::{BackwardScratch, Saved, backward};

/// Query rows that are scored together: (rows, keys) of scores are all that ever exists.
pub(crate) const BLOCK: usize = 64;

/// The heads of a model; a row of `qkv` is H·C queries, K·C keys, K·C values.
#[derive(Clone, Copy)]
pub(crate) struct Heads {
    /// H
    pub n_heads: usize,
    /// K
    pub n_kv_heads: usize,
    /// C
    pub head_dim: usize,
}

impl Heads {
    pub fn new(config: &ModelConfig) -> Self {
        Self {
            n_heads: config.num_attention_heads,
            n_kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
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

    fn scale(self) -> f32 {
        score_scale(self.head_dim)
    }
}

/// What scores are multiplied with before the softmax.
fn score_scale(head_dim: usize) -> f32 {
    1.0 / (head_dim as f32).sqrt()
}

thread_local! {
    /// Scores and what else a block of queries needs, on this thread.
    static SCRATCH: RefCell<[Buffer; 2]> = RefCell::new([Buffer::default(), Buffer::default()]);
}

/// Consecutive queries of one head, and all keys and values up to the last of them.
#[derive(Clone, Copy)]
pub(crate) struct Queries<'a> {
    /// (rows, C)
    pub q: Left<'a>,
    pub rows: usize,
    /// Keys that the first row sees, itself included.
    pub first_seen: usize,
    /// Keys that each further row sees more: 1 for rows at consecutive positions, 0 for heads at one position.
    pub seen_step: usize,
    /// (C, keys)
    pub keys: Right<'a>,
    /// (keys, C)
    pub values: Right<'a>,
}

impl Queries<'_> {
    fn n_keys(&self) -> usize {
        self.first_seen + (self.rows - 1) * self.seen_step
    }

    /// softmax(Q·Kᵀ·scale)·V for these rows; `lse` receives the log-sum-exp of each row.
    ///
    /// # Safety
    /// `out` must hold (rows, C) with rows `stride` apart, which nobody else uses.
    pub unsafe fn attend(&self, head_dim: usize, out: SharedMut, stride: usize, lse: &mut [f32]) {
        let n_keys = self.n_keys();
        let scale = score_scale(head_dim);
        SCRATCH.with_borrow_mut(|[scores, _]| {
            scores
                .ensure(self.rows * n_keys)
                .expect("memory for a block of scores");
            let shape = Shape {
                rows: self.rows,
                columns: n_keys,
                depth: head_dim,
            };
            matmul_here(shape, self.q, self.keys, scores, n_keys, Write::Set);
            let mut inverse = [0.0; BLOCK];
            for (i, row) in scores.chunks_exact_mut(n_keys).enumerate() {
                let (row, future) = row.split_at_mut(self.first_seen + i * self.seen_step);
                let (total, top) = softmax_row(row, scale);
                future.fill(0.0);
                inverse[i] = 1.0 / total;
                lse[i] = top + total.ln();
            }
            let shape = Shape {
                rows: self.rows,
                columns: head_dim,
                depth: n_keys,
            };
            // SAFETY: promised by the caller.
            unsafe {
                matmul_at(
                    shape,
                    Left::rows(scores, n_keys),
                    self.values,
                    out,
                    stride,
                    Write::Set,
                )
            };
            for (i, inverse) in inverse[..self.rows].iter().enumerate() {
                // SAFETY: promised by the caller.
                let row = unsafe { out.slice(i * stride..i * stride + head_dim) };
                row.iter_mut().for_each(|x| *x *= inverse);
            }
        });
    }
}

vectorized! {
    /// Replaces scores by e^(scale·score − top); returns their sum and `top`, the largest scaled score.
    fn softmax_row(row: &mut [f32], scale: f32) -> (f32, f32) {
        let top = max(row) * scale;
        for x in row.iter_mut() {
            *x = exp(x.mul_add(scale, -top));
        }
        (sum(row.len(), |j| row[j]), top)
    }
}

/// Keys, and for the backward values, of every document and kv head, as panels over the keys.
#[derive(Default)]
pub(crate) struct PackedKeys {
    values: Buffer,
    /// Where each document's first kv head begins.
    starts: Vec<usize>,
}

impl PackedKeys {
    /// Packs C columns, from `column(kv)` on, of each row.
    /// Errors: `OutOfMemory`.
    pub fn pack(
        &mut self,
        pool: &Pool,
        heads: Heads,
        documents: &[Range<usize>],
        qkv: &[f32],
        column: impl Fn(usize) -> usize + Sync,
    ) -> Result<(), OutOfMemory> {
        self.starts.clear();
        let mut end = 0;
        for document in documents {
            self.starts.push(end);
            end += heads.n_kv_heads * panels_len(document.len(), heads.head_dim);
        }
        self.values.ensure(end)?;
        let out = SharedMut::new(&mut self.values);
        let (starts, width) = (&self.starts, heads.qkv_size());
        pool.run(documents.len() * heads.n_kv_heads, |task| {
            let (document, kv) = (task / heads.n_kv_heads, task % heads.n_kv_heads);
            let rows = documents[document].clone();
            let len = panels_len(rows.len(), heads.head_dim);
            let start = starts[document] + kv * len;
            // SAFETY: each (document, kv head) has its own piece.
            let out = unsafe { out.slice(start..start + len) };
            out.fill(0.0);
            for (i, row) in rows.enumerate() {
                put_key(&qkv[row * width + column(kv)..][..heads.head_dim], i, out);
            }
        });
        Ok(())
    }

    fn right(&self, heads: Heads, document: usize, n_rows: usize, kv: usize) -> Right<'_> {
        let len = panels_len(n_rows, heads.head_dim);
        let start = self.starts[document] + kv * len;
        key_panels(&self.values[start..start + len], heads.head_dim)
    }
}

/// Length of the panels of `n_keys` keys of one head.
pub(crate) fn panels_len(n_keys: usize, head_dim: usize) -> usize {
    n_keys.div_ceil(PANEL) * PANEL * head_dim
}

/// Writes key number `i` of one head into its panels.
pub(crate) fn put_key(key: &[f32], i: usize, panels: &mut [f32]) {
    let panel = &mut panels[i / PANEL * PANEL * key.len()..];
    for (c, x) in key.iter().enumerate() {
        panel[c * PANEL + i % PANEL] = *x;
    }
}

/// The panels of one head as a right operand (C, keys).
pub(crate) fn key_panels(panels: &[f32], head_dim: usize) -> Right<'_> {
    Right {
        values: panels,
        panel: PANEL * head_dim,
        depth: PANEL,
    }
}

/// Attention within each of `documents`, which are ranges of rows.
/// Shapes: `qkv` (T, (H+2K)·C) with q and k rotated, `out` (T, H·C), `lse` (H, T).
/// Errors: `OutOfMemory`.
pub(crate) fn forward(
    pool: &Pool,
    heads: Heads,
    documents: &[Range<usize>],
    qkv: &[f32],
    keys: &mut PackedKeys,
    out: &mut [f32],
    lse: &mut [f32],
) -> Result<(), OutOfMemory> {
    keys.pack(pool, heads, documents, qkv, |kv| heads.key_column(kv))?;
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
            first_seen: start + 1,
            seen_step: 1,
            keys: keys.right(heads, document, rows.len(), kv),
            values: Right::rows(&qkv[rows.start * width + heads.value_column(kv)..], width),
        };
        // SAFETY: each (block of rows, head) has its own rows and columns of `out`, and its own piece of `lse`.
        unsafe {
            let lse = lse.slice(head * n_rows + row..head * n_rows + row + n);
            queries.attend(
                head_dim,
                out.skip(row * query_size + head * head_dim),
                query_size,
                lse,
            );
        }
    });
    Ok(())
}
