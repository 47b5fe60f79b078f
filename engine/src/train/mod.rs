//! Owns a training run: one call of `step` is one update of the adapter. It never reads a clock and never calls back.

mod micro_batches;
mod passes;
mod plan;

use std::ops::Range;
use std::sync::Arc;

use crate::batch::Example;
use crate::checkpoint;
use crate::cpu::buffer::OutOfMemory;
use crate::cpu::element::Precision;
use crate::cpu::pool::Pool;
use crate::lora::{Adapter, Kind, Layout, LoraConfig, Role};
use crate::model::{Batch, MemoryLevel};
use crate::nn::cross_entropy::RowLosses;
use crate::nn::dropout::Dropout;
use crate::optim::{AdamW, Group, clip_factor, global_norm};
use crate::schedule::Schedule;
use crate::weights::BaseModel;
pub use micro_batches::Packing;
use micro_batches::micro_batches;
use passes::{On, Passes};
pub use plan::{RunShape, TooLarge, plan_memory, training_bytes};

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
    /// LoRA+: how many times faster B learns than A; `None` is as fast. Source: Hayou et al. 2024 (arXiv:2402.12354).
    pub loraplus_lr_ratio: Option<f32>,
    /// Recorded with the run's state; only dropout draws from it.
    pub seed: u64,
    /// What activations are computed in; values, gradients and moments of the adapter are always f32.
    pub precision: Precision,
    /// What is kept between forward and backward; every level computes the same bits.
    pub memory: MemoryLevel,
    pub packing: Packing,
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
            loraplus_lr_ratio: None,
            seed: 0,
            precision: Precision::Fp32,
            memory: MemoryLevel::KeepAll,
            packing: Packing::BinPack,
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
    passes: Passes,
    /// The same in f32, made when a caller asks for scores that serving can be held to.
    exact: Option<Passes>,
    groups: Vec<Group>,
    pub(crate) values: Vec<f32>,
    grads: Vec<f32>,
    /// First moments.
    pub(crate) exp_avg: Vec<f32>,
    /// Second moments.
    pub(crate) exp_avg_sq: Vec<f32>,
    pub(crate) n_steps: u64,
}

