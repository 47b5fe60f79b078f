//! A linear of which an adapter has gains and biases of its own. With V = W + s·B·A, x̃ what dropout leaves of x and g the
//! gain: y = W·(x − x̃) + g ⊙ V·x̃ + bias, which is PEFT's DoRA: W·x + (g − 1) ⊙ W·x̃ + g ⊙ s·B·A·x̃ + bias.

use crate::cpu::buffer::{Buffer, OutOfMemory};
use crate::cpu::element::Element;
use crate::cpu::gemm::{self, Left, LowRank, Out, Side};
use crate::cpu::pool::Pool;
use crate::lora::{FusedLora, Own};
use crate::nn::linear::LoraRows;
use crate::weights::Linear;

/// V·x in `sums`, (T, N). Shape: `x` (T, K).
/// Errors: `OutOfMemory`.
pub(super) fn product<E: Element>(
    pool: &Pool,
    linear: &Linear,
    x: &[E],
    changes: &[LowRank<'_, E>],
    sums: &mut Buffer,
) -> Result<(), OutOfMemory> {
    let rows = x.len() / linear.weight.n_in();
    sums.ensure(rows * linear.weight.n_out())?;
    let x = Left::rows(x, linear.weight.n_in());
    let weight = (&linear.weight, Side::Forward);
    gemm::linear(pool, rows, x, weight, None, changes, Out::SetSums(sums));
    Ok(())
}

/// W·(x − x̃), (T, N). Shapes: `x`, `kept` (T, K).
/// Errors: `OutOfMemory`.
pub(super) fn rest<'a, E: Element>(
    pool: &Pool,
    linear: &Linear,
    x: &[E],
    kept: &[E],
    lost: &mut Buffer<E>,
    sums: &'a mut Buffer,
) -> Result<&'a [f32], OutOfMemory> {
    difference(pool, linear.weight.n_in(), x, kept, lost)?;
    product(pool, linear, lost, &[], sums)?;
    Ok(sums)
}

/// `to` = `a` − `b`, (T, `width`).
/// Errors: `OutOfMemory`.
pub(super) fn difference<E: Element>(
    pool: &Pool,
    width: usize,
    a: &[E],
    b: &[E],
    to: &mut Buffer<E>,
) -> Result<(), OutOfMemory> {
    to.ensure(a.len())?;
    pool.for_rows(a.len() / width, (to, width), |rows, to| {
        let here = rows.start * width..rows.end * width;
        for ((to, a), b) in to.iter_mut().zip(&a[here.clone()]).zip(&b[here]) {
            *to = E::from_f32(a.to_f32() - b.to_f32());
        }
    });
    Ok(())
}

/// Each row's product, by the gain and with the bias of the adapter that changes it. Shapes: `sums`, `rest` (T, N).
pub(super) fn put_together<E: Element>(
    pool: &Pool,
    linear: &Linear,
    loras: &[LoraRows<'_, E>],
    sums: &[f32],
    rest: Option<&[f32]>,
    out: Out<'_, E>,
) {
    let width = linear.weight.n_out();
    let total = |row: usize, total: &mut [f32]| {
        let lora = loras.iter().find(|lora| lora.rows.contains(&row));
        let (gain, bias) = match lora.and_then(|lora| lora.lora.own.as_ref()) {
            Some(own) => (own.gain.as_deref(), own.bias.as_deref()),
            None => (None, linear.bias.as_deref()),
        };
        let here = row * width..(row + 1) * width;
        total.copy_from_slice(&sums[here.clone()]);
        if let Some(gain) = gain {
            total.iter_mut().zip(gain).for_each(|(y, gain)| *y *= gain);
        }
        for more in [bias, rest.map(|rest| &rest[here])].into_iter().flatten() {
            total.iter_mut().zip(more).for_each(|(y, more)| *y += more);
        }
    };
    let rows = sums.len() / width;
    match out {
        Out::Set(y) => each_row(pool, rows, width, y, total, |y, total| {
            *y = E::from_f32(total);
        }),
        Out::SetSums(y) => each_row(pool, rows, width, y, total, |y, total| *y = total),
        Out::AddSums(y) => each_row(pool, rows, width, y, total, |y, total| *y += total),
    }
}

fn each_row<T: Send>(
    pool: &Pool,
    rows: usize,
    width: usize,
    y: &mut [T],
    total: impl Fn(usize, &mut [f32]) + Sync,
    write: impl Fn(&mut T, f32) + Sync,
) {
    pool.for_rows(rows, (y, width), |rows, y| {
        let mut sum = vec![0.0; width];
        for (row, y) in rows.zip(y.chunks_exact_mut(width)) {
            total(row, &mut sum);
            y.iter_mut().zip(&sum).for_each(|(y, sum)| write(y, *sum));
        }
    });
}

/// The low-rank change of all of a pass's rows, if there is one.
pub(super) fn change<'a, E: Element>(
    rows: usize,
    lora: &'a FusedLora<E>,
    h: &'a [E],
) -> Option<LowRank<'a, E>> {
    (lora.rank > 0).then(|| LowRank {
        rows: 0..rows,
        h: Left::rows(h, lora.rank),
        q: &lora.b,
        reach: &lora.reach,
    })
}

