//! A frozen linear with a low-rank change: y = x·Wᵀ + bias + (x·s·Aᵀ)·Bᵀ. W never gets a gradient. In training the change's
//! x may be dropped from; `own` has what an adapter puts in the place of the linear's.

mod own;

use std::ops::Range;

use crate::cpu::buffer::{Buffer, OutOfMemory};
use crate::cpu::element::Element;
use crate::cpu::gemm::{self, Left, LowRank, Out, Shape, Side, add_outer, matmul};
use crate::cpu::pool::Pool;
use crate::lora::FusedLora;
use crate::nn::dropout::Mask;
use crate::weights::Linear;

/// The rows of a batch that one adapter changes.
pub(crate) struct LoraRows<'a, E> {
    pub rows: Range<usize>,
    pub lora: &'a FusedLora<E>,
}

/// Memory for what only some adapters ask for; all linears use it in turn.
#[derive(Default)]
pub(crate) struct Scratch<E> {
    /// What dropout has left of the input, (T, K).
    kept: Buffer<E>,
    /// The gradient of what the gains multiply, (T, N).
    gained: Buffer<E>,
    /// What dropout or the gains have taken away, (T, K) or (T, N).
    lost: Buffer<E>,
    /// Products before they are put together, (T, wider of K and N).
    sums: Buffer,
    more_sums: Buffer,
}

/// The linear of `x`; `h` receives x·s·Aᵀ of each of `loras`, (rows, R) one after the other.
/// Shapes: `x` (T, K), result (T, N).
/// Errors: `OutOfMemory`.
#[allow(clippy::too_many_arguments)]
pub(crate) fn forward<E: Element>(
    pool: &Pool,
    linear: &Linear,
    loras: &[LoraRows<'_, E>],
    mask: Option<Mask<'_>>,
    x: &[E],
    scratch: &mut Scratch<E>,
    h: &mut Buffer<E>,
    out: Out<'_, E>,
) -> Result<(), OutOfMemory> {
    let depth = linear.weight.n_in();
    let kept = kept(pool, mask.as_ref(), depth, x, &mut scratch.kept)?;
    let changes = low_rank(pool, depth, loras, kept, h)?;
    if loras.iter().any(|l| l.lora.own.is_some()) {
        let [sums, more_sums] = [&mut scratch.sums, &mut scratch.more_sums];
        own::product(pool, linear, kept, &changes, sums)?;
        let rest = match mask {
            Some(_) => Some(own::rest(
                pool,
                linear,
                x,
                kept,
                &mut scratch.lost,
                more_sums,
            )?),
            None => None,
        };
        own::put_together(pool, linear, loras, sums, rest, out);
        return Ok(());
    }
    let (n_rows, x) = (x.len() / depth, Left::rows(x, depth));
    let (weight, bias) = ((&linear.weight, Side::Forward), linear.bias.as_deref());
    gemm::linear(pool, n_rows, x, weight, bias, &changes, out);
    Ok(())
}

/// The first half of every change, with dropout: x̃·s·Aᵀ in `h`. Shape: `x` (T, `n_in`).
/// Errors: `OutOfMemory`.
pub(crate) fn low_rank_of_kept<E: Element>(
    pool: &Pool,
    n_in: usize,
    loras: &[LoraRows<'_, E>],
    mask: Option<Mask<'_>>,
    x: &[E],
    scratch: &mut Scratch<E>,
    h: &mut Buffer<E>,
) -> Result<(), OutOfMemory> {
    let kept = kept(pool, mask.as_ref(), n_in, x, &mut scratch.kept)?;
    low_rank(pool, n_in, loras, kept, h).map(|_| ())
}

/// What dropout leaves of `x`, (T, `width`).
/// Errors: `OutOfMemory`.
fn kept<'a, E: Element>(
    pool: &Pool,
    mask: Option<&Mask<'_>>,
    width: usize,
    x: &'a [E],
    room: &'a mut Buffer<E>,
) -> Result<&'a [E], OutOfMemory> {
    let Some(mask) = mask else {
        return Ok(x);
    };
    room.ensure(x.len())?;
    mask.drop(pool, width, x, room);
    Ok(room)
}

