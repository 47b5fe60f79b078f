//! Owns a training run: one call of `step` is one update of the adapter. It never reads a clock and never calls back.

use std::ops::Range;
use std::sync::Arc;

use crate::batch::Example;
use crate::buffer::OutOfMemory;
use crate::checkpoint;
use crate::lora::{Adapter, Layout, LoraConfig, PackedLora, names};
use crate::model::{Batch, Decoder, Keep, Trained};
use crate::nn::cross_entropy::RowLosses;
use crate::optim::{AdamW, clip_factor, global_norm};
use crate::pool::Pool;
use crate::schedule::Schedule;
use crate::weights::BaseModel;

/// Rows whose activations exist at once; a single longer example gets its own pass. Tokens.
const MICRO_BATCH_TOKENS: usize = 1024;

/// How to train.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainConfig {
    /// At its highest.
    pub learning_rate: f32,
    /// Where the schedule ends.
    pub total_steps: u64,
    pub warmup_steps: u64,
    pub schedule: Schedule,
    pub weight_decay: f32,
    pub betas: (f32, f32),
    pub eps: f32,
    /// The largest L2 norm of all gradients together; `None` leaves them as they are.
    pub max_grad_norm: Option<f32>,
    /// Recorded with the run's state; the trainer itself draws nothing.
    pub seed: u64,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            learning_rate: 1e-3,
            total_steps: 1,
            warmup_steps: 0,
            schedule: Schedule::Linear,
            weight_decay: 0.0,
            betas: (0.9, 0.999),
            eps: 1e-8,
            max_grad_norm: Some(1.0),
            seed: 0,
        }
    }
}

/// What one step did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// 1-based.
    pub step: u64,
    /// Mean of −log p over the labels, before the update.
    pub loss: f32,
    pub n_label_tokens: u64,
    /// Labels that had the largest logit.
    pub n_correct: u64,
    /// All tokens of the batch.
    pub n_tokens: u64,
    /// Before clipping.
    pub grad_norm: f32,
    pub learning_rate: f32,
}

/// Sums over a held-out set.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct EvalReport {
    /// Sum of −log p over the labels.
    pub loss_sum: f64,
    pub n_label_tokens: u64,
    pub n_correct: u64,
}

impl EvalReport {
    fn add(&mut self, losses: &RowLosses) {
        self.loss_sum -= losses.logprobs.iter().map(|&x| f64::from(x)).sum::<f64>();
        self.n_label_tokens += losses.logprobs.len() as u64;
        self.n_correct += losses.n_correct;
    }
}

/// Why a call did nothing. After any error the trainer is as it was.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    #[error("{0}")]
    BadInput(String),
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    /// A loss or gradient that is no number: a learning rate far too high, or damaged weights.
    #[error("step {step}: {what} is not finite")]
    NotFinite { step: u64, what: &'static str },
}

/// A run in progress.
pub struct Trainer {
    base: Arc<BaseModel>,
    pool: Pool,
    pub(crate) config: TrainConfig,
    pub(crate) lora_config: LoraConfig,
    pub(crate) layout: Arc<Layout>,
    packed: PackedLora,
    pub(crate) values: Vec<f32>,
    grads: Vec<f32>,
    /// First moments.
    pub(crate) exp_avg: Vec<f32>,
    /// Second moments.
    pub(crate) exp_avg_sq: Vec<f32>,
    pub(crate) n_steps: u64,
    decoder: Decoder,
}

impl Trainer {
    /// A run that begins with `adapter`, made for `base`'s shape.
    pub fn new(base: Arc<BaseModel>, adapter: Adapter, config: TrainConfig, pool: Pool) -> Self {
        let (layout, values) = (adapter.layout().clone(), adapter.values().to_vec());
        let zeros = || vec![0.0; values.len()];
        let mut trainer = Self {
            base,
            pool,
            config,
            lora_config: adapter.config().clone(),
            packed: PackedLora::new(&layout),
            grads: zeros(),
            exp_avg: zeros(),
            exp_avg_sq: zeros(),
            layout,
            values,
            n_steps: 0,
            decoder: Decoder::default(),
        };
        trainer.repack();
        trainer
    }

    /// One optimizer step over `batch`; the loss is the mean over its label tokens, however they are spread.
    /// Errors: `BadInput` for an example that cannot be run or a batch without labels; `OutOfMemory`; `NotFinite`.
    pub fn step(&mut self, batch: &[Example]) -> Result<StepReport, TrainError> {
        let EvalReport {
            loss_sum,
            n_label_tokens,
            n_correct,
        } = self.sum_gradients(batch)?;
        let step = self.n_steps + 1;
        let loss = (loss_sum / n_label_tokens as f64) as f32;
        let grad_norm = global_norm(&self.grads);
        for (value, what) in [(loss, "the loss"), (grad_norm, "the gradient")] {
            if !value.is_finite() {
                return Err(TrainError::NotFinite { step, what });
            }
        }
        let learning_rate = self.update(grad_norm);
        let n_tokens = batch
            .iter()
            .map(|example| example.tokens.len() as u64)
            .sum();
        Ok(StepReport {
            step,
            loss,
            n_label_tokens,
            n_correct,
            n_tokens,
            grad_norm,
            learning_rate,
        })
    }

