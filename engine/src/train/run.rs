//! What a training asks of the processor that computes it.

use std::borrow::Cow;

use crate::config::ModelConfig;
use crate::model::Batch;
use crate::nn::cross_entropy::RowLosses;
use crate::train::{EvalReport, TrainError};

/// Of a pass and log p of its labels, a factor for each.
pub(crate) type Weigh<'a> = dyn FnMut(&Batch, &[f32]) -> Vec<f32> + 'a;

/// An adapter being trained, where its values, gradients and moments lie: in memory, or on a GPU.
pub(crate) trait Run: Send {
    /// The base's shape.
    fn model(&self) -> &ModelConfig;

    /// Names the arithmetic: a state continues bit for bit only where it is the same.
    fn arithmetic(&self) -> String;

    /// The most rows that a pass should have. Tokens.
    fn rows_per_pass(&self) -> usize;

    /// What it holds of a GPU's memory beside the base's weights. Bytes.
    fn gpu_bytes(&self) -> u64 {
        0
    }

    /// Scores the labels of all passes and leaves the gradient of −Σ log p·`scale`; also tells its L2 norm.
    /// Errors: `OutOfMemory`, `Gpu`.
    fn gradients(&mut self, passes: &[Batch], scale: f32) -> Result<(EvalReport, f32), TrainError>;

    /// Scores the labels of all passes and leaves the gradient of −Σ log p·factor, each label's by what `weigh` makes of its pass; tells
    /// its L2 norm.
    /// Errors: `OutOfMemory`, `Gpu`.
    fn weighed_gradients(
        &mut self,
        passes: &[Batch],
        weigh: &mut Weigh<'_>,
    ) -> Result<f32, TrainError>;

    /// Changes the values by the gradients that were left.
    /// Errors: `Gpu`.
    fn update(&mut self, update: Update) -> Result<(), TrainError>;

    /// log p of the labels of one pass.
    /// Errors: `OutOfMemory`, `Gpu`.
    fn score(&mut self, pass: &Batch) -> Result<RowLosses, TrainError>;

    /// The same as exactly as can be, whatever the training computes in.
    /// Errors: `OutOfMemory`, `Gpu`.
    fn score_exactly(&mut self, pass: &Batch) -> Result<RowLosses, TrainError>;

    /// log p of the labels of one pass by the adapter that the run began with.
    /// Errors: `OutOfMemory`, `Gpu`.
    fn score_by_first(&mut self, pass: &Batch) -> Result<RowLosses, TrainError>;

    /// The logits after each token of one pass, (T, V).
    /// Errors: `OutOfMemory`, `Gpu`.
    fn logits(&mut self, pass: &Batch) -> Result<Vec<f32>, TrainError>;

    /// The gradients that were left, in the layout's order.
    /// Errors: `Gpu`.
    fn gradient_values(&self) -> Result<Vec<f32>, TrainError>;

    /// The values as they are.
    /// Errors: `Gpu`.
    fn values(&self) -> Result<Cow<'_, [f32]>, TrainError>;

    /// Values and moments as they are.
    /// Errors: `Gpu`.
    fn state(&self) -> Result<Cow<'_, State>, TrainError>;

    /// Goes on from other values and moments.
    /// Errors: `OutOfMemory`; `Gpu`, after which nothing holds that the run had.
    fn set_state(&mut self, state: &State) -> Result<(), TrainError>;
}

/// What changes from step to step, in the layout's order.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct State {
    pub values: Vec<f32>,
    /// First moments.
    pub exp_avg: Vec<f32>,
    /// Second moments.
    pub exp_avg_sq: Vec<f32>,
}

/// The numbers of one update.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Update {
    pub learning_rate: f32,
    /// 1-based.
    pub step: u64,
    /// Of all gradients together.
    pub grad_norm: f32,
}
