//! The gradient of attention, one document and head at a time: probabilities come back from the saved log-sum-exps.

use std::ops::Range;

use super::{BLOCK, Heads, PackedHeads, Packing, SCRATCH, Scores, Scratch, numbers, whole_words};
use crate::cpu::buffer::{Buffer, OutOfMemory};
use crate::cpu::element::Element;
use crate::cpu::gemm::{
    Left, Right, Shape, Write, matmul_at, matmul_here, pack_left, pack_rows_into, panels_len,
};
use crate::cpu::pool::{Pool, SharedMut};
use crate::cpu::simd::{LANES, exp, sum_of_two, vectorized};

/// What the forward read and wrote.
#[derive(Clone, Copy)]
pub(crate) struct Saved<'a, E> {
    /// (T, (H+2K)·C), rotated.
    pub qkv: &'a [E],
    /// (T, H·C)
    pub attended: &'a [E],
    /// (H, T)
    pub lse: &'a [f32],
}

/// Memory of the backward; it grows and stays.
#[derive(Default)]
pub(crate) struct BackwardScratch {
    packed: Packed,
    /// Gradients of keys and values by query head, (H, T, C): heads that share a kv head are added up afterwards, in
    /// order, so that threads never race for a sum.
    d_keys: Buffer,
    d_values: Buffer,
}

/// The right operands of a backward.
#[derive(Default)]
struct Packed {
    /// (C, keys), for the scores.
    keys: PackedHeads,
    /// (keys, C), for the gradient of the queries.
    key_rows: PackedHeads,
    /// (C, keys), for the gradient of the probabilities.
    values: PackedHeads,
}

/// `d_qkv` becomes the gradient of the rotated q, k and v; `d_out` (T, H·C) is that of the forward's result.
/// Errors: `OutOfMemory`.
pub(crate) fn backward<E: Element>(
    pool: &Pool,
    heads: Heads,
    documents: &[Range<usize>],
    saved: Saved<'_, E>,
    d_out: &[E],
    scratch: &mut BackwardScratch,
    d_qkv: &mut [E],
) -> Result<(), OutOfMemory> {
    let BackwardScratch {
        packed,
        d_keys,
        d_values,
    } = scratch;
    let (key_column, value_column) = (|kv| heads.key_column(kv), |kv| heads.value_column(kv));
    packed.keys.pack(
        pool,
        heads,
        documents,
        saved.qkv,
        Packing::Turned,
        key_column,
    )?;
    packed
        .key_rows
        .pack(pool, heads, documents, saved.qkv, Packing::Rows, key_column)?;
    packed.values.pack(
        pool,
        heads,
        documents,
        saved.qkv,
        Packing::Turned,
        value_column,
    )?;
    let n_rows = saved.lse.len() / heads.n_heads;
    d_keys.ensure(n_rows * heads.query_size())?;
    d_values.ensure(n_rows * heads.query_size())?;
    let mut longest_first: Vec<usize> = (0..documents.len()).collect();
    longest_first.sort_by_key(|&i| std::cmp::Reverse(documents[i].len()));
    let (shared_keys, shared_values) = (SharedMut::new(d_keys), SharedMut::new(d_values));
    let d_queries = SharedMut::new(d_qkv);
    let packed = &*packed;
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
            keys: Right::panels(packed.keys.words(document, kv), heads.head_dim),
            key_rows: Right::panels(packed.key_rows.words(document, kv), rows.len()),
            values: Right::panels(packed.values.words(document, kv), heads.head_dim),
            n_rows,
            rows,
        };
        // SAFETY: each (document, head) has its own piece of `d_keys` and `d_values`, and its own rows and columns of
        // `d_queries`.
        unsafe {
            of_head.run(
                d_queries,
                shared_keys.slice(range.clone()),
                shared_values.slice(range),
            )
        };
    });
    add_up_groups(pool, heads, d_keys, d_values, n_rows, d_qkv);
    Ok(())
}

