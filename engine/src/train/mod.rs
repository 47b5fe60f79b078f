//! Owns a training run: one call of `step` is one update of the adapter. It never reads a clock and never calls back.

mod compared;
mod cpu;
mod micro_batches;
mod passes;
mod plan;
mod preference;
mod run;

use std::ops::Range;
use std::sync::Arc;

use crate::batch::Example;
use crate::checkpoint;
use crate::cpu::buffer::OutOfMemory;
use crate::cpu::element::Precision;
use crate::cpu::pool::Pool;
use crate::cuda::{self, CudaError};
use crate::lora::{Adapter, Kind, Layout, LoraConfig};
use crate::model::{Batch, MemoryLevel};
use crate::nn::cross_entropy::RowLosses;
use crate::nn::dropout::Dropout;
use crate::optim::Group;
use crate::schedule::Schedule;
use crate::weights::BaseModel;
pub use compared::{Compared, Judged, Pair, PreferenceReport, PreferenceStepReport};
use cpu::CpuRun;
pub use micro_batches::Packing;
use micro_batches::micro_batches;
pub use plan::{RunShape, TooLarge, TrainingBytes, plan_memory, training_bytes};
pub use preference::{Outcome, PairLogprobs, Preference, PreferenceLoss, Scores};
pub(crate) use run::{Run, State, Update, Weigh};

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
    /// The most tokens that share a pass, a longer example excepted; `None` is what suits the processor. It decides speed and memory,
    /// and the order of sums.
    pub pass_tokens: Option<usize>,
    /// What a training by preference minimises; `None` learns the labels.
    pub preference: Option<Preference>,
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
            pass_tokens: None,
            preference: None,
        }
    }
}