/// The first half of every change: x·s·Aᵀ in `h`. Shape: `x` (T, `n_in`).
/// Errors: `OutOfMemory`.
fn low_rank<'a, E: Element>(
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
    pub mask: Option<Mask<'a>>,
    /// The sums of all gradients of the adapter.
    pub grads: &'a mut [f32],
    /// Scratch for dY·s·B, (T, R).
    pub dh: &'a mut Buffer<E>,
    pub scratch: &'a mut Scratch<E>,
}

impl<E: Element> Backward<'_, E> {
    /// Adds the adapter's gradients to the sums. Shapes: `x` (T, K), `h` (T, R) from the forward, `dy` (T, N).
    /// Errors: `OutOfMemory`.
    pub fn adapter(
        &mut self,
        pool: &Pool,
        linear: &Linear,
        x: &[E],
        h: &[E],
        dy: &[E],
    ) -> Result<(), OutOfMemory> {
        let (n_in, columns) = (linear.weight.n_in(), linear.weight.n_out());
        let (rows, rank) = (dy.len() / columns, self.lora.rank);
        let Scratch {
            kept: room,
            gained,
            sums,
            ..
        } = &mut *self.scratch;
        let x = kept(pool, self.mask.as_ref(), n_in, x, room)?;
        let dy = match &self.lora.own {
            Some(own) => {
                own.add_bias_gradients(pool, columns, dy, self.grads);
                let change = own::change(rows, self.lora, h);
                own.through_gain(pool, linear, x, &change, dy, self.grads, sums, gained)?
            }
            None => dy,
        };
        if rank == 0 {
            return Ok(());
        }
        self.dh.ensure(rows * rank)?;
        self.dh.fill(E::default());
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

    /// dX = dY·W + dH·A, with gains and dropout where the forward had them; to be called after [`Self::adapter`].
    /// Shapes: `dy` (T, N), `dx` (T, K).
    /// Errors: `OutOfMemory`.
    pub fn input(
        &mut self,
        pool: &Pool,
        linear: &Linear,
        dy: &[E],
        dx: &mut [E],
    ) -> Result<(), OutOfMemory> {
        let (n_in, columns, rank) = (linear.weight.n_in(), linear.weight.n_out(), self.lora.rank);
        let rows = dy.len() / columns;
        let reach = [(0..n_in, 0..rank)];
        let change = (rank > 0).then(|| LowRank {
            rows: 0..rows,
            h: Left::rows(self.dh, rank),
            q: &self.lora.a_turned,
            reach: &reach,
        });
        let turned = |dy: &[E], change: &[LowRank<'_, E>], out: Out<'_, E>| {
            let (weight, dy) = ((&linear.weight, Side::Turned), Left::rows(dy, columns));
            gemm::linear(pool, rows, dy, weight, None, change, out);
        };
        let Scratch {
            kept,
            gained,
            lost,
            sums,
            ..
        } = &mut *self.scratch;
        let has_gain = self.lora.own.as_ref().is_some_and(|own| own.gain.is_some());
        let Some(mask) = &self.mask else {
            let dz = if has_gain { &**gained } else { dy };
            turned(dz, change.as_slice(), Out::Set(dx));
            return Ok(());
        };
        // What passed the mask is (dZ − dY)·W + dH·A, what did not dY·W.
        kept.ensure(rows * n_in)?;
        match (has_gain, &change) {
            (true, change) => {
                own::difference(pool, columns, gained, dy, lost)?;
                turned(lost, change.as_slice(), Out::Set(kept));
            }
            (false, Some(LowRank { h, q, .. })) => {
                let shape = Shape {
                    rows,
                    columns: n_in,
                    depth: rank,
                };
                matmul(pool, shape, *h, q.right(), kept, n_in);
            }
            (false, None) => kept.fill(E::default()),
        }
        sums.ensure(rows * n_in)?;
        turned(dy, &[], Out::SetSums(sums));
        mask.add(pool, n_in, sums, kept, dx);
        Ok(())
    }
}