fn add_up_groups<E: Element>(
    pool: &Pool,
    heads: Heads,
    d_keys: &[f32],
    d_values: &[f32],
    n_rows: usize,
    d_qkv: &mut [E],
) {
    let (width, head_dim, group) = (heads.qkv_size(), heads.head_dim, heads.group());
    pool.for_rows(n_rows, (d_qkv, width), |rows, d_qkv| {
        for (row, d_qkv) in rows.zip(d_qkv.chunks_exact_mut(width)) {
            for kv in 0..heads.n_kv_heads {
                for (from, column) in [
                    (d_keys, heads.key_column(kv)),
                    (d_values, heads.value_column(kv)),
                ] {
                    let first = (kv * group * n_rows + row) * head_dim;
                    let last = first + (group - 1) * n_rows * head_dim;
                    let from = &from[first..last + head_dim];
                    add_up(
                        from,
                        n_rows * head_dim,
                        &mut d_qkv[column..column + head_dim],
                    );
                }
            }
        }
    });
}

vectorized! {
    /// The sum of what stands `stride` apart in `from`, to its end.
    fn add_up[E](from: &[f32], stride: usize, to: &mut [E]) {
        let (whole, rest) = to.as_chunks_mut::<LANES>();
        let first_of_rest = whole.len() * LANES;
        for (to, first) in whole.iter_mut().zip((0..).step_by(LANES)) {
            let mut sums = [0.0f32; LANES];
            for from in from[first..].chunks(stride) {
                let from = from.first_chunk::<LANES>().expect("a row is as long as `to`");
                for (sum, x) in sums.iter_mut().zip(from) {
                    *sum += x;
                }
            }
            *to = sums.map(E::from_f32);
        }
        for (to, first) in rest.iter_mut().zip(first_of_rest..) {
            *to = E::from_f32(from[first..].iter().step_by(stride).fold(0.0, |sum, x| sum + x));
        }
    }
}

/// One document and query head.
struct HeadBackward<'a, E> {
    heads: Heads,
    head: usize,
    saved: Saved<'a, E>,
    d_out: &'a [E],
    keys: Right<'a, E>,
    key_rows: Right<'a, E>,
    values: Right<'a, E>,
    /// T
    n_rows: usize,
    /// The document.
    rows: Range<usize>,
}

