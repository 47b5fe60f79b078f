//! The rows of an attempt: fetched, parsed by the parser that validated them, tokenised and fitted as validation did
//! it, and laid out in steps. A step's batch is a function of (data, seed, step) alone.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use domain::hyperparameters::ResolvedHyperparameters;
use domain::message::DatasetRef;
use domain::x_training::Data;
use engine::batch::{Example, epoch_order};
use engine::train::{Compared, Judged, Pair};
use text::chat_model::{RenderError, TokenizedExample, TokenizedPair};
use text::dataset::DatasetReader;
use text::formats::{Expected, NumberedExample, RowFormat, TrainingExample, UnpairedExample};

use super::failure::Failure;
use super::rows::Rows;
use crate::base_models::Base;
use crate::worker::Worker;

/// Rows whose loss is measured at every epoch's end; beyond, only a fixed sample of this size.
pub(super) const VALID_SAMPLE: usize = 64;

/// Fetches and tokenises a dataset of rows as `expected`. `param` names it in errors: `training_file` or `validation_file`.
/// Errors: `User` for rows that cannot be read, `Infra` for all else.
pub(super) async fn load(
    worker: &Worker,
    base: &Arc<Base>,
    dataset: &DatasetRef,
    expected: Expected,
    data: &Data,
    param: &'static str,
) -> Result<Rows, Failure> {
    let file = Scratch(
        worker
            .work_dir
            .join(format!("{param}-{:016x}", rand::random::<u64>())),
    );
    worker
        .objects
        .fetch_file(&dataset.object_key, &file.0, Some(&dataset.sha256))
        .await?;
    let (base, data) = (Arc::clone(base), data.clone());
    let read = move || read(&base, &file.0, expected, &data, param);
    let read = platform::on_own_thread("dataset", read).await;
    read.map_err(|error| Failure::infra(format!("no thread to read a dataset: {error}")))?
}

/// A file that goes when its reader does.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // A file that was never made needs no removing.
        let _ = std::fs::remove_file(&self.0);
    }
}

fn read(
    base: &Base,
    file: &Path,
    expected: Expected,
    data: &Data,
    param: &'static str,
) -> Result<Rows, Failure> {
    let opened =
        File::open(file).map_err(|error| Failure::infra(format!("{}: {error}", file.display())))?;
    let (mut examples, mut pairs, mut judged) = (Vec::new(), Vec::new(), Vec::new());
    for row in DatasetReader::new(BufReader::new(opened), expected) {
        let row = row.map_err(|error| Failure::infra(format!("{param}: {error}")))?;
        let NumberedExample { line, example, .. } =
            row.map_err(|error| Failure::bad_data(param, error.to_string()))?;
        let at_line =
            |error: RenderError| Failure::bad_data(param, format!("line {line}: {error}"));
        if let TrainingExample::Preference(pair) = &example {
            let fitted = base.chat.fit_pair(pair, data).map_err(at_line)?;
            pairs.extend(fitted.into_pair().map(to_train_on));
        } else {
            let fitted = base.chat.fit(&example, data).map_err(at_line)?;
            let fitted = fitted.into_examples().into_iter().map(labelled);
            match example {
                TrainingExample::Unpaired(UnpairedExample { label, .. }) => {
                    judged.extend(fitted.map(|answer| Judged {
                        answer,
                        is_desirable: label,
                    }));
                }
                _ => examples.extend(fitted),
            }
        }
    }
    let rows = match expected.format {
        RowFormat::Preference => Rows::Compared(Compared::Pairs(pairs).into()),
        RowFormat::UnpairedPreference => Rows::Compared(Compared::Judged(judged).into()),
        _ => Rows::Conversations(examples),
    };
    match rows.len() {
        0 => {
            let reason = "the file has no examples".to_owned();
            Err(Failure::bad_data(param, reason))
        }
        _ => Ok(rows),
    }
}

fn labelled(TokenizedExample { tokens, mask }: TokenizedExample) -> Example {
    Example { tokens, mask }
}

fn to_train_on(pair: TokenizedPair) -> Pair {
    Pair {
        chosen: labelled(pair.preferred),
        rejected: labelled(pair.non_preferred),
    }
}

