//! The gradient of attention, one document and head at a time: probabilities come back from the saved log-sum-exps.

use std::ops::Range;

use super::{BLOCK, Heads, PackedKeys, SCRATCH};
use crate::buffer::{Buffer, OutOfMemory};
use crate::nn::gemm::{Left, Right, Shape, Write, matmul_at, matmul_here};
use crate::pool::{Pool, SharedMut};
use crate::simd::{exp, sum, vectorized};

/// What the forward read and wrote.
#[derive(Clone, Copy)]
pub(crate) struct Saved<'a> {
    /// (T, (H+2K)·C), rotated.
    pub qkv: &'a [f32],
    /// (T, H·C)
    pub attended: &'a [f32],
    /// (H, T)
    pub lse: &'a [f32],
}

/// Memory of the backward; it grows and stays.
#[derive(Default)]
pub(crate) struct BackwardScratch {
    values: PackedKeys,
    /// Gradients of keys and values by query head, (H, T, C): heads that share a kv head are added up afterwards, in
    /// order, so that threads never race for a sum.
    d_keys: Buffer,
    d_values: Buffer,
}

/// `d_qkv` becomes the gradient of the rotated q, k and v; `d_out` (T, H·C) is that of the forward's result.
/// Errors: `OutOfMemory`.
#[allow(clippy::too_many_arguments)]
pub(crate) fn backward(
    pool: &Pool,
    heads: Heads,
    documents: &[Range<usize>],
    saved: Saved<'_>,
    d_out: &[f32],
    keys: &mut PackedKeys,
    scratch: &mut BackwardScratch,
    d_qkv: &mut [f32],
) -> Result<(), OutOfMemory> {
    keys.pack(pool, heads, documents, saved.qkv, |kv| heads.key_column(kv))?;
    scratch
        .values
        .pack(pool, heads, documents, saved.qkv, |kv| {
            heads.value_column(kv)
        })?;
    let n_rows = saved.lse.len() / heads.n_heads;
    scratch.d_keys.ensure(n_rows * heads.query_size())?;
    scratch.d_values.ensure(n_rows * heads.query_size())?;
    let mut longest_first: Vec<usize> = (0..documents.len()).collect();
    longest_first.sort_by_key(|&i| std::cmp::Reverse(documents[i].len()));
    let (d_keys, d_values) = (
        SharedMut::new(&mut scratch.d_keys),
        SharedMut::new(&mut scratch.d_values),
    );
    let d_queries = SharedMut::new(d_qkv);
    let values = &scratch.values;
    pool.run(documents.len() * heads.n_heads, |task| {
        let (document, head) = (longest_first[task / heads.n_heads], task % heads.n_heads);
        let rows = documents[document].clone();
        let kv = head / heads.group();
        let range = (head * n_rows + rows.start) * heads.head_dim
            ..(head * n_rows + rows.end) * heads.head_dim;
        let of_head = HeadBackward {
            heads,
            head,
            saved,
            d_out,
            key_panels: keys.right(heads, document, rows.len(), kv),
            value_panels: values.right(heads, document, rows.len(), kv),
            n_rows,
            rows,
        };
        // SAFETY: each (document, head) has its own piece of `d_keys` and `d_values`, and its own rows and columns of
        // `d_queries`.
        unsafe {
            of_head.run(
                d_queries,
                d_keys.slice(range.clone()),
                d_values.slice(range),
            )
        };
    });
    add_up_groups(
        pool,
        heads,
        &scratch.d_keys,
        &scratch.d_values,
        n_rows,
        d_qkv,
    );
    Ok(())
}

fn add_up_groups(
    pool: &Pool,
    heads: Heads,
    d_keys: &[f32],
    d_values: &[f32],
    n_rows: usize,
    d_qkv: &mut [f32],
) {
    let (width, head_dim, group) = (heads.qkv_size(), heads.head_dim, heads.group());
    pool.for_rows(n_rows, [(d_qkv, width)], |rows, [d_qkv]| {
        for (row, d_qkv) in rows.zip(d_qkv.chunks_exact_mut(width)) {
            for kv in 0..heads.n_kv_heads {
                for (from, column) in [
                    (d_keys, heads.key_column(kv)),
                    (d_values, heads.value_column(kv)),
                ] {
                    let to = &mut d_qkv[column..column + head_dim];
                    to.fill(0.0);
                    for head in kv * group..(kv + 1) * group {
                        let from = &from[(head * n_rows + row) * head_dim..][..head_dim];
                        to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
                    }
                }
            }
        }
    });
}

/// One document and query head.
struct HeadBackward<'a> {
    heads: Heads,
    head: usize,
    saved: Saved<'a>,
    d_out: &'a [f32],
    key_panels: Right<'a>,
    value_panels: Right<'a>,
    /// T
    n_rows: usize,
    /// The document.
    rows: Range<usize>,
}

