//! Norms of queries and keys between projection and rotation, over each head or over all heads of a row together.
//! Source: Henry et al. 2020 (arXiv:2010.04245), with RMSNorm as Qwen 3, Gemma 3 and OLMo 2 have it.

use crate::cpu::element::Element;
use crate::cpu::pool::Pool;
use crate::nn::rms_norm::{backward_row_in_place, factor, scale_row};

/// The weights of a layer: a norm spans as many channels as its weight has.
pub(crate) struct Weights {
    /// (C) or (H·C)
    pub q: Vec<f32>,
    /// (C) or (K·C)
    pub k: Vec<f32>,
    /// H·C
    pub query_size: usize,
    /// K·C
    pub key_size: usize,
}

impl Weights {
    /// Width of the queries and keys of a row.
    pub fn width(&self) -> usize {
        self.query_size + self.key_size
    }

    /// Norms of a row.
    pub fn n_groups(&self) -> usize {
        self.query_size / self.q.len() + self.key_size / self.k.len()
    }

    /// The first channel and the weight of each norm of a row.
    fn groups(&self) -> impl Iterator<Item = (usize, &[f32])> {
        let queries = (0..self.query_size).step_by(self.q.len());
        let keys = (self.query_size..self.width()).step_by(self.k.len());
        let queries = queries.map(|first| (first, &*self.q));
        queries.chain(keys.map(|first| (first, &*self.k)))
    }
}

/// Norms q and k within `qkv` (T, `width`). For the backward `raw` keeps them as they were, (T, (H+K)·C), and `rstd` the
/// factors, (T, groups).
pub(crate) fn forward<E: Element>(
    pool: &Pool,
    weights: &Weights,
    eps: f32,
    (qkv, width): (&mut [E], usize),
    raw: &mut [E],
    rstd: &mut [f32],
) {
    let (n_rows, normed, n_groups) = (qkv.len() / width, weights.width(), weights.n_groups());
    pool.for_rows(n_rows, (&mut *raw, normed), |rows, raw| {
        for (row, raw) in rows.zip(raw.chunks_exact_mut(normed)) {
            raw.copy_from_slice(&qkv[row * width..][..normed]);
        }
    });
    pool.for_rows_of_two(n_rows, (qkv, width), (rstd, n_groups), |rows, qkv, rstd| {
        let of_rows = qkv
            .chunks_exact_mut(width)
            .zip(rstd.chunks_exact_mut(n_groups));
        for (row, (qkv, rstd)) in rows.zip(of_rows) {
            let raw = &raw[row * normed..][..normed];
            for ((first, weight), rstd) in weights.groups().zip(rstd) {
                let x = &raw[first..][..weight.len()];
                *rstd = factor(x, eps);
                scale_row(x, weight, *rstd, &mut qkv[first..][..weight.len()]);
            }
        }
    });
}

/// The gradients of normed q and k within `d_qkv` (T, `width`) become those of `raw`.
pub(crate) fn backward<E: Element>(
    pool: &Pool,
    weights: &Weights,
    raw: &[E],
    rstd: &[f32],
    (d_qkv, width): (&mut [E], usize),
) {
    let (normed, n_groups) = (weights.width(), weights.n_groups());
    pool.for_rows(d_qkv.len() / width, (d_qkv, width), |rows, d_qkv| {
        for (row, d_qkv) in rows.zip(d_qkv.chunks_exact_mut(width)) {
            let (raw, rstd) = (&raw[row * normed..][..normed], &rstd[row * n_groups..]);
            for ((first, weight), rstd) in weights.groups().zip(rstd) {
                let d = &mut d_qkv[first..][..weight.len()];
                backward_row_in_place(&raw[first..][..weight.len()], weight, *rstd, d);
            }
        }
    });
}
