//! Owns what a training by preference reads, pairs of answers or judged ones, and what its passes say of them. A loss that sorts over a step
//! knows the whole step before it learns from any of it, however many passes that takes.

use super::preference::{Outcome, PairLogprobs, Preference, PreferenceLoss, Scores};
use super::{TrainConfig, TrainError, Trainer, n_tokens};
use crate::batch::Example;
use crate::model::Batch;

/// A prompt with two answers, the labels of each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    pub chosen: Example,
    pub rejected: Example,
}

/// A prompt with one answer, its labels, and what was said of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judged {
    pub answer: Example,
    pub is_desirable: bool,
}

/// What a training by preference learns from: judged answers for KTO, pairs for all other losses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compared {
    Pairs(Vec<Pair>),
    Judged(Vec<Judged>),
}

impl Compared {
    /// Pairs, or judged answers.
    pub fn len(&self) -> usize {
        match self {
            Compared::Pairs(pairs) => pairs.len(),
            Compared::Judged(rows) => rows.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Answers of each row; they share a pass.
    pub fn n_together(&self) -> usize {
        match self {
            Compared::Pairs(_) => 2,
            Compared::Judged(_) => 1,
        }
    }

    /// All answers, of a pair the better one before the worse.
    pub fn answers(&self) -> Vec<&Example> {
        match self {
            Compared::Pairs(pairs) => {
                let pairs = pairs.iter();
                pairs.flat_map(|p| [&p.chosen, &p.rejected]).collect()
            }
            Compared::Judged(rows) => rows.iter().map(|row| &row.answer).collect(),
        }
    }

    /// The rows at `places`.
    pub fn at(&self, places: &[usize]) -> Self {
        match self {
            Compared::Pairs(pairs) => {
                Compared::Pairs(places.iter().map(|&i| pairs[i].clone()).collect())
            }
            Compared::Judged(rows) => {
                Compared::Judged(places.iter().map(|&i| rows[i].clone()).collect())
            }
        }
    }

    fn name_of(&self, answer: usize) -> String {
        match self {
            Compared::Pairs(_) => {
                let name = ["better", "worse"][answer % 2];
                format!("pair {}: the {name} answer", answer / 2)
            }
            Compared::Judged(_) => format!("answer {answer}"),
        }
    }
}

impl Judged {
    /// The length of the prompt: what stands before the first label. Tokens.
    pub fn n_prompt(&self) -> usize {
        let first = self.answer.mask.iter().position(|is_label| *is_label);
        first.unwrap_or(self.answer.tokens.len())
    }

    /// The length of the answer and what follows it. Tokens.
    pub fn n_answer(&self) -> usize {
        self.answer.tokens.len() - self.n_prompt()
    }
}

/// Each prompt with the answer of the row before it, the first one with the last one's, so that all answers are there once; of a row alone
/// nothing. What exceeds `max_length` is left out.
fn mismatched(rows: &[Judged], max_length: usize) -> Vec<Example> {
    if rows.len() < 2 {
        return Vec::new();
    }
    let before = rows.iter().cycle().skip(rows.len() - 1);
    let joined = rows.iter().zip(before).map(|(row, before)| {
        let (prompt, from) = (&row.answer.tokens[..row.n_prompt()], before.n_prompt());
        let Example { tokens, mask } = &before.answer;
        let mut joined = Example {
            tokens: [prompt, &tokens[from..]].concat(),
            mask: [&vec![false; prompt.len()], &mask[from..]].concat(),
        };
        joined.tokens.truncate(max_length);
        joined.mask.truncate(max_length);
        joined
    });
    joined.collect()
}

/// Sums over pairs or judged answers.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct PreferenceReport {
    pub loss_sum: f64,
    pub n_rows: u64,
    /// Pairs whose better answer has the higher reward; answers whose log-ratio is above KTO's `z` where they are good, below where they
    /// are bad.
    pub n_right: u64,
    pub reward_sums: PairLogprobs,
}

impl PreferenceReport {
    fn add(&mut self, outcome: &Outcome) {
        self.loss_sum += outcome.loss;
        self.n_rows += 1;
        self.n_right += u64::from(outcome.is_right);
        self.reward_sums.chosen += outcome.rewards.chosen;
        self.reward_sums.rejected += outcome.rewards.rejected;
    }
}

/// What one step by preference did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PreferenceStepReport {
    /// 1-based.
    pub step: u64,
    /// Before the update.
    pub rows: PreferenceReport,
    /// All tokens of the batch, those of a prompt for each of its answers.
    pub n_tokens: u64,
    /// Before clipping.
    pub grad_norm: f32,
    pub learning_rate: f32,
}

