//! The gate before a job succeeds: the adapter that will be served must score rows as the trained one does. A trained
//! model that is not the served model is the defect that nobody sees and everybody feels.

use std::sync::Arc;

use engine::Precision;
use engine::batch::Example;
use engine::lora::Adapter;

use super::failure::Failure;
use crate::device::Training;

/// Rows compared at least; the shortest, as each label is a test of the whole network.
const ROWS: usize = 4;

/// Labels compared at least where a side scores in bf16, if there are as many: one that it moves far must not decide the mean.
const LABELS_IN_BF16: usize = 256;

/// Largest differences of log-probabilities. Nats.
#[derive(Debug, Clone, Copy)]
struct Tolerance {
    mean: f32,
    worst: f32,
}

impl Tolerance {
    fn of(scored_in: Precision) -> Self {
        match scored_in {
            // Both paths compute in f32, in another order of summation.
            Precision::Fp32 => Self {
                mean: 1e-3,
                worst: 1e-3,
            },
            // Its eight bits move a single label far and all of them together little.
            Precision::Bf16 => Self {
                mean: 0.02,
                worst: 0.5,
            },
        }
    }
}

/// How far scores of the same labels lie apart. Nats.
#[derive(Debug, Default, PartialEq)]
struct Difference {
    n_labels: usize,
    sum: f32,
    /// Infinite where a score is missing, NaN where one is no number.
    worst: f32,
}

impl Difference {
    fn add(&mut self, a: &[f32], b: &[f32]) {
        if a.len() != b.len() {
            self.worst = f32::INFINITY;
        }
        self.n_labels += b.len();
        for (a, b) in a.iter().zip(b) {
            let d = (a - b).abs();
            self.sum += d;
            // `f32::max` would pass over a NaN.
            if d > self.worst || d.is_nan() {
                self.worst = d;
            }
        }
    }

    fn mean(&self) -> f32 {
        self.sum / self.n_labels.max(1) as f32
    }

    fn is_within(&self, tolerance: Tolerance) -> bool {
        self.worst <= tolerance.worst && self.mean() <= tolerance.mean
    }
}

/// Compares trainer and serving path on some of `rows`.
/// Errors: `Infra` where they differ.
pub(super) async fn check(
    training: &Training,
    rows: &[&Example],
    adapter: &Arc<Adapter>,
) -> Result<(), Failure> {
    let mut difference = Difference::default();
    let scored_in = training.scored_in(adapter).await?;
    for example in shortest(rows, scored_in) {
        let trained = training.label_logprobs(example.clone()).await?;
        let served = training
            .score(example.tokens.clone(), Arc::clone(adapter))
            .await?;
        let served: Vec<f32> = (1..example.tokens.len())
            .filter(|i| example.mask[*i])
            .map(|i| served[i - 1])
            .collect();
        difference.add(&trained, &served);
    }
    let tolerance = Tolerance::of(scored_in);
    let (mean, worst) = (difference.mean(), difference.worst);
    tracing::info!(
        trained_on = ?training.on,
        scored_in = scored_in.name(),
        n_labels = difference.n_labels,
        mean,
        worst,
        ?tolerance,
        "the served adapter was compared with the trained one"
    );
    if !difference.is_within(tolerance) {
        return Err(Failure::infra(format!(
            "the served adapter differs from the trained one: log-probabilities by {mean} in the mean and {worst} at worst, \
             over {} or {}",
            tolerance.mean, tolerance.worst
        )));
    }
    Ok(())
}

fn shortest<'a>(rows: &[&'a Example], scored_in: Precision) -> Vec<&'a Example> {
    let rows = rows.iter().copied();
    let mut rows: Vec<&Example> = rows.filter(|row| row.n_labels() > 0).collect();
    rows.sort_by_key(|row| row.tokens.len());
    let wanted = match scored_in {
        Precision::Fp32 => 0,
        Precision::Bf16 => LABELS_IN_BF16,
    };
    let (mut n_rows, mut n_labels) = (0, 0);
    while n_rows < rows.len() && (n_rows < ROWS || n_labels < wanted) {
        n_labels += rows[n_rows].n_labels();
        n_rows += 1;
    }
    rows.truncate(n_rows);
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_bf16_labels_enough_are_compared_and_in_f32_a_few_rows() {
        let row = |n: usize| Example {
            tokens: vec![1; n + 1],
            mask: [vec![false], vec![true; n]].concat(),
        };
        let rows: Vec<Example> = (1..=40).rev().map(row).collect();
        let rows: Vec<&Example> = rows.iter().collect();
        let lengths = |precision| {
            shortest(&rows, precision)
                .iter()
                .map(|row| row.n_labels())
                .collect::<Vec<_>>()
        };
        assert_eq!(lengths(Precision::Fp32), [1, 2, 3, 4]);
        // 1 + 2 + … + 23 = 276
        assert_eq!(lengths(Precision::Bf16), (1..=23).collect::<Vec<_>>());
        assert_eq!(shortest(&rows[30..], Precision::Bf16).len(), 10);
    }

    fn difference(pairs: &[(&[f32], &[f32])]) -> Difference {
        let mut difference = Difference::default();
        pairs.iter().for_each(|(a, b)| difference.add(a, b));
        difference
    }

    #[test]
    fn a_score_that_is_missing_or_no_number_is_a_difference() {
        let two = difference(&[(&[1.0, 2.0], &[1.5, 2.0]), (&[0.0], &[0.25])]);
        assert_eq!((two.mean(), two.worst), (0.25, 0.5));
        for bad in [
            difference(&[(&[1.0], &[])]),
            difference(&[(&[1.0], &[]), (&[1.0], &[1.0])]),
            difference(&[(&[f32::NAN, 1.0], &[1.0, 1.0])]),
            difference(&[(&[f32::NAN], &[1.0]), (&[1.0], &[1.0])]),
        ] {
            assert!(!bad.is_within(Tolerance::of(Precision::Bf16)), "{bad:?}");
        }
    }

    #[test]
    fn bf16_may_move_one_label_but_not_all_of_them() {
        let served = [-2.0f32; 100];
        let moved = |by: f32, every: usize| {
            let trained: Vec<f32> = (0..100)
                .map(|i| if i % every == 0 { by - 2.0 } else { -2.0 })
                .collect();
            difference(&[(&trained, &served)])
        };
        let [exact, rounded] = [Precision::Fp32, Precision::Bf16].map(Tolerance::of);
        assert!(moved(0.0009, 1).is_within(exact));
        assert!(!moved(0.0011, 100).is_within(exact));
        assert!(moved(0.45, 100).is_within(rounded));
        assert!(!moved(0.55, 100).is_within(rounded));
        assert!(moved(0.015, 1).is_within(rounded));
        assert!(!moved(0.025, 1).is_within(rounded));
    }
}
