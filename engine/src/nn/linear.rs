//! A frozen linear with a low-rank change: y = x·Wᵀ + bias + (x·s·Aᵀ)·Bᵀ. W never gets a gradient.

use std::ops::Range;

use crate::cpu::buffer::{Buffer, OutOfMemory};
use crate::cpu::element::Element;
use crate::cpu::gemm::{self, Left, LowRank, Out, Shape, Side, add_outer, matmul};
use crate::cpu::pool::Pool;
use crate::lora::FusedLora;
use crate::weights::Linear;

/// The rows of a batch that one adapter changes.
pub(crate) struct LoraRows<'a, E> {
    pub rows: Range<usize>,
    pub lora: &'a FusedLora<E>,
}

/// The linear of `x`; `h` receives x·s·Aᵀ of each of `loras`, (rows, R) one after the other.
/// Shapes: `x` (T, K), result (T, N).
/// Errors: `OutOfMemory`.
pub(crate) fn forward<E: Element>(
    pool: &Pool,
    linear: &Linear,
    loras: &[LoraRows<'_, E>],
    x: &[E],
    h: &mut Buffer<E>,
    out: Out<'_, E>,
) -> Result<(), OutOfMemory> {
    let depth = linear.weight.n_in();
    let changes = low_rank(pool, depth, loras, x, h)?;
    let (n_rows, x) = (x.len() / depth, Left::rows(x, depth));
    let weight = (&linear.weight, Side::Forward);
    gemm::linear(
        pool,
        n_rows,
        x,
        weight,
        linear.bias.as_deref(),
        &changes,
        out,
    );
    Ok(())
}

/// The first half of every change: x·s·Aᵀ in `h`. Shape: `x` (T, `n_in`).
/// Errors: `OutOfMemory`.
pub(crate) fn low_rank<'a, E: Element>(
    pool: &Pool,
    n_in: usize,
    loras: &[LoraRows<'a, E>],
    x: &[E],
    h: &'a mut Buffer<E>,
) -> Result<Vec<LowRank<'a, E>>, OutOfMemory> {
    let changed = || loras.iter().filter(|l| l.lora.rank > 0);
    h.ensure(changed().map(|l| l.rows.len() * l.lora.rank).sum())?;
    let mut rest = &mut **h;
    let mut changes = Vec::new();
    for LoraRows { rows, lora } in changed() {
        let (h, after) = rest.split_at_mut(rows.len() * lora.rank);
        rest = after;
        let shape = Shape {
            rows: rows.len(),
            columns: lora.rank,
            depth: n_in,
        };
        let x = Left::rows(&x[rows.start * n_in..rows.end * n_in], n_in);
        matmul(pool, shape, x, lora.a.right(), h, lora.rank);
        changes.push(LowRank {
            rows: rows.clone(),
            h: Left::rows(h, lora.rank),
            q: &lora.b,
            reach: &lora.reach,
        });
    }
    Ok(changes)
}

/// What the backward of a linear reads and writes besides its gradients of x.
pub(crate) struct Backward<'a, E> {
    pub lora: &'a FusedLora<E>,
    /// The sums of all gradients of the adapter.
    pub grads: &'a mut [f32],
    /// Scratch for dY·s·B, (T, R).
    pub dh: &'a mut Buffer<E>,
}

impl<E: Element> Backward<'_, E> {
    /// Adds dA and dB to the sums. Shapes: `x` (T, K), `h` (T, R) from the forward, `dy` (T, `columns`).
    /// Errors: `OutOfMemory`.
    pub fn adapter(
        &mut self,
        pool: &Pool,
        x: &[E],
        h: &[E],
        dy: &[E],
        columns: usize,
    ) -> Result<(), OutOfMemory> {
        let (rows, rank) = (dy.len() / columns, self.lora.rank);
        if rank == 0 {
            return Ok(());
        }
        self.dh.ensure(rows * rank)?;
        self.dh.fill(E::default());
        let n_in = x.len() / rows;
        for part in &self.lora.parts {
            let (dy, r) = (&dy[part.column..], part.ranks.len());
            let shape = Shape {
                rows,
                columns: r,
                depth: part.n_out,
            };
            let dh = &mut self.dh[part.ranks.start..];
            matmul(
                pool,
                shape,
                Left::rows(dy, columns),
                part.b_turned.right(),
                dh,
                rank,
            );
            let shape = Shape {
                rows: part.n_out,
                columns: r,
                depth: rows,
            };
            let db = &mut self.grads[part.b_range.clone()];
            add_outer(pool, shape, dy, columns, &h[part.ranks.start..], rank, db);
        }
        // The A of parts whose ranks follow each other are one matrix.
        for part in self
            .lora
            .parts
            .chunk_by(|a, b| a.ranks.end == b.ranks.start)
        {
            let (first, last) = (&part[0], &part[part.len() - 1]);
            let shape = Shape {
                rows: last.ranks.end - first.ranks.start,
                columns: n_in,
                depth: rows,
            };
            let da = &mut self.grads[first.a_range.start..last.a_range.end];
            add_outer(
                pool,
                shape,
                &self.dh[first.ranks.start..],
                rank,
                x,
                n_in,
                da,
            );
        }
        Ok(())
    }

    /// dX = dY·W + dH·A; to be called after [`Self::adapter`]. Shapes: `dy` (T, N), `dx` (T, K).
    pub fn input(&self, pool: &Pool, linear: &Linear, dy: &[E], dx: &mut [E]) {
        let (columns, rank) = (linear.weight.n_out(), self.lora.rank);
        let rows = dy.len() / columns;
        let reach = [(0..linear.weight.n_in(), 0..rank)];
        let change = (rank > 0).then(|| LowRank {
            rows: 0..rows,
            h: Left::rows(self.dh, rank),
            q: &self.lora.a_turned,
            reach: &reach,
        });
        let weight = (&linear.weight, Side::Turned);
        gemm::linear(
            pool,
            rows,
            Left::rows(dy, columns),
            weight,
            None,
            change.as_slice(),
            Out::Set(dx),
        );
    }
}