/// The rows of a step, and what the passes over them said so far.
struct Step<'a> {
    preference: Preference,
    rows: &'a Compared,
    /// Of each answer.
    references: &'a [f64],
    z: f64,
    scores: Vec<Scores>,
}

impl<'a> Step<'a> {
    fn new(
        config: &TrainConfig,
        rows: &'a Compared,
        references: &'a [f64],
    ) -> Result<Self, TrainError> {
        let bad = |what: &str| Err(TrainError::BadInput(what.to_owned()));
        let Some(preference) = config.preference else {
            return bad("the training has no preference");
        };
        match (rows, preference.loss) {
            (Compared::Pairs(_), PreferenceLoss::Kto) => return bad("KTO takes judged answers"),
            (Compared::Judged(_), loss) if loss != PreferenceLoss::Kto => {
                return bad("the loss takes pairs of answers");
            }
            _ => {}
        }
        let n_answers = rows.len() * rows.n_together();
        if preference.loss.has_reference() && references.len() != n_answers {
            return bad("each answer needs what the reference says of it");
        }
        Ok(Self {
            preference,
            rows,
            references,
            z: 0.0,
            scores: vec![Scores::default(); rows.len()],
        })
    }

    fn outcomes(&self) -> Vec<Outcome> {
        self.preference.outcomes(&self.scores, self.z)
    }

    /// Of all rows, once every pass was taken in.
    fn report(&self) -> PreferenceReport {
        let mut report = PreferenceReport::default();
        self.outcomes()
            .iter()
            .for_each(|outcome| report.add(outcome));
        report
    }

    /// Takes in a pass over whole rows whose labels have `logprobs`; the rows.
    fn take_in(&mut self, pass: &Batch, logprobs: &[f32]) -> Vec<usize> {
        let n_together = self.rows.n_together();
        let answers = answers(pass, logprobs);
        let passed = pass.members.chunks_exact(n_together);
        let passed = passed.zip(answers.chunks_exact(n_together));
        let (references, rows) = (self.references, self.rows);
        let has_reference = self.preference.loss.has_reference();
        let reference_of = |place: usize| {
            if has_reference {
                references[place]
            } else {
                0.0
            }
        };
        passed
            .map(|(places, answers)| {
                let row = places[0] / n_together;
                let scores = &mut self.scores[row];
                for (i, (&place, &(now, n_labels))) in places.iter().zip(answers).enumerate() {
                    let reference = reference_of(place);
                    let is_better = match rows {
                        Compared::Pairs(_) => i == 0,
                        Compared::Judged(rows) => rows[row].is_desirable,
                    };
                    if is_better {
                        (scores.now.chosen, scores.reference.chosen) = (now, reference);
                        scores.n_labels[0] = n_labels;
                    } else {
                        (scores.now.rejected, scores.reference.rejected) = (now, reference);
                        scores.n_labels[1] = n_labels;
                    }
                }
                row
            })
            .collect()
    }

