//! The head and the cross entropy as one operation, a chunk of rows at a time: the logits of a batch never exist at once.

use crate::config::ModelConfig;
use crate::cpu::buffer::{Buffer, OutOfMemory};
use crate::cpu::element::Element;
use crate::cpu::gemm::{Left, Out, Shape, Side, Weight, add_outer, linear};
use crate::cpu::pool::Pool;
use crate::cpu::simd::{exp, max, sum, vectorized};
use crate::nn::softcap;

/// Logits that exist at once where the vocabulary is small enough: 32 MiB, which a last-level cache can hold.
const CHUNK_VALUES: usize = 8 << 20;

/// Fewest rows of a chunk: the head is read from memory and turned once for each, which has to be worth it.
const MIN_CHUNK_ROWS: usize = 192;

/// Rows whose logits exist at once.
pub(crate) fn chunk_rows(vocab: usize) -> usize {
    (CHUNK_VALUES / vocab).max(MIN_CHUNK_ROWS)
}

/// What makes logits of the last stream.
#[derive(Clone, Copy)]
pub(crate) struct Head<'a> {
    /// (V, D)
    pub weight: &'a Weight,
    /// Logits z become c·tanh(z/c).
    pub cap: Option<f32>,
}

impl<'a> Head<'a> {
    /// The head that a model, or its adapter, has.
    pub fn new(weight: &'a Weight, config: &ModelConfig) -> Self {
        Self {
            weight,
            cap: config.final_logit_softcapping,
        }
    }
}

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
    /// What a cap does to a small change of each logit; empty without one.
    slopes: Buffer<f32>,
    /// The gradient of the logits.
    d_logits: Buffer<E>,
}

/// Scores `targets[i]` by row i of `x`. Shape: `x` (rows, D).
/// Errors: `OutOfMemory`.
pub(crate) fn losses<E: Element>(
    pool: &Pool,
    head: Head<'_>,
    x: &[E],
    targets: &[u32],
    scratch: &mut ChunkScratch<E>,
) -> Result<RowLosses, OutOfMemory> {
    let ChunkScratch { logits, slopes, .. } = scratch;
    chunks(
        pool,
        head,
        x,
        targets,
        (logits, slopes),
        |_, _, _, _| Ok(()),
    )
}

/// How much −log p of each row counts in a gradient.
#[derive(Clone, Copy)]
pub(crate) enum Scale<'a> {
    /// All rows alike.
    Same(f32),
    /// Each row by a factor of its own.
    Each(&'a [f32]),
}

impl Scale<'_> {
    fn of(self, row: usize) -> f32 {
        match self {
            Scale::Same(scale) => scale,
            Scale::Each(scales) => scales[row],
        }
    }
}

/// Where the gradient of −Σ log p·scale goes.
pub(crate) struct Into<'a> {
    /// Becomes that of x, (rows, D).
    pub dx: &'a mut [f32],
    /// That of the head is added to it, (V, D), if the head is trained.
    pub d_head: Option<&'a mut [f32]>,
}

/// As [`losses`], with the gradient of −Σ log p·`scale`, which has a factor for every row of `x`.
/// Errors: `OutOfMemory`.
pub(crate) fn losses_and_gradient<E: Element>(
    pool: &Pool,
    head: Head<'_>,
    x: &[E],
    targets: &[u32],
    scale: Scale<'_>,
    scratch: &mut ChunkScratch<E>,
    into: Into<'_>,
) -> Result<RowLosses, OutOfMemory> {
    let (depth, vocab) = (head.weight.n_in(), head.weight.n_out());
    let stride = vocab.next_multiple_of(E::PER_WORD);
    let ChunkScratch {
        logits,
        slopes,
        d_logits,
    } = scratch;
    let Into { dx, mut d_head } = into;
    let logits = (logits, slopes);
    chunks(
        pool,
        head,
        x,
        targets,
        logits,
        |first, weights, slopes, sums| {
            let n_rows = sums.len();
            d_logits.ensure(n_rows * stride)?;
            pool.for_rows(n_rows, (&mut *d_logits, stride), |rows, d_logits| {
                for (row, d_logits) in rows.zip(d_logits.chunks_exact_mut(stride)) {
                    let weights = &weights[row * vocab..(row + 1) * vocab];
                    let scale = scale.of(first + row);
                    let factor = scale / sums[row].total;
                    scale_row(weights, factor, d_logits);
                    let target = targets[first + row] as usize;
                    d_logits[target] = E::from_f32(weights[target] * factor - scale);
                    if head.cap.is_some() {
                        softcap::uncap_gradient(&slopes[row * vocab..(row + 1) * vocab], d_logits);
                    }
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
                (head.weight, Side::Turned),
                None,
                &[],
                Out::SetSums(dx),
            );
            Ok(())
        },
    )
}

/// The logits of every row at once, (rows, V), each by its head: for the few rows of a decoding step. Shape: `x` (rows, D).
/// Errors: `OutOfMemory`.
pub(crate) fn logits<'a, 'b, E: Element>(
    pool: &Pool,
    heads: impl Iterator<Item = &'b Weight>,
    cap: Option<f32>,
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
    if let Some(cap) = cap {
        let n_rows = heads.len();
        pool.for_rows(n_rows, (&mut scratch.logits, vocab), |_, logits| {
            softcap::cap(logits, 1.0, cap);
        });
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

/// Calls `then` with (first row, e^(logit − largest of its row), the slopes of a cap, the sums of each row) for every
/// chunk.
fn chunks<E: Element>(
    pool: &Pool,
    head: Head<'_>,
    x: &[E],
    targets: &[u32],
    (logits, slopes): (&mut Buffer<f32>, &mut Buffer<f32>),
    mut then: impl FnMut(usize, &[f32], &[f32], &[RowSums]) -> Result<(), OutOfMemory>,
) -> Result<RowLosses, OutOfMemory> {
    let (depth, vocab) = (head.weight.n_in(), head.weight.n_out());
    let rows_per_chunk = chunk_rows(vocab).min(targets.len().max(1));
    logits.ensure(rows_per_chunk * vocab)?;
    slopes.ensure(head.cap.map_or(0, |_| rows_per_chunk * vocab))?;
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
            (head.weight, Side::Forward),
            None,
            &[],
            Out::SetSums(logits),
        );
        let logits = &mut logits[..n * vocab];
        if let Some(cap) = head.cap {
            let (logits, slopes) = ((&mut *logits, vocab), (&mut **slopes, vocab));
            pool.for_rows_of_two(n, logits, slopes, |_, logits, slopes| {
                softcap::cap_with_slopes(logits, cap, slopes);
            });
        }
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
        then(first, logits, slopes, sums)?;
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
