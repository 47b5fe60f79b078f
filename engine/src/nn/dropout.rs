//! Owns which inputs of the low-rank changes are dropped in training: a function of seed, step, example, position and
//! place alone, so that neither packing, threads nor resumption change it, and nothing has to be kept for the backward.

use std::ops::Range;

use crate::cpu::element::Element;
use crate::cpu::pool::Pool;
use crate::cpu::simd::vectorized;
use crate::rng::{Purpose, Stream};

/// Random bits that decide over one value.
const BITS: u32 = 24;

/// The dropout of one pass.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Dropout {
    p: f32,
    seed: u64,
    step: u64,
    /// For each row, example and position.
    rows: Vec<u64>,
}

/// The dropout of one fused linear's input. Differs: PEFT draws for each linear, here q, k and v share a mask as they share
/// their input, and so do gate and up.
pub(crate) struct Mask<'a> {
    dropout: &'a Dropout,
    stream: Stream,
}

impl Dropout {
    /// Of step number `step`, for documents (rows) that are the examples `members` of the step's batch.
    pub fn new(
        p: f32,
        seed: u64,
        step: u64,
        documents: &[Range<usize>],
        members: &[usize],
    ) -> Self {
        let rows = documents.iter().zip(members).flat_map(|(rows, &member)| {
            (0..rows.len() as u64).map(move |position| ((member as u64) << 24) | position)
        });
        Self {
            p,
            seed,
            step,
            rows: rows.collect(),
        }
    }

    /// That of the `fused`-th of four inputs of block `layer`.
    pub fn at(&self, layer: usize, fused: usize) -> Mask<'_> {
        let place = (layer * 4 + fused) as u64;
        Mask {
            dropout: self,
            stream: Stream::new(self.seed, Purpose::Dropout, (self.step << 24) | place),
        }
    }
}

impl Mask<'_> {
    /// `to` = what is kept of `x`, 1/(1 − p) times as large, and zeros. Shapes: (T, `width`).
    pub fn drop<E: Element>(&self, pool: &Pool, width: usize, x: &[E], to: &mut [E]) {
        pool.for_rows(self.dropout.rows.len(), (to, width), |rows, to| {
            for (row, to) in rows.zip(to.chunks_exact_mut(width)) {
                let x = &x[row * width..(row + 1) * width];
                keep_of(self.stream, self.dropout.rows[row], self.dropout.p, x, to);
            }
        });
    }

    /// The gradient of what was dropped from: `dx` = `sums` + what is kept of `dropped`, 1/(1 − p) times as large.
    /// Shapes: (T, `width`).
    pub fn add<E: Element>(
        &self,
        pool: &Pool,
        width: usize,
        sums: &[f32],
        dropped: &[E],
        dx: &mut [E],
    ) {
        pool.for_rows(self.dropout.rows.len(), (dx, width), |rows, dx| {
            let mut kept = vec![E::default(); width];
            for (row, dx) in rows.zip(dx.chunks_exact_mut(width)) {
                let here = row * width..(row + 1) * width;
                let (dropout, dropped) = (self.dropout, &dropped[here.clone()]);
                keep_of(
                    self.stream,
                    dropout.rows[row],
                    dropout.p,
                    dropped,
                    &mut kept,
                );
                for ((dx, sum), kept) in dx.iter_mut().zip(&sums[here]).zip(&kept) {
                    *dx = E::from_f32(sum + kept.to_f32());
                }
            }
        });
    }
}

vectorized! {
    fn keep_of[E](stream: Stream, row: u64, p: f32, x: &[E], to: &mut [E]) {
        let threshold = (f64::from(p) * f64::from(1u32 << BITS)).ceil() as u64;
        let factor = 1.0 / (1.0 - p);
        for (i, (to, x)) in to.iter_mut().zip(x).enumerate() {
            let bits = stream.bits((row << 20) | i as u64) >> (64 - BITS);
            *to = E::from_f32(if bits >= threshold { x.to_f32() * factor } else { 0.0 });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_are_dropped_as_said_and_the_mean_stays() {
        let (documents, width) = ([0..30, 30..50], 40);
        let dropout = Dropout::new(0.3, 5, 1, &documents, &[2, 0]);
        let x = vec![1.0f32; 50 * width];
        let mut dropped = x.clone();
        dropout
            .at(1, 2)
            .drop(&Pool::new(2), width, &x, &mut dropped);
        let n_kept = dropped.iter().filter(|&&x| x != 0.0).count();
        // Five standard deviations of a binomial with p = 0.7 over 2000 draws are 103.
        assert!(n_kept.abs_diff(1400) < 103, "{n_kept}");
        assert!(dropped.iter().all(|&x| x == 0.0 || x == 1.0 / 0.7));
    }

    #[test]
    fn a_row_keeps_its_mask_wherever_it_lies() {
        let width = 16;
        let draw = |documents: &[Range<usize>], members: &[usize]| {
            let n = documents.last().unwrap().end;
            let dropout = Dropout::new(0.5, 5, 7, documents, members);
            let mut dropped = vec![0.0f32; n * width];
            dropout
                .at(0, 1)
                .drop(&Pool::new(1), width, &vec![1.0f32; n * width], &mut dropped);
            dropped
        };
        let together = draw(&[0..3, 3..8], &[4, 1]);
        let alone = draw(&[0..5, 5..5], &[1, 0]);
        assert_eq!(together[3 * width..], alone[..]);
        assert_ne!(together[..3 * width], alone[..3 * width]);
    }
}