    /// Scores examples with the current adapter; changes nothing.
    /// Errors: `BadInput`, `OutOfMemory`.
    pub fn evaluate(&mut self, examples: &[Example]) -> Result<EvalReport, TrainError> {
        self.check(examples)?;
        let mut report = EvalReport::default();
        for micro in micro_batches(examples) {
            report.add(&self.score(&micro)?);
        }
        Ok(report)
    }

    /// log p of each label of one example, in order, natural; changes nothing.
    /// Errors: `BadInput`, `OutOfMemory`.
    pub fn label_logprobs(&mut self, example: &Example) -> Result<Vec<f32>, TrainError> {
        self.check(std::slice::from_ref(example))?;
        match micro_batches(std::slice::from_ref(example)).first() {
            Some(micro) => Ok(self.score(micro)?.logprobs),
            None => Ok(Vec::new()),
        }
    }

    /// The gradient of the mean loss over the labels of `batch`, by PEFT's tensor names; changes nothing. For proofs
    /// against a reference.
    /// Errors: as [`Self::step`].
    pub fn gradients(&mut self, batch: &[Example]) -> Result<Vec<(String, Vec<f32>)>, TrainError> {
        self.sum_gradients(batch)?;
        let tensor = |name: String, range: Range<usize>| (name, self.grads[range].to_vec());
        let slots = self.layout.slots().iter();
        Ok(slots
            .flat_map(|slot| {
                let [a, b] = names(slot);
                [tensor(a, slot.a.clone()), tensor(b, slot.b.clone())]
            })
            .collect())
    }

    /// The logits after each token, (T, V) row-major; changes nothing. For proofs against a reference.
    /// Errors: `BadInput`, `OutOfMemory`.
    pub fn logits(&mut self, tokens: &[u32]) -> Result<Vec<f32>, TrainError> {
        let (tokens, mask) = (tokens.to_vec(), vec![false; tokens.len()]);
        self.check(&[Example {
            tokens: tokens.clone(),
            mask,
        }])?;
        let rows: Vec<usize> = (0..tokens.len()).collect();
        let documents = std::iter::once(0..tokens.len()).collect();
        let batch = Batch {
            tokens,
            documents,
            ..Batch::default()
        };
        self.run(&batch)?;
        Ok(self
            .decoder
            .logits_mut(&self.pool, &self.base, &rows)?
            .to_vec())
    }

    /// Steps done so far.
    pub fn step_count(&self) -> u64 {
        self.n_steps
    }

    /// A copy of the adapter as it is now.
    pub fn adapter(&self) -> Adapter {
        Adapter::from_parts(
            self.lora_config.clone(),
            self.layout.clone(),
            self.values.clone(),
        )
    }

    /// Everything a resumed run needs, as one safetensors file: values, moments and the step.
    pub fn save_state(&self) -> Vec<u8> {
        checkpoint::save(self)
    }

    /// Continues from a state that a trainer of the same configuration has saved, bit for bit.
    /// Errors: `BadInput` for another format, configuration or arithmetic; the trainer is then as it was.
    pub fn load_state(&mut self, bytes: &[u8]) -> Result<(), TrainError> {
        checkpoint::load(self, bytes)?;
        self.repack();
        Ok(())
    }

    /// The base model.
    pub(crate) fn base(&self) -> &BaseModel {
        &self.base
    }

    fn accumulate(&mut self, batch: &Batch, scale: f32) -> Result<RowLosses, OutOfMemory> {
        let (pool, base) = (&self.pool, &*self.base);
        let loras: [(Range<usize>, &PackedLora); 1] = [(0..batch.tokens.len(), &self.packed)];
        self.decoder.forward(pool, base, &loras, batch, Keep::All)?;
        let mut trained = Trained {
            layout: &self.layout,
            packed: &self.packed,
            values: &self.values,
            grads: &mut self.grads,
        };
        self.decoder
            .backward(pool, base, batch, scale, &mut trained)
    }

