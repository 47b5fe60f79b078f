//! The losses of rows that are not trained on, in pieces small enough that generation need not wait for them.

use domain::metrics::StepMetrics;
use domain::preference::Preference;
use engine::train::{EvalReport, PreferenceReport};

use super::failure::Failure;
use super::rows::Rows;
use super::{Session, data};

/// Validation rows per piece of work on the device: generation waits no longer than for a training step.
const EVALUATE_ROWS: usize = 4;

/// How many validation rows are scored at once: as many as a step has, where they decide on each other's loss.
pub(super) fn rows_at_once(preference: Option<&Preference>, batch_size: usize) -> usize {
    match preference {
        Some(preference) if preference.loss_type.couples_rows() => batch_size,
        _ => EVALUATE_ROWS,
    }
}

/// Loss and accuracy of some rows: of their labels, or of the rows themselves.
#[derive(Default)]
struct Score {
    loss_sum: f64,
    n_right: u64,
    /// Labels, pairs or judged answers.
    n: u64,
}

impl Score {
    fn loss(&self) -> f64 {
        ratio(self.loss_sum, self.n)
    }

    fn accuracy(&self) -> f64 {
        ratio(self.n_right as f64, self.n)
    }

    fn add(&mut self, part: Score) {
        self.loss_sum += part.loss_sum;
        self.n_right += part.n_right;
        self.n += part.n;
    }
}

impl From<EvalReport> for Score {
    fn from(report: EvalReport) -> Self {
        Self {
            loss_sum: report.loss_sum,
            n_right: report.n_correct,
            n: report.n_label_tokens,
        }
    }
}

impl From<PreferenceReport> for Score {
    fn from(report: PreferenceReport) -> Self {
        Self {
            loss_sum: report.loss_sum,
            n_right: report.n_right,
            n: report.n_rows,
        }
    }
}

impl Session {
    /// A fixed sample at every epoch's end, every row at the last; where the sample is every row they are one.
    pub(super) async fn validate(
        &mut self,
        step: u64,
        seed: u32,
        measured: &mut StepMetrics,
    ) -> Result<(), Failure> {
        let sample = data::valid_sample(self.valid.len(), seed);
        let sampled = self.evaluate(&sample).await?;
        measured.valid_loss = Some(sampled.loss());
        measured.valid_mean_token_accuracy = Some(sampled.accuracy());
        let full = if sample.len() == self.valid.len() {
            sampled
        } else if step == self.plan.total_steps {
            self.evaluate(&(0..self.valid.len()).collect::<Vec<_>>())
                .await?
        } else {
            return Ok(());
        };
        measured.full_valid_loss = Some(full.loss());
        measured.full_valid_mean_token_accuracy = Some(full.accuracy());
        Ok(())
    }

    async fn evaluate(&mut self, places: &[usize]) -> Result<Score, Failure> {
        let mut sum = Score::default();
        for places in places.chunks(self.evaluated_at_once) {
            sum.add(match &mut self.valid {
                Rows::Conversations(examples) => {
                    let rows = places.iter().map(|i| examples[*i].clone()).collect();
                    self.training.evaluate(rows).await?.into()
                }
                Rows::Compared(answers) => {
                    let chosen = answers.choose(&self.training, self.has_reference, places);
                    self.training.evaluate_compared(chosen.await?).await?.into()
                }
            });
        }
        Ok(sum)
    }
}

/// `sum / n`, and 0 of nothing.
pub(super) fn ratio(sum: f64, n: u64) -> f64 {
    if n == 0 { 0.0 } else { sum / n as f64 }
}
