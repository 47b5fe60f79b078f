//! The gate before a job succeeds: the adapter that will be served must score rows as the trained one does. A trained
//! model that is not the served model is the defect that nobody sees and everybody feels.

use std::sync::Arc;

use engine::batch::Example;
use engine::lora::Adapter;

use super::failure::Failure;
use crate::device::Training;

/// Rows compared; the shortest, as each label is a test of the whole network.
const ROWS: usize = 4;
/// Largest difference of a log-probability. Nats: both paths compute in f32, in another order of summation.
const TOLERANCE: f32 = 1e-3;

/// Compares trainer and serving path on validation rows, or on training rows where there are none.
/// Errors: `Infra` where they differ.
pub(super) async fn check(
    training: &Training,
    valid: &[Example],
    rows: &[Example],
    adapter: &Arc<Adapter>,
) -> Result<(), Failure> {
    for example in shortest(if valid.is_empty() { rows } else { valid }) {
        let trained = training.label_logprobs(example.clone()).await?;
        let served = training
            .score(example.tokens.clone(), Arc::clone(adapter))
            .await?;
        let served: Vec<f32> = (1..example.tokens.len())
            .filter(|i| example.mask[*i])
            .map(|i| served[i - 1])
            .collect();
        let worst = largest_difference(&trained, &served);
        tracing::info!(
            n_labels = served.len(),
            worst,
            "the served adapter was compared with the trained one"
        );
        if worst.is_nan() || worst > TOLERANCE {
            return Err(Failure::infra(format!(
                "the served adapter differs from the trained one: a log-probability by {worst}, over {TOLERANCE}"
            )));
        }
    }
    Ok(())
}

fn shortest(rows: &[Example]) -> Vec<&Example> {
    let mut rows: Vec<&Example> = rows.iter().filter(|row| row.n_labels() > 0).collect();
    rows.sort_by_key(|row| row.tokens.len());
    rows.truncate(ROWS);
    rows
}

/// Infinite where the counts differ, NaN where a score is.
fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    if a.len() != b.len() {
        return f32::INFINITY;
    }
    // `f32::max` would pass over a NaN.
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(
            0.0,
            |worst, d| if d > worst || d.is_nan() { d } else { worst },
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_score_that_is_missing_or_no_number_is_a_difference() {
        assert_eq!(largest_difference(&[1.0, 2.0], &[1.5, 2.0]), 0.5);
        assert!(largest_difference(&[1.0], &[]).is_infinite());
        assert!(largest_difference(&[f32::NAN, 1.0], &[1.0, 1.0]).is_nan());
    }
}