    /// Scores `batch` and leaves the gradient of its mean loss in `grads`.
    fn sum_gradients(&mut self, batch: &[Example]) -> Result<EvalReport, TrainError> {
        self.check(batch)?;
        let n_label_tokens: u64 = batch.iter().map(|example| example.n_labels() as u64).sum();
        if n_label_tokens == 0 {
            return Err(TrainError::BadInput("the batch has no label".to_owned()));
        }
        self.grads.fill(0.0);
        let mut report = EvalReport::default();
        for micro in micro_batches(batch) {
            report.add(&self.accumulate(&micro, 1.0 / n_label_tokens as f32)?);
        }
        Ok(report)
    }

    fn score(&mut self, batch: &Batch) -> Result<RowLosses, OutOfMemory> {
        self.run(batch)?;
        let (rows, labels) = (&batch.label_rows, &batch.labels);
        self.decoder
            .losses_of(&self.pool, &self.base, rows, labels, Keep::Nothing)
    }

    fn run(&mut self, batch: &Batch) -> Result<(), OutOfMemory> {
        let loras: [(Range<usize>, &PackedLora); 1] = [(0..batch.tokens.len(), &self.packed)];
        self.decoder
            .forward(&self.pool, &self.base, &loras, batch, Keep::Nothing)
    }

    fn update(&mut self, grad_norm: f32) -> f32 {
        let TrainConfig {
            betas,
            eps,
            weight_decay,
            ..
        } = self.config;
        let factor = self.config.schedule.factor(
            self.n_steps,
            self.config.warmup_steps,
            self.config.total_steps,
        );
        let learning_rate = (f64::from(self.config.learning_rate) * factor) as f32;
        self.n_steps += 1;
        AdamW {
            betas,
            eps,
            weight_decay,
        }
        .update(
            &self.pool,
            learning_rate,
            self.n_steps,
            clip_factor(grad_norm, self.config.max_grad_norm),
            &self.grads,
            &mut self.values,
            &mut self.exp_avg,
            &mut self.exp_avg_sq,
        );
        self.repack();
        learning_rate
    }

    fn repack(&mut self) {
        // The sizes never change after the first time, in `new`, so a running job cannot fail here.
        self.packed
            .pack_for_training(&self.pool, &self.values)
            .expect("memory for a second copy of an adapter");
    }

    fn check(&self, examples: &[Example]) -> Result<(), TrainError> {
        let config = self.base.config();
        for (i, Example { tokens, mask }) in examples.iter().enumerate() {
            let bad = |what: String| Err(TrainError::BadInput(format!("example {i}: {what}")));
            if tokens.len() != mask.len() {
                return bad(format!(
                    "{} tokens but a mask of {}",
                    tokens.len(),
                    mask.len()
                ));
            }
            if tokens.len() > config.max_position_embeddings {
                return bad(format!(
                    "{} tokens exceed the context of {}",
                    tokens.len(),
                    config.max_position_embeddings
                ));
            }
            if let Some(token) = tokens
                .iter()
                .find(|&&token| token as usize >= config.vocab_size)
            {
                return bad(format!(
                    "token {token} is not in the vocabulary of {}",
                    config.vocab_size
                ));
            }
        }
        Ok(())
    }
}

/// Examples in their order, as few passes as [`MICRO_BATCH_TOKENS`] allows; what stands after the last label is left out,
/// as it can change no loss.
fn micro_batches(examples: &[Example]) -> Vec<Batch> {
    let mut batches: Vec<Batch> = Vec::new();
    for example in examples.iter().filter(|example| example.n_inputs() > 0) {
        let n = example.n_inputs();
        if batches
            .last()
            .is_none_or(|batch| batch.tokens.len() + n > MICRO_BATCH_TOKENS)
        {
            batches.push(Batch::default());
        }
        let batch = batches
            .last_mut()
            .expect("one was pushed just now, if there was none");
        let first = batch.tokens.len();
        batch.tokens.extend(&example.tokens[..n]);
        batch.documents.push(first..first + n);
        for i in (1..=n).filter(|&i| example.mask[i]) {
            batch.label_rows.push(first + i - 1);
            batch.labels.push(example.tokens[i]);
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn micro_batches_keep_order_restart_documents_and_drop_what_follows_the_last_label() {
        let example = |len: usize, labels: &[usize]| Example {
            tokens: (0..len as u32).collect(),
            mask: (0..len).map(|i| labels.contains(&i)).collect(),
        };
        let batches = micro_batches(&[
            example(600, &[599]),
            example(5, &[0]),
            example(400, &[2, 300]),
            example(800, &[500]),
        ]);
        assert_eq!(batches.len(), 2);
        assert_eq!(batches[0].documents, [0..599, 599..899]);
        assert_eq!(batches[0].label_rows, [598, 600, 898]);
        assert_eq!(batches[0].labels, [599, 2, 300]);
        assert_eq!(
            (batches[1].documents[0].clone(), batches[1].labels.clone()),
            (0..500, vec![500])
        );
    }
}