    /// Takes in a pass; how much −log p of each label counts in the gradient of the mean loss. What sorts over the step has taken in all
    /// other passes before.
    fn weigh(&mut self, pass: &Batch, logprobs: &[f32]) -> Vec<f32> {
        let passed = self.take_in(pass, logprobs);
        let (outcomes, n_rows) = (self.outcomes(), self.rows.len());
        let factor = |slope: f64| (-slope / n_rows as f64) as f32;
        let factors = passed.into_iter().flat_map(|row| {
            let (slopes, [n_chosen, n_rejected]) =
                (outcomes[row].slopes, self.scores[row].n_labels);
            let chosen = std::iter::repeat_n(factor(slopes.chosen), n_chosen);
            chosen.chain(std::iter::repeat_n(factor(slopes.rejected), n_rejected))
        });
        factors.collect()
    }
}

impl Trainer {
    /// log p of each answer by the adapter that the run began with, in the run's precision; changes nothing.
    /// Errors: `BadInput`, `OutOfMemory`, `Gpu`.
    pub fn reference_logprobs(&mut self, rows: &Compared) -> Result<Vec<f64>, TrainError> {
        let examples = self.checked(rows)?;
        if !self.config.keeps_first() {
            let what = "the training compares with no reference";
            return Err(TrainError::BadInput(what.to_owned()));
        }
        let mut logprobs = vec![0.0; examples.len()];
        for pass in self.passes_together(&examples, rows.n_together()) {
            let losses = self.run.score_by_first(&pass)?;
            let answers = answers(&pass, &losses.logprobs);
            for (&place, (answer, _)) in pass.members.iter().zip(answers) {
                logprobs[place] = answer;
            }
        }
        Ok(logprobs)
    }

    /// One optimizer step by the mean of the configured loss, with what [`Self::reference_logprobs`] says of each answer (nothing, for a loss
    /// without a reference).
    /// Errors: as [`Self::step`].
    pub fn step_compared(
        &mut self,
        rows: &Compared,
        references: &[f64],
    ) -> Result<PreferenceStepReport, TrainError> {
        let (report, grad_norm) = self.leave_gradients_of_compared(rows, references)?;
        let loss = (report.loss_sum / report.n_rows as f64) as f32;
        let learning_rate = self.update(loss, grad_norm)?;
        Ok(PreferenceStepReport {
            step: self.n_steps,
            rows: report,
            n_tokens: n_tokens(rows.answers()),
            grad_norm,
            learning_rate,
        })
    }

    /// Scores rows as one step with the current adapter, as [`Self::step_compared`] does; changes nothing.
    /// Errors: `BadInput`, `OutOfMemory`, `Gpu`.
    pub fn evaluate_compared(
        &mut self,
        rows: &Compared,
        references: &[f64],
    ) -> Result<PreferenceReport, TrainError> {
        let examples = self.checked(rows)?;
        let mut step = self.step_over(rows, references)?;
        for pass in self.passes_together(&examples, rows.n_together()) {
            let losses = self.run.score(&pass)?;
            step.take_in(&pass, &losses.logprobs);
        }
        Ok(step.report())
    }

    /// As [`Self::gradients`], of the mean loss over rows.
    /// Errors: as [`Self::step_compared`].
    pub fn gradients_of_compared(
        &mut self,
        rows: &Compared,
        references: &[f64],
    ) -> Result<Vec<(String, Vec<f32>)>, TrainError> {
        self.leave_gradients_of_compared(rows, references)?;
        self.left_gradients()
    }

    fn leave_gradients_of_compared(
        &mut self,
        rows: &Compared,
        references: &[f64],
    ) -> Result<(PreferenceReport, f32), TrainError> {
        if rows.is_empty() {
            return Err(TrainError::BadInput("the batch has no row".to_owned()));
        }
        let examples = self.checked(rows)?;
        let mut step = self.step_over(rows, references)?;
        let mut passes = self.passes_together(&examples, rows.n_together());
        for pass in &mut passes {
            pass.dropout = self.dropout(pass);
        }
        if step.preference.loss.sorts() && passes.len() > 1 {
            for pass in &passes {
                let losses = self.run.score(pass)?;
                step.take_in(pass, &losses.logprobs);
            }
        }
        let mut weigh = |pass: &Batch, logprobs: &[f32]| step.weigh(pass, logprobs);
        let grad_norm = self.run.weighed_gradients(&passes, &mut weigh)?;
        Ok((step.report(), grad_norm))
    }

