//! Owns AdamW and the clipping of gradients; knows only flat vectors.

use std::ops::Range;

use crate::cpu::pool::Pool;
use crate::cpu::simd::vectorized;

/// Values that one task updates.
const CHUNK: usize = 1 << 16;

/// The constants of AdamW.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct AdamW {
    pub betas: (f32, f32),
    pub eps: f32,
}

/// Values that are updated alike.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Group {
    pub range: Range<usize>,
    /// The learning rate's multiple that these values learn at.
    pub lr_ratio: f32,
    pub weight_decay: f32,
}

impl Group {
    /// Whether `next` is the same group further on.
    pub fn continues_in(&self, next: &Group) -> bool {
        let alike = |group: &Group| (group.lr_ratio, group.weight_decay);
        self.range.end == next.range.start && alike(self) == alike(next)
    }
}

impl AdamW {
    /// One update in place of what `groups`, in ascending order, hold; the rest stays. `step` counts from 1, `m` and `v`
    /// are the moments, gradients are scaled by `grad_scale` first.
    /// Source: Loshchilov & Hutter 2019 (arXiv:1711.05101), in the form of torch: decay first, then
    /// θ −= lr/(1−β₁ᵗ) · m / (√v/√(1−β₂ᵗ) + ε).
    #[allow(clippy::too_many_arguments)]
    pub fn update(
        &self,
        pool: &Pool,
        groups: &[Group],
        learning_rate: f32,
        step: u64,
        grad_scale: f32,
        grads: &[f32],
        values: &mut [f32],
        m: &mut [f32],
        v: &mut [f32],
    ) {
        let (beta1, beta2) = self.betas;
        let correction1 = 1.0 - f64::from(beta1).powi(step as i32);
        let correction2 = 1.0 - f64::from(beta2).powi(step as i32);
        let v_scale = (1.0 / correction2.sqrt()) as f32;
        let rule = |group: &Group| {
            let learning_rate = learning_rate * group.lr_ratio;
            Rule {
                beta1,
                beta2,
                step_size: (f64::from(learning_rate) / correction1) as f32,
                v_scale,
                keep: 1.0 - learning_rate * group.weight_decay,
                eps: self.eps,
                grad_scale,
            }
        };
        let mut tasks = Vec::new();
        let [mut values, mut m, mut v] = [values, m, v].map(|all| Rest { all, start: 0 });
        for group in groups {
            let [values, m, v] = [&mut values, &mut m, &mut v].map(|rest| rest.take(&group.range));
            let chunks = values
                .chunks_mut(CHUNK)
                .zip(m.chunks_mut(CHUNK))
                .zip(v.chunks_mut(CHUNK))
                .zip(grads[group.range.clone()].chunks(CHUNK));
            tasks.extend(chunks.map(|chunk| std::sync::Mutex::new((rule(group), chunk))));
        }
        pool.run(tasks.len(), |i| {
            let mut task = tasks[i]
                .lock()
                .expect("a chunk is updated by one task — a bug in the pool");
            let (rule, (((values, m), v), grads)) = &mut *task;
            update_chunk(*rule, grads, values, m, v);
        });
    }
}

/// What of a vector was not yet taken.
struct Rest<'a> {
    all: &'a mut [f32],
    start: usize,
}

impl<'a> Rest<'a> {
    fn take(&mut self, range: &Range<usize>) -> &'a mut [f32] {
        let (_, from) = std::mem::take(&mut self.all).split_at_mut(range.start - self.start);
        let (taken, rest) = from.split_at_mut(range.len());
        (self.all, self.start) = (rest, range.end);
        taken
    }
}

/// The numbers of one update.
#[derive(Clone, Copy)]
struct Rule {
    beta1: f32,
    beta2: f32,
    step_size: f32,
    v_scale: f32,
    keep: f32,
    eps: f32,
    grad_scale: f32,
}

