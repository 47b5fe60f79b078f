//! The losses of rows that are not trained on, in pieces small enough that generation need not wait for them.

use domain::metrics::StepMetrics;
use engine::train::EvalReport;

use super::failure::Failure;
use super::{Session, data};

/// Validation rows per piece of work on the device: generation waits no longer than for a training step.
const EVALUATE_ROWS: usize = 4;

impl Session {
    /// A fixed sample at every epoch's end, every row at the last; where the sample is every row they are one.
    pub(super) async fn validate(
        &self,
        step: u64,
        seed: u32,
        measured: &mut StepMetrics,
    ) -> Result<(), Failure> {
        let sample = data::valid_sample(self.valid.len(), seed);
        let sampled = self.evaluate(&sample).await?;
        measured.valid_loss = Some(ratio(sampled.loss_sum, sampled.n_label_tokens));
        measured.valid_mean_token_accuracy =
            Some(ratio(sampled.n_correct as f64, sampled.n_label_tokens));
        let full = if sample.len() == self.valid.len() {
            sampled
        } else if step == self.plan.total_steps {
            self.evaluate(&(0..self.valid.len()).collect::<Vec<_>>())
                .await?
        } else {
            return Ok(());
        };
        measured.full_valid_loss = Some(ratio(full.loss_sum, full.n_label_tokens));
        measured.full_valid_mean_token_accuracy =
            Some(ratio(full.n_correct as f64, full.n_label_tokens));
        Ok(())
    }

    async fn evaluate(&self, places: &[usize]) -> Result<EvalReport, Failure> {
        let mut sum = EvalReport::default();
        for places in places.chunks(EVALUATE_ROWS) {
            let rows = places
                .iter()
                .map(|place| self.valid[*place].clone())
                .collect();
            let part = self.training.evaluate(rows).await?;
            sum.loss_sum += part.loss_sum;
            sum.n_label_tokens += part.n_label_tokens;
            sum.n_correct += part.n_correct;
        }
        Ok(sum)
    }
}

/// `sum / n`, and 0 of nothing.
pub(super) fn ratio(sum: f64, n: u64) -> f64 {
    if n == 0 { 0.0 } else { sum / n as f64 }
}