    /// A step with its `z`.
    fn step_over<'a>(
        &mut self,
        rows: &'a Compared,
        references: &'a [f64],
    ) -> Result<Step<'a>, TrainError> {
        let mut step = Step::new(&self.config, rows, references)?;
        if let Compared::Judged(rows) = rows {
            step.z = self
                .mean_log_ratio(rows, step.preference.max_length)?
                .max(0.0);
        }
        Ok(step)
    }

    /// The mean over mismatched answers of log p by the adapter beside log p by the one that the run began with; of a row alone 0.
    fn mean_log_ratio(
        &mut self,
        rows: &[Judged],
        max_length: Option<usize>,
    ) -> Result<f64, TrainError> {
        let context = self.run.model().max_position_embeddings;
        let examples = mismatched(rows, max_length.unwrap_or(context).min(context));
        let mut sum = 0.0;
        for pass in self.passes_together(&examples, 1) {
            let (now, first) = (self.run.score(&pass)?, self.run.score_by_first(&pass)?);
            let both = now.logprobs.iter().zip(&first.logprobs);
            sum += both
                .map(|(&now, &first)| f64::from(now) - f64::from(first))
                .sum::<f64>();
        }
        Ok(sum / rows.len().max(1) as f64)
    }

    /// The answers, each of which has a label.
    fn checked(&self, rows: &Compared) -> Result<Vec<Example>, TrainError> {
        let answers = rows.answers();
        if let Some(answer) = answers.iter().position(|answer| answer.n_labels() == 0) {
            let what = format!("{} has no label", rows.name_of(answer));
            return Err(TrainError::BadInput(what));
        }
        let examples: Vec<Example> = answers.into_iter().cloned().collect();
        self.check(&examples)?;
        Ok(examples)
    }
}

/// log p of each document of a pass, and its number of labels.
fn answers(pass: &Batch, logprobs: &[f32]) -> Vec<(f64, usize)> {
    let mut first = 0;
    let documents = pass.documents.iter();
    documents
        .map(|document| {
            let n = pass.label_rows[first..].partition_point(|&row| row < document.end);
            let own = &logprobs[first..first + n];
            first += n;
            (own.iter().map(|&x| f64::from(x)).sum(), n)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_added_up_by_document() {
        let pass = Batch {
            documents: vec![0..3, 3..5],
            label_rows: vec![1, 2, 4],
            ..Batch::default()
        };
        assert_eq!(answers(&pass, &[-1.0, -2.0, -4.0]), [(-3.0, 2), (-4.0, 1)]);
    }

    #[test]
    fn each_prompt_meets_the_answer_of_the_row_before_it() {
        let row = |prompt: &[u32], answer: &[u32]| Judged {
            answer: Example {
                tokens: [prompt, answer].concat(),
                mask: [vec![false; prompt.len()], vec![true; answer.len()]].concat(),
            },
            is_desirable: true,
        };
        let rows = [row(&[1, 2], &[3]), row(&[4], &[5, 6]), row(&[7], &[8])];
        let of = |max_length| -> Vec<(Vec<u32>, usize)> {
            let found = mismatched(&rows, max_length).into_iter();
            found.map(|e| (e.tokens.clone(), e.n_labels())).collect()
        };
        let whole = [(vec![1, 2, 8], 1), (vec![4, 3], 1), (vec![7, 5, 6], 2)];
        assert_eq!(of(9), whole);
        let cut = [(vec![1, 2], 0), (vec![4, 3], 1), (vec![7, 5], 1)];
        assert_eq!(of(2), cut);
        assert!(mismatched(&rows[..1], 9).is_empty());
    }
}
