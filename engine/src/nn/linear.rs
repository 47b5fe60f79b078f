//! A frozen linear with a low-rank change: y = x·Wᵀ + bias + (x·s·Aᵀ)·Bᵀ. W never gets a gradient.

use std::ops::Range;

use crate::buffer::{Buffer, OutOfMemory};
use crate::lora::FusedLora;
use crate::nn::gemm::{Left, Right, Shape, Write, matmul, matmul_turned};
use crate::pool::Pool;
use crate::weights::Linear;

/// The rows of a batch that one adapter changes.
pub(crate) struct LoraRows<'a> {
    pub rows: Range<usize>,
    pub lora: &'a FusedLora,
}

/// y = or y += the linear of x; `h` receives x·s·Aᵀ of the last of `loras`, (rows, R).
/// Shapes: `x` (T, K), `y` (T, N).
/// Errors: `OutOfMemory`.
pub(crate) fn forward(
    pool: &Pool,
    linear: &Linear,
    loras: &[LoraRows<'_>],
    x: &[f32],
    h: &mut Buffer,
    y: &mut [f32],
    write: Write,
) -> Result<(), OutOfMemory> {
    let (depth, columns) = (linear.weight.depth(), linear.weight.columns());
    let shape = Shape {
        rows: x.len() / depth,
        columns,
        depth,
    };
    let write = match &linear.bias {
        Some(bias) => add_bias(bias, &mut y[..shape.rows * columns], write),
        None => write,
    };
    matmul(
        pool,
        shape,
        Left::rows(x, depth),
        linear.weight.right(),
        y,
        columns,
        write,
    );
    for LoraRows { rows, lora } in loras.iter().filter(|l| l.lora.rank > 0) {
        let n = rows.len();
        h.ensure(n * lora.rank)?;
        let x = Left::rows(&x[rows.start * depth..rows.end * depth], depth);
        matmul(
            pool,
            Shape {
                rows: n,
                columns: lora.rank,
                depth,
            },
            x,
            lora.a.right(),
            h,
            lora.rank,
            Write::Set,
        );
        for part in &lora.parts {
            let shape = Shape {
                rows: n,
                columns: part.n_out,
                depth: part.r,
            };
            let h = Left::rows(&h[part.rank_start..], lora.rank);
            let y = &mut y[rows.start * columns + part.column..];
            matmul(pool, shape, h, part.b.right(), y, columns, Write::Add);
        }
    }
    Ok(())
}

fn add_bias(bias: &[f32], y: &mut [f32], write: Write) -> Write {
    for row in y.chunks_exact_mut(bias.len()) {
        match write {
            Write::Set => row.copy_from_slice(bias),
            Write::Add => row.iter_mut().zip(bias).for_each(|(y, b)| *y += b),
        }
    }
    Write::Add
}

/// What the backward of a linear reads and writes besides its gradients of x.
pub(crate) struct Backward<'a> {
    pub lora: &'a FusedLora,
    /// All values of the adapter.
    pub values: &'a [f32],
    /// The sums of all gradients of the adapter.
    pub grads: &'a mut [f32],
    /// Scratch for dY·s·B, (T, R).
    pub dh: &'a mut Buffer,
}

impl Backward<'_> {
    /// Adds dA and dB to the sums. Shapes: `x` (T, K), `h` (T, R) from the forward, `dy` (T, `columns`).
    /// Errors: `OutOfMemory`.
    pub fn adapter(
        &mut self,
        pool: &Pool,
        x: &[f32],
        h: &[f32],
        dy: &[f32],
        columns: usize,
    ) -> Result<(), OutOfMemory> {
        let (rows, rank) = (dy.len() / columns, self.lora.rank);
        if rank == 0 {
            return Ok(());
        }
        self.dh.ensure(rows * rank)?;
        for part in &self.lora.parts {
            let dy = &dy[part.column..];
            let shape = Shape {
                rows,
                columns: part.r,
                depth: part.n_out,
            };
            let dh = &mut self.dh[part.rank_start..];
            matmul(
                pool,
                shape,
                Left::rows(dy, columns),
                part.b_turned.right(),
                dh,
                rank,
                Write::Set,
            );
            let shape = Shape {
                rows: part.n_out,
                columns: part.r,
                depth: rows,
            };
            let db = &mut self.grads[part.b_range.clone()];
            let h = Right::rows(&h[part.rank_start..], rank);
            matmul(
                pool,
                shape,
                Left::transposed(dy, columns),
                h,
                db,
                part.r,
                Write::Add,
            );
        }
        let depth = x.len() / rows;
        let shape = Shape {
            rows: rank,
            columns: depth,
            depth: rows,
        };
        let da = &mut self.grads[self.lora.a_range.clone()];
        matmul(
            pool,
            shape,
            Left::transposed(self.dh, rank),
            Right::rows(x, depth),
            da,
            depth,
            Write::Add,
        );
        Ok(())
    }

    /// dX = dY·W + dH·A; to be called after [`Self::adapter`]. Shapes: `dy` (T, N), `dx` (T, K).
    pub fn input(&self, pool: &Pool, linear: &Linear, dy: &[f32], dx: &mut [f32]) {
        let (columns, depth, rank) = (
            linear.weight.columns(),
            linear.weight.depth(),
            self.lora.rank,
        );
        let rows = dy.len() / columns;
        matmul_turned(pool, rows, dy, columns, &linear.weight, dx);
        if rank > 0 {
            let a = Right::rows(&self.values[self.lora.a_range.clone()], depth);
            matmul(
                pool,
                Shape {
                    rows,
                    columns: depth,
                    depth: rank,
                },
                Left::rows(self.dh, rank),
                a,
                dx,
                depth,
                Write::Add,
            );
        }
    }
}