/// Which examples each step trains on.
pub(super) struct Plan {
    seed: u64,
    n_examples: usize,
    pub batch_size: usize,
    pub steps_per_epoch: u64,
    pub total_steps: u64,
    /// The epoch (0-based) whose order is at hand, and that order.
    order: (u32, Vec<u32>),
}

impl Plan {
    /// Errors: `Infra` where the scheduler counted other steps than we do: validated with other data or code.
    pub(super) fn new(
        n_examples: usize,
        hyperparameters: &ResolvedHyperparameters,
        seed: u32,
        total_steps: u64,
    ) -> Result<Self, Failure> {
        let batch_size = hyperparameters.batch_size.max(1) as usize;
        let steps_per_epoch = n_examples.div_ceil(batch_size) as u64;
        let counted = steps_per_epoch * u64::from(hyperparameters.n_epochs);
        if counted != total_steps {
            return Err(Failure::infra(format!(
                "{n_examples} examples make {counted} steps, the job was validated for {total_steps}"
            )));
        }
        let seed = seed.into();
        let order = (0, epoch_order(seed, 0, n_examples));
        Ok(Self {
            seed,
            n_examples,
            batch_size,
            steps_per_epoch,
            total_steps,
            order,
        })
    }

    /// The examples of step `step` (1-based), by their place in the dataset.
    pub(super) fn batch(&mut self, step: u64) -> Vec<usize> {
        let epoch = (step - 1) / self.steps_per_epoch;
        let within = ((step - 1) % self.steps_per_epoch) as usize;
        let epoch = u32::try_from(epoch).expect("at most 50 epochs — a bug in the scheduler");
        if self.order.0 != epoch {
            self.order = (epoch, epoch_order(self.seed, epoch, self.n_examples));
        }
        let start = within * self.batch_size;
        let end = (start + self.batch_size).min(self.n_examples);
        self.order.1[start..end]
            .iter()
            .map(|place| *place as usize)
            .collect()
    }

    /// The epoch (1-based) that `step` ends.
    pub(super) fn epoch_ended_by(&self, step: u64) -> Option<u32> {
        let ends = step > 0 && step.is_multiple_of(self.steps_per_epoch);
        ends.then(|| {
            u32::try_from(step / self.steps_per_epoch)
                .expect("at most 50 epochs — a bug in the scheduler")
        })
    }
}

/// The fixed sample of the validation rows: the same at every epoch's end, whatever worker computes it.
pub(super) fn valid_sample(n_examples: usize, seed: u32) -> Vec<usize> {
    let mut order: Vec<usize> = epoch_order(seed.into(), u32::MAX, n_examples)
        .into_iter()
        .map(|place| place as usize)
        .collect();
    order.truncate(VALID_SAMPLE);
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hyperparameters(n_epochs: u32, batch_size: u32) -> ResolvedHyperparameters {
        ResolvedHyperparameters {
            n_epochs,
            batch_size,
            learning_rate_multiplier: 1.0,
            learning_rate: 1e-3,
        }
    }

    #[test]
    fn every_epoch_visits_every_example_once_and_the_last_batch_may_be_short() {
        let mut plan = Plan::new(10, &hyperparameters(2, 4), 7, 6).unwrap();
        for epoch in 0..2 {
            let batches: Vec<_> = (1..=3).map(|step| plan.batch(epoch * 3 + step)).collect();
            assert_eq!(batches.iter().map(Vec::len).collect::<Vec<_>>(), [4, 4, 2]);
            let mut seen: Vec<usize> = batches.concat();
            seen.sort_unstable();
            assert_eq!(seen, (0..10).collect::<Vec<_>>());
        }
        assert_ne!(
            plan.batch(1),
            plan.batch(4),
            "each epoch has an order of its own"
        );
        assert_eq!(
            (2..=6)
                .map(|step| plan.epoch_ended_by(step))
                .collect::<Vec<_>>(),
            [None, Some(1), None, None, Some(2)]
        );
    }

    #[test]
    fn another_count_of_steps_than_the_schedulers_is_refused() {
        assert!(Plan::new(10, &hyperparameters(2, 4), 7, 5).is_err());
    }
}
