//! The head and the cross entropy as one operation, a chunk of rows at a time: the logits of a batch never exist at once.

use crate::buffer::{Buffer, OutOfMemory};
use crate::nn::gemm::{Left, Panels, Shape, Write, matmul, matmul_turned};
use crate::pool::Pool;
use crate::simd::{exp, max, sum, vectorized};

/// Logits that exist at once: 64 MiB.
const CHUNK_VALUES: usize = 16 << 20;

/// What each row says of its target.
#[derive(Default)]
pub(crate) struct RowLosses {
    /// log p(target), natural.
    pub logprobs: Vec<f32>,
    /// The target has the largest logit.
    pub n_correct: u64,
}

/// Scores `targets[i]` by row i of `x`. Shapes: `x` (rows, D), `head` (V, D).
/// Errors: `OutOfMemory`.
pub(crate) fn losses(
    pool: &Pool,
    head: &Panels,
    x: &[f32],
    targets: &[u32],
    logits: &mut Buffer,
) -> Result<RowLosses, OutOfMemory> {
    chunks(pool, head, x, targets, logits, |_, _, _| ())
}

/// As [`losses`]; `dx` becomes the gradient of −Σ log p·`scale`.
/// Errors: `OutOfMemory`.
pub(crate) fn losses_and_gradient(
    pool: &Pool,
    head: &Panels,
    x: &[f32],
    targets: &[u32],
    scale: f32,
    logits: &mut Buffer,
    dx: &mut [f32],
) -> Result<RowLosses, OutOfMemory> {
    let (depth, vocab) = (head.depth(), head.columns());
    chunks(pool, head, x, targets, logits, |first, logits, lse| {
        let n_rows = lse.len();
        pool.for_rows(n_rows, [(&mut *logits, vocab)], |rows, [logits]| {
            for (row, logits) in rows.zip(logits.chunks_exact_mut(vocab)) {
                gradient_row(logits, lse[row], scale);
                logits[targets[first + row] as usize] -= scale;
            }
        });
        matmul_turned(
            pool,
            n_rows,
            &logits[..n_rows * vocab],
            vocab,
            head,
            &mut dx[first * depth..(first + n_rows) * depth],
        );
    })
}

/// The logits of every row at once, (rows, V): for the few rows of a decoding step. Shape: `x` (rows, D).
/// Errors: `OutOfMemory`.
pub(crate) fn logits(
    pool: &Pool,
    head: &Panels,
    x: &[f32],
    logits: &mut Buffer,
) -> Result<(), OutOfMemory> {
    let shape = Shape {
        rows: x.len() / head.depth(),
        columns: head.columns(),
        depth: head.depth(),
    };
    logits.ensure(shape.rows * shape.columns)?;
    matmul(
        pool,
        shape,
        Left::rows(x, shape.depth),
        head.right(),
        logits,
        shape.columns,
        Write::Set,
    );
    Ok(())
}

/// Calls `then` with (first row, logits, log-sum-exp of each row) for every chunk.
fn chunks(
    pool: &Pool,
    head: &Panels,
    x: &[f32],
    targets: &[u32],
    logits: &mut Buffer,
    mut then: impl FnMut(usize, &mut [f32], &[f32]),
) -> Result<RowLosses, OutOfMemory> {
    let (depth, vocab) = (head.depth(), head.columns());
    let rows_per_chunk = (CHUNK_VALUES / vocab).clamp(1, targets.len().max(1));
    logits.ensure(rows_per_chunk * vocab)?;
    let mut result = RowLosses::default();
    let (mut lse, mut correct) = (vec![0.0; rows_per_chunk], vec![0.0; rows_per_chunk]);
    for first in (0..targets.len()).step_by(rows_per_chunk) {
        let targets = &targets[first..targets.len().min(first + rows_per_chunk)];
        let n = targets.len();
        let shape = Shape {
            rows: n,
            columns: vocab,
            depth,
        };
        matmul(
            pool,
            shape,
            Left::rows(&x[first * depth..], depth),
            head.right(),
            logits,
            vocab,
            Write::Set,
        );
        pool.for_rows(
            n,
            [(&mut lse, 1), (&mut correct, 1)],
            |rows, [lse, correct]| {
                for ((row, lse), correct) in rows.zip(lse).zip(correct) {
                    let logits = &logits[row * vocab..(row + 1) * vocab];
                    let top;
                    (*lse, top) = log_sum_exp(logits);
                    *correct = f32::from(logits[targets[row] as usize] == top);
                }
            },
        );
        for (row, &target) in targets.iter().enumerate() {
            result
                .logprobs
                .push(logits[row * vocab + target as usize] - lse[row]);
            result.n_correct += correct[row] as u64;
        }
        then(first, logits, &lse[..n]);
    }
    Ok(result)
}

vectorized! {
    /// log Σ e^logit, and the largest logit.
    pub(crate) fn log_sum_exp(logits: &[f32]) -> (f32, f32) {
        let top = max(logits);
        (top + sum(logits.len(), |j| exp(logits[j] - top)).ln(), top)
    }
}

vectorized! {
    /// Logits become `scale` times their probabilities.
    fn gradient_row(logits: &mut [f32], lse: f32, scale: f32) {
        for x in logits {
            *x = exp(*x - lse) * scale;
        }
    }
}