impl Trainer {
    /// A run that begins with `adapter`, made for `base`'s shape.
    pub fn new(base: Arc<BaseModel>, adapter: Adapter, config: TrainConfig, pool: Pool) -> Self {
        let (layout, values) = (adapter.layout().clone(), adapter.values().to_vec());
        let zeros = || vec![0.0; values.len()];
        let mut trainer = Self {
            base,
            pool,
            passes: Passes::new(config.precision, &layout),
            exact: None,
            groups: groups(&layout, &config),
            config,
            lora_config: adapter.config().clone(),
            grads: zeros(),
            exp_avg: zeros(),
            exp_avg_sq: zeros(),
            layout,
            values,
            n_steps: 0,
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
        for micro in micro_batches(examples, self.config.packing) {
            let on = On {
                pool: &self.pool,
                base: &self.base,
            };
            report.add(&self.passes.score(on, &micro)?);
        }
        Ok(report)
    }

    /// log p of each label of one example, in order, natural, computed in f32 whatever the run's precision; changes nothing.
    /// Errors: `BadInput`, `OutOfMemory`.
    pub fn label_logprobs(&mut self, example: &Example) -> Result<Vec<f32>, TrainError> {
        let example = std::slice::from_ref(example);
        self.check(example)?;
        let passes = match (&mut self.passes, &mut self.exact) {
            (passes @ Passes::Fp32(_), _) => passes,
            (_, exact) => {
                let exact = exact.get_or_insert_with(|| Passes::new(Precision::Fp32, &self.layout));
                let on = On {
                    pool: &self.pool,
                    base: &self.base,
                };
                exact.pack(on, &self.values)?;
                exact
            }
        };
        let on = On {
            pool: &self.pool,
            base: &self.base,
        };
        match micro_batches(example, Packing::None).first() {
            Some(micro) => Ok(passes.score(on, micro)?.logprobs),
            None => Ok(Vec::new()),
        }
    }

    /// The gradient of the mean loss over the labels of `batch`, by PEFT's tensor names; changes nothing. For proofs
    /// against a reference.
    /// Errors: as [`Self::step`].
    pub fn gradients(&mut self, batch: &[Example]) -> Result<Vec<(String, Vec<f32>)>, TrainError> {
        self.sum_gradients(batch)?;
        let trained = self.layout.trained();
        let gradient = |place: &Range<usize>| self.grads[place.clone()].to_vec();
        Ok(trained
            .map(|tensor| (tensor.name.clone(), gradient(&tensor.place)))
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
        let batch = Batch {
            documents: std::iter::once(0..tokens.len()).collect(),
            lengths: vec![tokens.len()],
            tokens,
            ..Batch::default()
        };
        let on = On {
            pool: &self.pool,
            base: &self.base,
        };
        Ok(self.passes.logits(on, &batch)?)
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

    /// Scores `batch` and leaves the gradient of its mean loss in `grads`.
    fn sum_gradients(&mut self, batch: &[Example]) -> Result<EvalReport, TrainError> {
        self.check(batch)?;
        let n_label_tokens: u64 = batch.iter().map(|example| example.n_labels() as u64).sum();
        if n_label_tokens == 0 {
            return Err(TrainError::BadInput("the batch has no label".to_owned()));
        }
        self.grads.fill(0.0);
        let mut report = EvalReport::default();
        let scale = 1.0 / n_label_tokens as f32;
        for mut micro in micro_batches(batch, self.config.packing) {
            let on = On {
                pool: &self.pool,
                base: &self.base,
            };
            micro.dropout = self.dropout(&micro);
            let (layout, level, grads) = (&self.layout, self.config.memory, &mut self.grads);
            report.add(
                &self
                    .passes
                    .accumulate(on, layout, level, &micro, scale, grads)?,
            );
        }
        // The kernels know nothing of roles: what is not trained gets a gradient as well.
        for tensor in self
            .layout
            .tensors()
            .iter()
            .filter(|t| t.role == Role::Initial)
        {
            self.grads[tensor.place.clone()].fill(0.0);
        }
        Ok(report)
    }

    /// What the next step drops of a pass's inputs.
    fn dropout(&self, batch: &Batch) -> Option<Dropout> {
        let (p, seed) = (self.lora_config.lora_dropout, self.config.seed);
        let (documents, members) = (&batch.documents, &batch.members);
        (p > 0.0).then(|| Dropout::new(p, seed, self.n_steps, documents, members))
    }

    fn update(&mut self, grad_norm: f32) -> f32 {
        let TrainConfig { betas, eps, .. } = self.config;
        let factor = self.config.schedule.factor(
            self.n_steps,
            self.config.warmup_steps,
            self.config.total_steps,
        );
        let learning_rate = (f64::from(self.config.learning_rate) * factor) as f32;
        self.n_steps += 1;
        AdamW { betas, eps }.update(
            &self.pool,
            &self.groups,
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
        let on = On {
            pool: &self.pool,
            base: &self.base,
        };
        self.passes
            .pack(on, &self.values)
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

/// What is trained, in pieces as long as can be. With LoRA+, all vectors learn as B does, as PEFT has it; biases do not decay.
fn groups(layout: &Layout, config: &TrainConfig) -> Vec<Group> {
    let mut trained: Vec<_> = layout.trained().collect();
    trained.sort_by_key(|tensor| tensor.place.start);
    let mut groups: Vec<Group> = Vec::new();
    for tensor in trained {
        let group = Group {
            range: tensor.place.clone(),
            lr_ratio: match tensor.kind {
                Kind::A | Kind::Saved => 1.0,
                Kind::B | Kind::Magnitude | Kind::Bias => config.loraplus_lr_ratio.unwrap_or(1.0),
            },
            weight_decay: match tensor.kind {
                Kind::Bias => 0.0,
                _ => config.weight_decay,
            },
        };
        match groups.last_mut() {
            Some(last) if last.continues_in(&group) => last.range.end = group.range.end,
            _ => groups.push(group),
        }
    }
    groups
}