vectorized! {
    fn update_chunk(rule: Rule, grads: &[f32], values: &mut [f32], m: &mut [f32], v: &mut [f32]) {
        let Rule { beta1, beta2, step_size, v_scale, keep, eps, grad_scale } = rule;
        for (((x, m), v), g) in values.iter_mut().zip(m).zip(v).zip(grads) {
            let g = g * grad_scale;
            *m = beta1 * *m + (1.0 - beta1) * g;
            *v = beta2 * *v + (1.0 - beta2) * g * g;
            *x = *x * keep - step_size * *m / (v.sqrt() * v_scale + eps);
        }
    }
}

vectorized! {
    fn sum_of_squares(chunk: &[f32]) -> f64 {
        let mut lanes = [0.0f64; 16];
        for part in chunk.chunks(16) {
            for (lane, g) in lanes.iter_mut().zip(part) {
                *lane += f64::from(*g) * f64::from(*g);
            }
        }
        lanes.iter().sum::<f64>()
    }
}

/// The L2 norm of all gradients together, summed in f64.
pub(crate) fn global_norm(grads: &[f32]) -> f32 {
    let squares = grads.chunks(CHUNK).map(sum_of_squares);
    squares.sum::<f64>().sqrt() as f32
}

/// What gradients of norm `norm` are multiplied with so that it is at most `max_norm`. Source: torch's `clip_grad_norm_`.
pub(crate) fn clip_factor(norm: f32, max_norm: Option<f32>) -> f32 {
    max_norm.map_or(1.0, |max_norm| (max_norm / (norm + 1e-6)).min(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_updates_equal_the_rule_in_f64() {
        let optimizer = AdamW {
            betas: (0.9, 0.999),
            eps: 1e-8,
        };
        let n = 3 * CHUNK / 2;
        let group = |range, lr_ratio, weight_decay| Group {
            range,
            lr_ratio,
            weight_decay,
        };
        // A hole that stays as it is, and a part that learns faster without decay.
        let (hole, end) = (100..150, n - 1000);
        let groups = [
            group(0..hole.start, 1.0, 0.01),
            group(hole.end..end, 1.0, 0.01),
            group(end..n, 4.0, 0.0),
        ];
        let mut values: Vec<f32> = (0..n).map(|i| (i % 100) as f32 / 50.0 - 1.0).collect();
        let mut exact: Vec<[f64; 3]> = values.iter().map(|&x| [f64::from(x), 0.0, 0.0]).collect();
        let (mut m, mut v) = (vec![0.0; n], vec![0.0; n]);
        for t in 1..=10 {
            let grads: Vec<f32> = (0..n).map(|i| ((i * t) % 37) as f32 / 18.0 - 1.0).collect();
            optimizer.update(
                &Pool::new(2),
                &groups,
                1e-2,
                t as u64,
                0.5,
                &grads,
                &mut values,
                &mut m,
                &mut v,
            );
            for (i, ([x, m, v], g)) in exact.iter_mut().zip(&grads).enumerate() {
                if hole.contains(&i) {
                    continue;
                }
                let (lr, decay) = if i < end { (1e-2, 0.01) } else { (4e-2, 0.0) };
                let g = f64::from(*g) * 0.5;
                *x *= 1.0 - lr * decay;
                *m = 0.9 * *m + 0.1 * g;
                *v = 0.999 * *v + 0.001 * g * g;
                let (c1, c2) = (1.0 - 0.9f64.powi(t as i32), 1.0 - 0.999f64.powi(t as i32));
                *x -= lr / c1 * *m / (v.sqrt() / c2.sqrt() + 1e-8);
            }
        }
        // 3e-6: ten f32 updates of up to 4e-2 on values of 1.
        assert!(
            values
                .iter()
                .zip(&exact)
                .all(|(x, [y, ..])| (f64::from(*x) - y).abs() < 3e-6)
        );
    }

    #[test]
    fn clipping_only_ever_shrinks() {
        let grads = vec![3.0f32; 160_000];
        assert_eq!(global_norm(&grads), 1200.0);
        assert_eq!(clip_factor(1200.0, None), 1.0);
        assert_eq!(clip_factor(0.5, Some(1.0)), 1.0);
        assert!((clip_factor(4.0, Some(1.0)) - 0.25).abs() < 1e-6);
    }
}
