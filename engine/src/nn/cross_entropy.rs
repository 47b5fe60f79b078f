//! The head and the cross entropy as one operation, a chunk of rows at a time: the logits of a batch never exist at once.

use crate::cpu::buffer::{Buffer, OutOfMemory};
use crate::cpu::element::Element;
use crate::cpu::gemm::{Left, Out, Shape, Side, Weight, add_outer, linear};
use crate::cpu::pool::Pool;
use crate::cpu::simd::{exp, max, sum, vectorized};

/// Logits that exist at once: 32 MiB, which a last-level cache can hold.
pub(crate) const CHUNK_VALUES: usize = 8 << 20;

/// What each row says of its target.
#[derive(Default)]
pub(crate) struct RowLosses {
    /// log p(target), natural.
    pub logprobs: Vec<f32>,
    /// The target has the largest logit.
    pub n_correct: u64,
}

/// Memory of a chunk.
#[derive(Default)]
pub(crate) struct ChunkScratch<E> {
    logits: Buffer<f32>,
    /// Their gradient.
    d_logits: Buffer<E>,
}

/// Scores `targets[i]` by row i of `x`. Shapes: `x` (rows, D), `head` (V, D).
/// Errors: `OutOfMemory`.
pub(crate) fn losses<E: Element>(
    pool: &Pool,
    head: &Weight,
    x: &[E],
    targets: &[u32],
    scratch: &mut ChunkScratch<E>,
) -> Result<RowLosses, OutOfMemory> {
    chunks(
        pool,
        head,
        x,
        targets,
        &mut scratch.logits,
        |_, _, _| Ok(()),
    )
}

/// Where the gradient of −Σ log p goes.
pub(crate) struct Into<'a> {
    /// Becomes that of x, (rows, D).
    pub dx: &'a mut [f32],
    /// That of the head is added to it, (V, D), if the head is trained.
    pub d_head: Option<&'a mut [f32]>,
}

/// As [`losses`], with the gradient of −Σ log p·`scale`.
/// Errors: `OutOfMemory`.
pub(crate) fn losses_and_gradient<E: Element>(
    pool: &Pool,
    head: &Weight,
    x: &[E],
    targets: &[u32],
    scale: f32,
    scratch: &mut ChunkScratch<E>,
    into: Into<'_>,
) -> Result<RowLosses, OutOfMemory> {
    let (depth, vocab) = (head.n_in(), head.n_out());
    let stride = vocab.next_multiple_of(E::PER_WORD);
    let ChunkScratch { logits, d_logits } = scratch;
    let Into { dx, mut d_head } = into;
    chunks(pool, head, x, targets, logits, |first, weights, sums| {
        let n_rows = sums.len();
        d_logits.ensure(n_rows * stride)?;
        pool.for_rows(n_rows, (&mut *d_logits, stride), |rows, d_logits| {
            for (row, d_logits) in rows.zip(d_logits.chunks_exact_mut(stride)) {
                let weights = &weights[row * vocab..(row + 1) * vocab];
                let factor = scale / sums[row].total;
                scale_row(weights, factor, d_logits);
                let target = targets[first + row] as usize;
                d_logits[target] = E::from_f32(weights[target] * factor - scale);
                d_logits[vocab..].fill(E::default());
            }
        });
        if let Some(d_head) = &mut d_head {
            let shape = Shape {
                rows: vocab,
                columns: depth,
                depth: n_rows,
            };
            add_outer(
                pool,
                shape,
                d_logits,
                stride,
                &x[first * depth..],
                depth,
                d_head,
            );
        }
        let dx = &mut dx[first * depth..(first + n_rows) * depth];
        let d_logits = Left::rows(d_logits, stride);
        linear(
            pool,
            n_rows,
            d_logits,
            (head, Side::Turned),
            None,
            &[],
            Out::SetSums(dx),
        );
        Ok(())
    })
}