impl HeadBackward<'_> {
    /// # Safety
    /// Nobody else may use this head's columns of the document's rows of `d_queries`.
    unsafe fn run(&self, d_queries: SharedMut, d_keys: &mut [f32], d_values: &mut [f32]) {
        let Heads { head_dim, .. } = self.heads;
        let width = self.heads.qkv_size();
        let kv = self.head / self.heads.group();
        let first = self.rows.start * width;
        d_keys.fill(0.0);
        d_values.fill(0.0);
        let keys = Right::rows(&self.saved.qkv[first + self.heads.key_column(kv)..], width);
        SCRATCH.with_borrow_mut(|[p, ds]| {
            for start in (0..self.rows.len()).step_by(BLOCK) {
                let n = BLOCK.min(self.rows.len() - start);
                let n_keys = start + n;
                p.ensure(n * n_keys)
                    .expect("memory for a block of probabilities");
                ds.ensure(n * n_keys)
                    .expect("memory for a block of probabilities");
                self.probabilities(start, p, ds);
                let row = self.rows.start + start;
                let q = &self.saved.qkv[row * width + self.head * head_dim..];
                let d_out = &self.d_out[row * self.heads.query_size() + self.head * head_dim..];
                let (to_queries, to_keys) = (
                    Shape {
                        rows: n,
                        columns: head_dim,
                        depth: n_keys,
                    },
                    Shape {
                        rows: n_keys,
                        columns: head_dim,
                        depth: n,
                    },
                );
                // SAFETY: promised by the caller.
                unsafe {
                    let dq = d_queries.skip(row * width + self.head * head_dim);
                    matmul_at(
                        to_queries,
                        Left::rows(ds, n_keys),
                        keys,
                        dq,
                        width,
                        Write::Set,
                    );
                }
                matmul_here(
                    to_keys,
                    Left::transposed(ds, n_keys),
                    Right::rows(q, width),
                    d_keys,
                    head_dim,
                    Write::Add,
                );
                let d_out = Right::rows(d_out, self.heads.query_size());
                matmul_here(
                    to_keys,
                    Left::transposed(p, n_keys),
                    d_out,
                    d_values,
                    head_dim,
                    Write::Add,
                );
            }
        });
    }

    /// Fills `p` with the probabilities of a block of queries and `ds` with the gradient of their scores, (n, keys).
    fn probabilities(&self, start: usize, p: &mut [f32], ds: &mut [f32]) {
        let (head_dim, width, query_size) = (
            self.heads.head_dim,
            self.heads.qkv_size(),
            self.heads.query_size(),
        );
        let n = BLOCK.min(self.rows.len() - start);
        let (row, n_keys, column) = (self.rows.start + start, start + n, self.head * head_dim);
        let q = Left::rows(&self.saved.qkv[row * width + column..], width);
        let d_out = Left::rows(&self.d_out[row * query_size + column..], query_size);
        let shape = Shape {
            rows: n,
            columns: n_keys,
            depth: head_dim,
        };
        matmul_here(shape, q, self.key_panels, p, n_keys, Write::Set);
        matmul_here(shape, d_out, self.value_panels, ds, n_keys, Write::Set);
        let scale = self.heads.scale();
        let rows_of_scores = p.chunks_exact_mut(n_keys).zip(ds.chunks_exact_mut(n_keys));
        for (i, (p, ds)) in rows_of_scores.enumerate() {
            let at = (row + i) * query_size + column;
            let (out, d_out) = (
                &self.saved.attended[at..][..head_dim],
                &self.d_out[at..][..head_dim],
            );
            let lse = self.saved.lse[self.head * self.n_rows + row + i];
            let (p, p_future) = p.split_at_mut(start + i + 1);
            let (ds, ds_future) = ds.split_at_mut(start + i + 1);
            score_gradients(p, ds, dot(out, d_out), lse, scale);
            p_future.fill(0.0);
            ds_future.fill(0.0);
        }
    }
}

vectorized! {
    fn dot(a: &[f32], b: &[f32]) -> f32 {
        let b = &b[..a.len()];
        sum(a.len(), |i| a[i] * b[i])
    }
}

vectorized! {
    /// Scores become probabilities in `p`; in `ds` their gradients become those of the scores.
    fn score_gradients(p: &mut [f32], ds: &mut [f32], mean: f32, lse: f32, scale: f32) {
        for (p, ds) in p.iter_mut().zip(ds) {
            *p = exp(p.mul_add(scale, -lse));
            *ds = *p * (*ds - mean) * scale;
        }
    }
}