impl<E: Element> HeadBackward<'_, E> {
    /// # Safety
    /// Nobody else may use this head's columns of the document's rows of `d_queries`.
    unsafe fn run(&self, d_queries: SharedMut<E>, d_keys: &mut [f32], d_values: &mut [f32]) {
        let Heads { head_dim, .. } = self.heads;
        let (width, query_size) = (self.heads.qkv_size(), self.heads.query_size());
        let column = self.head * head_dim;
        d_keys.fill(0.0);
        d_values.fill(0.0);
        SCRATCH.with_borrow_mut(|scratch| {
            for start in (0..self.rows.len()).step_by(BLOCK) {
                let n = BLOCK.min(self.rows.len() - start);
                let skipped = self.heads.scores.skipped(start + 1);
                let (n_keys, row) = (start + n - skipped, self.rows.start + start);
                let stride = whole_words::<E>(n_keys);
                self.probabilities(start, scratch);
                let Scratch {
                    p,
                    ds,
                    turned,
                    panels,
                    ..
                } = scratch;
                let (p, ds) = (numbers::<E>(p, n * stride), numbers::<E>(ds, n * stride));
                let to_queries = Shape {
                    rows: n,
                    columns: head_dim,
                    depth: n_keys,
                };
                // SAFETY: promised by the caller.
                unsafe {
                    let dq = d_queries.skip(row * width + column);
                    let key_rows = self.key_rows.skip_depth(skipped);
                    matmul_at(to_queries, Left::rows(ds, stride), key_rows, dq, width);
                }
                let to_keys = Shape {
                    rows: n_keys,
                    columns: head_dim,
                    depth: n,
                };
                let q = (&self.saved.qkv[row * width + column..], width);
                let d_out = (&self.d_out[row * query_size + column..], query_size);
                panels
                    .ensure(panels_len::<E>(head_dim, n))
                    .expect("memory for a block of queries");
                for (scores, (from, from_stride), to) in
                    [(&*ds, q, &mut *d_keys), (&*p, d_out, &mut *d_values)]
                {
                    pack_left::<E, E>(scores, stride, n, n_keys, turned);
                    pack_rows_into::<E, E>(from, from_stride, n, head_dim, panels);
                    let (a, b) = (Left::<E>::packed(turned, n), Right::panels(panels, n));
                    let to = &mut to[skipped * head_dim..];
                    matmul_here(to_keys, a, b, to, head_dim, Write::Add);
                }
            }
        });
    }

    /// Fills `p` with the probabilities of a block of queries and `ds` with the gradient of their scores, (n, keys).
    fn probabilities(&self, start: usize, scratch: &mut Scratch) {
        let (head_dim, width, query_size) = (
            self.heads.head_dim,
            self.heads.qkv_size(),
            self.heads.query_size(),
        );
        let n = BLOCK.min(self.rows.len() - start);
        let skipped = self.heads.scores.skipped(start + 1);
        let n_keys = start + n - skipped;
        let (row, column) = (self.rows.start + start, self.head * head_dim);
        let q = Left::rows(&self.saved.qkv[row * width + column..], width);
        let d_out = Left::rows(&self.d_out[row * query_size + column..], query_size);
        let shape = Shape {
            rows: n,
            columns: n_keys,
            depth: head_dim,
        };
        let Scratch {
            scores,
            d_scores,
            p,
            ds,
            ..
        } = scratch;
        for buffer in [&mut *scores, &mut *d_scores] {
            buffer
                .ensure(n * n_keys)
                .expect("memory for a block of scores");
        }
        let (keys, values) = (self.keys, self.values);
        let (keys, values) = (keys.skip_columns(skipped), values.skip_columns(skipped));
        matmul_here(shape, q, keys, scores, n_keys, Write::Set);
        matmul_here(shape, d_out, values, d_scores, n_keys, Write::Set);
        self.heads.scores.capped(scores);
        let stride = whole_words::<E>(n_keys);
        let (p, ds) = (numbers::<E>(p, n * stride), numbers::<E>(ds, n * stride));
        for i in 0..n {
            let at = (row + i) * query_size + column;
            let mean = dot(
                &self.saved.attended[at..][..head_dim],
                &self.d_out[at..][..head_dim],
            );
            let lse = self.saved.lse[self.head * self.n_rows + row + i];
            let (n_seen, from) = (start + i + 1, i * n_keys);
            let seen = self.heads.scores.first_key(n_seen) - skipped..n_seen - skipped;
            let in_row = from + seen.start..from + seen.end;
            let (p, ds) = (
                &mut p[i * stride..][..stride],
                &mut ds[i * stride..][..stride],
            );
            for unseen in [0..seen.start, seen.end..stride] {
                p[unseen.clone()].fill(E::default());
                ds[unseen].fill(E::default());
            }
            let (scores, d_p) = (&scores[in_row.clone()], &d_scores[in_row]);
            let (p, ds) = (&mut p[seen.clone()], &mut ds[seen]);
            match self.heads.scores {
                Scores {
                    scale, cap: None, ..
                } => {
                    score_gradients(scores, d_p, mean, lse, scale, p, ds);
                }
                Scores {
                    scale,
                    cap: Some(cap),
                    ..
                } => {
                    capped_score_gradients(scores, d_p, mean, lse, (scale, 1.0 / cap), p, ds);
                }
            }
        }
    }
}

vectorized! {
    fn dot[E](a: &[E], b: &[E]) -> f32 {
        sum_of_two(a, b, |a, b| a.to_f32() * b.to_f32())
    }
}

vectorized! {
    /// Scores become probabilities in `p`; `ds` becomes their gradient.
    fn score_gradients[E](scores: &[f32], d_p: &[f32], mean: f32, lse: f32, scale: f32, p: &mut [E], ds: &mut [E]) {
        for (((score, d_p), p), ds) in scores.iter().zip(d_p).zip(p).zip(ds) {
            let probability = exp(score.mul_add(scale, -lse));
            *p = E::from_f32(probability);
            *ds = E::from_f32(probability * (d_p - mean) * scale);
        }
    }
}

vectorized! {
    /// As [`score_gradients`] for scores s that a cap has been put on: its slope is 1 − (s/cap)². `slope` is (scale, 1/cap).
    fn capped_score_gradients[E](
        scores: &[f32], d_p: &[f32], mean: f32, lse: f32, slope: (f32, f32), p: &mut [E], ds: &mut [E],
    ) {
        let (scale, inverse_cap) = slope;
        for (((score, d_p), p), ds) in scores.iter().zip(d_p).zip(p).zip(ds) {
            let probability = exp(score - lse);
            let share = score * inverse_cap;
            *p = E::from_f32(probability);
            *ds = E::from_f32(probability * (d_p - mean) * scale * (1.0 - share * share));
        }
    }
}