impl TrainConfig {
    /// Whether a run keeps the adapter that it begins with, to compare with.
    pub fn keeps_first(&self) -> bool {
        let preference = self.preference;
        preference.is_some_and(|preference| preference.loss.has_reference())
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
    /// A state that goes on only where the same arithmetic is computed: on such a processor, in that precision.
    #[error("the saved state has arithmetic {found:?}, not {expected:?}")]
    OtherArithmetic { found: String, expected: String },
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    #[error(transparent)]
    Gpu(#[from] CudaError),
    /// A loss or gradient that is no number: a learning rate far too high, or damaged weights.
    #[error("step {step}: {what} is not finite")]
    NotFinite { step: u64, what: &'static str },
}

/// A run in progress.
pub struct Trainer {
    pub(crate) config: TrainConfig,
    pub(crate) lora_config: LoraConfig,
    pub(crate) layout: Arc<Layout>,
    pub(crate) run: Box<dyn Run>,
    pub(crate) n_steps: u64,
}

impl Trainer {
    /// A run on the CPU that begins with `adapter`, made for `base`'s shape.
    pub fn new(base: Arc<BaseModel>, adapter: Adapter, config: TrainConfig, pool: Pool) -> Self {
        let (layout, values) = (adapter.layout().clone(), adapter.values().to_vec());
        let groups = groups(&layout, &config);
        let run = CpuRun::new(base, Arc::clone(&layout), values, groups, &config, pool);
        Self::with(Box::new(run), &adapter, config)
    }

    /// The same in bf16 on the GPU that has `base`, on the stream of `gpu`; one at a time, as its change lies in the base's room. `memory` takes the
    /// place of `config.memory`.
    /// Errors: `Gpu`, with what of the adapter or of the configuration cannot be computed there.
    pub fn on_gpu(
        gpu: &cuda::Gpu,
        base: Arc<cuda::Base>,
        adapter: Adapter,
        config: TrainConfig,
        memory: cuda::MemoryPlan,
    ) -> Result<Self, TrainError> {
        let groups = groups(adapter.layout(), &config);
        let run = cuda::Run::new(gpu, base, &adapter, &groups, &config, memory)?;
        Ok(Self::with(Box::new(run), &adapter, config))
    }

    fn with(run: Box<dyn Run>, adapter: &Adapter, config: TrainConfig) -> Self {
        Self {
            config,
            lora_config: adapter.config().clone(),
            layout: Arc::clone(adapter.layout()),
            run,
            n_steps: 0,
        }
    }

    /// One optimizer step over `batch`; the loss is the mean over its label tokens, however they are spread.
    /// Errors: `BadInput` for an example that cannot be run or a batch without labels; `OutOfMemory`; `NotFinite`.
    pub fn step(&mut self, batch: &[Example]) -> Result<StepReport, TrainError> {
        let (report, grad_norm) = self.leave_gradients(batch)?;
        let EvalReport {
            loss_sum,
            n_label_tokens,
            n_correct,
        } = report;
        let step = self.n_steps + 1;
        let loss = (loss_sum / n_label_tokens as f64) as f32;
        let learning_rate = self.update(loss, grad_norm)?;
        Ok(StepReport {
            step,
            loss,
            n_label_tokens,
            n_correct,
            n_tokens: n_tokens(batch),
            grad_norm,
            learning_rate,
        })
    }

    /// Scores examples with the current adapter; changes nothing.
    /// Errors: `BadInput`, `OutOfMemory`.
    pub fn evaluate(&mut self, examples: &[Example]) -> Result<EvalReport, TrainError> {
        self.check(examples)?;
        let mut report = EvalReport::default();
        for pass in self.passes_of(examples) {
            report.add(&self.run.score(&pass)?);
        }
        Ok(report)
    }

    /// log p of each label of one example, in order, natural, as exactly as the processor can whatever the run's precision; changes
    /// nothing.
    /// Errors: `BadInput`, `OutOfMemory`, `Gpu`.
    pub fn label_logprobs(&mut self, example: &Example) -> Result<Vec<f32>, TrainError> {
        let example = std::slice::from_ref(example);
        self.check(example)?;
        match self.passes_of(example).first() {
            Some(pass) => Ok(self.run.score_exactly(pass)?.logprobs),
            None => Ok(Vec::new()),
        }
    }

    /// The gradient of the mean loss over the labels of `batch`, by PEFT's tensor names; changes nothing. For proofs
    /// against a reference.
    /// Errors: as [`Self::step`].
    pub fn gradients(&mut self, batch: &[Example]) -> Result<Vec<(String, Vec<f32>)>, TrainError> {
        self.leave_gradients(batch)?;
        self.left_gradients()
    }

    fn left_gradients(&self) -> Result<Vec<(String, Vec<f32>)>, TrainError> {
        let grads = self.run.gradient_values()?;
        let trained = self.layout.trained();
        let gradient = |place: &Range<usize>| grads[place.clone()].to_vec();
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
        self.run.logits(&batch)
    }

    /// What the run holds of a GPU's memory at this moment, beside the base's weights. Bytes; 0 on the CPU.
    pub fn gpu_bytes(&self) -> u64 {
        self.run.gpu_bytes()
    }

    /// Steps done so far.
    pub fn step_count(&self) -> u64 {
        self.n_steps
    }

    /// A copy of the adapter as it is now.
    /// Errors: `Gpu`.
    pub fn adapter(&self) -> Result<Adapter, TrainError> {
        let values = self.run.values()?.into_owned();
        let (config, layout) = (self.lora_config.clone(), Arc::clone(&self.layout));
        Ok(Adapter::from_parts(config, layout, values))
    }

    /// Everything a resumed run needs, as one safetensors file: values, moments and the step.
    /// Errors: `Gpu`.
    pub fn save_state(&self) -> Result<Vec<u8>, TrainError> {
        checkpoint::save(self)
    }

    /// Continues from a state that a trainer of the same configuration has saved, bit for bit.
    /// Errors: `BadInput` for another format or configuration, `OtherArithmetic`; the trainer is then as it was. `Gpu`.
    pub fn load_state(&mut self, bytes: &[u8]) -> Result<(), TrainError> {
        checkpoint::load(self, bytes)
    }

    /// The passes over examples; what stands after the last label of one is left out.
    fn passes_of(&self, examples: &[Example]) -> Vec<Batch> {
        self.passes_together(examples, 1)
    }

    /// The same, with each `n_together` examples in one pass.
    fn passes_together(&self, examples: &[Example], n_together: usize) -> Vec<Batch> {
        let own = self.run.rows_per_pass();
        let pass_tokens = self.config.pass_tokens.unwrap_or(own);
        micro_batches(examples, n_together, self.config.packing, pass_tokens)
    }

    /// Scores `batch` and leaves the gradient of its mean loss, whose L2 norm stands beside the scores.
    fn leave_gradients(&mut self, batch: &[Example]) -> Result<(EvalReport, f32), TrainError> {
        self.check(batch)?;
        let n_label_tokens: u64 = batch.iter().map(|example| example.n_labels() as u64).sum();
        if n_label_tokens == 0 {
            return Err(TrainError::BadInput("the batch has no label".to_owned()));
        }
        let mut passes = self.passes_of(batch);
        for pass in &mut passes {
            pass.dropout = self.dropout(pass);
        }
        self.run.gradients(&passes, 1.0 / n_label_tokens as f32)
    }

    /// What the next step drops of a pass's inputs.
    fn dropout(&self, batch: &Batch) -> Option<Dropout> {
        let (p, seed) = (self.lora_config.lora_dropout, self.config.seed);
        let (documents, members) = (&batch.documents, &batch.members);
        (p > 0.0).then(|| Dropout::new(p, seed, self.n_steps, documents, members))
    }

    /// Returns the learning rate.
    /// Errors: `NotFinite`, `Gpu`.
    fn update(&mut self, loss: f32, grad_norm: f32) -> Result<f32, TrainError> {
        let step = self.n_steps + 1;
        for (value, what) in [(loss, "the loss"), (grad_norm, "the gradient")] {
            if !value.is_finite() {
                return Err(TrainError::NotFinite { step, what });
            }
        }
        let TrainConfig {
            schedule,
            warmup_steps,
            total_steps,
            ..
        } = self.config;
        let factor = schedule.factor(self.n_steps, warmup_steps, total_steps);
        let learning_rate = (f64::from(self.config.learning_rate) * factor) as f32;
        self.run.update(Update {
            learning_rate,
            step,
            grad_norm,
        })?;
        self.n_steps += 1;
        Ok(learning_rate)
    }

    fn check(&self, examples: &[Example]) -> Result<(), TrainError> {
        let config = self.run.model();
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

fn n_tokens<'a>(examples: impl IntoIterator<Item = &'a Example>) -> u64 {
    let lengths = examples.into_iter().map(|example| example.tokens.len());
    lengths.sum::<usize>() as u64
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