impl Own {
    /// Adds Σ dY to the biases' gradients. Shape: `dy` (T, `width`).
    pub(super) fn add_bias_gradients<E: Element>(
        &self,
        pool: &Pool,
        width: usize,
        dy: &[E],
        grads: &mut [f32],
    ) {
        for (columns, place) in &self.biases {
            let of_row = |row: usize, sums: &mut [f32], first: usize| {
                let dy = &dy[row * width + columns.start + first..];
                for (sum, dy) in sums.iter_mut().zip(dy) {
                    *sum += dy.to_f32();
                }
            };
            add_rows(pool, dy.len() / width, &mut grads[place.clone()], of_row);
        }
    }

    /// The gradient of V·x̃, g ⊙ dY, and of the magnitudes, Σ dY ⊙ V·x̃ / norm, which is added to theirs. Without a gain it
    /// is dY. Shapes: `kept` (T, K), `dy` (T, N).
    /// Errors: `OutOfMemory`.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn through_gain<'a, E: Element>(
        &self,
        pool: &Pool,
        linear: &Linear,
        kept: &[E],
        change: &Option<LowRank<'_, E>>,
        dy: &'a [E],
        grads: &mut [f32],
        sums: &mut Buffer,
        gained: &'a mut Buffer<E>,
    ) -> Result<&'a [E], OutOfMemory> {
        let Some(gain) = &self.gain else {
            return Ok(dy);
        };
        let width = linear.weight.n_out();
        product(pool, linear, kept, change.as_slice(), sums)?;
        for magnitude in &self.magnitudes {
            let of_row = |row: usize, grads: &mut [f32], first: usize| {
                let at = row * width + magnitude.columns.start + first;
                let terms = dy[at..]
                    .iter()
                    .zip(&sums[at..])
                    .zip(&magnitude.norms[first..]);
                for (grad, ((dy, z), norm)) in grads.iter_mut().zip(terms) {
                    *grad += dy.to_f32() * z / norm;
                }
            };
            let grads = &mut grads[magnitude.place.clone()];
            add_rows(pool, dy.len() / width, grads, of_row);
        }
        gained.ensure(dy.len())?;
        pool.for_rows(dy.len() / width, (&mut *gained, width), |rows, to| {
            let dy = dy[rows.start * width..rows.end * width].chunks_exact(width);
            for (to, dy) in to.chunks_exact_mut(width).zip(dy) {
                for ((to, dy), gain) in to.iter_mut().zip(dy).zip(gain) {
                    *to = E::from_f32(dy.to_f32() * gain);
                }
            }
        });
        Ok(gained)
    }
}

/// Calls `of_row` for every row with the sums to add to and the number of the first; each sum goes through the rows in
/// order, whatever the threads.
fn add_rows(
    pool: &Pool,
    rows: usize,
    sums: &mut [f32],
    of_row: impl Fn(usize, &mut [f32], usize) + Sync,
) {
    let n = sums.len();
    pool.for_rows(n, (sums, 1), |columns, sums| {
        (0..rows).for_each(|row| of_row(row, sums, columns.start));
    });
}