/// The logits of every row at once, (rows, V), each by its head: for the few rows of a decoding step. Shape: `x` (rows, D).
/// Errors: `OutOfMemory`.
pub(crate) fn logits<'a, 'b, E: Element>(
    pool: &Pool,
    heads: impl Iterator<Item = &'b Weight>,
    x: &[E],
    scratch: &'a mut ChunkScratch<E>,
) -> Result<&'a mut [f32], OutOfMemory> {
    let heads: Vec<&Weight> = heads.collect();
    let sizes = heads.first().map(|head| (head.n_in(), head.n_out()));
    let (depth, vocab) = sizes.unwrap_or_default();
    scratch.logits.ensure(heads.len() * vocab)?;
    let mut first = 0;
    for same in heads.chunk_by(|a, b| std::ptr::eq(*a, *b)) {
        let rows = first..first + same.len();
        linear(
            pool,
            same.len(),
            Left::rows(&x[rows.start * depth..rows.end * depth], depth),
            (same[0], Side::Forward),
            None,
            &[],
            Out::SetSums(&mut scratch.logits[rows.start * vocab..rows.end * vocab]),
        );
        first = rows.end;
    }
    Ok(&mut scratch.logits)
}

/// What one row of logits comes to.
#[derive(Clone, Copy, Default)]
struct RowSums {
    /// log p(target)
    logprob: f32,
    is_correct: bool,
    /// Σ e^(logit − largest)
    total: f32,
}

/// Calls `then` with (first row, e^(logit − largest of its row), the sums of each row) for every chunk.
fn chunks<E: Element>(
    pool: &Pool,
    head: &Weight,
    x: &[E],
    targets: &[u32],
    logits: &mut Buffer<f32>,
    mut then: impl FnMut(usize, &[f32], &[RowSums]) -> Result<(), OutOfMemory>,
) -> Result<RowLosses, OutOfMemory> {
    let (depth, vocab) = (head.n_in(), head.n_out());
    let rows_per_chunk = (CHUNK_VALUES / vocab).clamp(1, targets.len().max(1));
    logits.ensure(rows_per_chunk * vocab)?;
    let mut result = RowLosses::default();
    let mut sums = vec![RowSums::default(); rows_per_chunk];
    for first in (0..targets.len()).step_by(rows_per_chunk) {
        let targets = &targets[first..targets.len().min(first + rows_per_chunk)];
        let n = targets.len();
        let x = Left::rows(&x[first * depth..(first + n) * depth], depth);
        linear(
            pool,
            n,
            x,
            (head, Side::Forward),
            None,
            &[],
            Out::SetSums(logits),
        );
        let logits = &mut logits[..n * vocab];
        pool.for_rows_of_two(
            n,
            (&mut *logits, vocab),
            (&mut sums, 1),
            |rows, logits, sums| {
                for ((row, logits), sums) in rows.zip(logits.chunks_exact_mut(vocab)).zip(sums) {
                    let target = logits[targets[row] as usize];
                    let (top, total) = exponentials(logits);
                    *sums = RowSums {
                        logprob: target - (top + total.ln()),
                        is_correct: target == top,
                        total,
                    };
                }
            },
        );
        let sums = &sums[..n];
        result.logprobs.extend(sums.iter().map(|row| row.logprob));
        result.n_correct += sums.iter().filter(|row| row.is_correct).count() as u64;
        then(first, logits, sums)?;
    }
    Ok(result)
}

vectorized! {
    /// Logits become e^(logit − largest); returns the largest, and the sum of what they became.
    fn exponentials(logits: &mut [f32]) -> (f32, f32) {
        let top = max(logits);
        for x in logits.iter_mut() {
            *x = exp(*x - top);
        }
        (top, sum(logits, |x| x))
    }
}

vectorized! {
    fn scale_row[E](weights: &[f32], factor: f32, d_logits: &mut [E]) {
        for (d, x) in d_logits.iter_mut().zip(weights) {
            *d = E::from_f32(x * factor);
        }
    }
}
