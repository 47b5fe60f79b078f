//! Owns an adapter being trained on the CPU.

use std::borrow::Cow;
use std::sync::Arc;

use super::passes::{Factors, On, Passes};
use super::run::{Run, State, Update, Weigh};
use super::{EvalReport, TrainConfig, TrainError, micro_batches};
use crate::config::ModelConfig;
use crate::cpu::buffer::OutOfMemory;
use crate::cpu::element::Precision;
use crate::cpu::pool::Pool;
use crate::cpu::simd::Isa;
use crate::lora::{Layout, Role};
use crate::model::{Batch, MemoryLevel};
use crate::nn::cross_entropy::RowLosses;
use crate::optim::{AdamW, Group, clip_factor, global_norm};
use crate::weights::BaseModel;

pub(super) struct CpuRun {
    base: Arc<BaseModel>,
    pool: Pool,
    layout: Arc<Layout>,
    passes: Passes,
    /// The same in f32, made when a caller asks for scores that serving can be held to.
    exact: Option<Passes>,
    /// The adapter as it was in the beginning, where the training asks what it said.
    first: Option<Passes>,
    groups: Vec<Group>,
    precision: Precision,
    memory: MemoryLevel,
    optimizer: AdamW,
    max_grad_norm: Option<f32>,
    state: State,
    grads: Vec<f32>,
}

impl CpuRun {
    pub fn new(
        base: Arc<BaseModel>,
        layout: Arc<Layout>,
        values: Vec<f32>,
        groups: Vec<Group>,
        config: &TrainConfig,
        pool: Pool,
    ) -> Self {
        let zeros = || vec![0.0; values.len()];
        let mut run = Self {
            base,
            pool,
            passes: Passes::new(config.precision, &layout),
            exact: None,
            first: None,
            groups,
            precision: config.precision,
            memory: config.memory,
            optimizer: AdamW {
                betas: config.betas,
                eps: config.eps,
            },
            max_grad_norm: config.max_grad_norm,
            grads: zeros(),
            state: State {
                exp_avg: zeros(),
                exp_avg_sq: zeros(),
                values,
            },
            layout,
        };
        run.repack();
        if config.keeps_first() {
            run.keep_first(config.precision);
        }
        run
    }

    fn keep_first(&mut self, precision: Precision) {
        let on = On {
            pool: &self.pool,
            base: &self.base,
        };
        let mut first = Passes::new(precision, &self.layout);
        first
            .pack(on, &self.state.values)
            .expect("memory for a third copy of an adapter");
        self.first = Some(first);
    }

    fn repack(&mut self) {
        // The sizes never change after the first time, in `new`, so a running job cannot fail here.
        let on = On {
            pool: &self.pool,
            base: &self.base,
        };
        self.passes
            .pack(on, &self.state.values)
            .expect("memory for a second copy of an adapter");
    }
}

impl CpuRun {
    /// Adds the gradients of one pass.
    fn accumulate(&mut self, pass: &Batch, factors: Factors<'_>) -> Result<RowLosses, OutOfMemory> {
        let on = On {
            pool: &self.pool,
            base: &self.base,
        };
        let (layout, level, grads) = (&self.layout, self.memory, &mut self.grads);
        self.passes
            .accumulate(on, layout, level, pass, factors, grads)
    }

    /// Leaves the gradients of all passes; their L2 norm.
    fn leave(&mut self) -> f32 {
        // The kernels know nothing of roles: what is not trained gets a gradient as well.
        let tensors = self.layout.tensors().iter();
        for tensor in tensors.filter(|t| t.role == Role::Initial) {
            self.grads[tensor.place.clone()].fill(0.0);
        }
        global_norm(&self.grads)
    }
}

impl Run for CpuRun {
    fn model(&self) -> &ModelConfig {
        self.base.config()
    }

    /// Every instruction-set level computes the same f32 chains; of bf16 pairs there are those that multiply them as the
    /// processor does, one by one or in tiles, and those that widen them.
    fn arithmetic(&self) -> String {
        let name = match (self.precision, Isa::detect()) {
            (Precision::Fp32, _) => "f32-chain-2",
            (Precision::Bf16, Isa::Amx) => "bf16-tiles-1",
            (Precision::Bf16, Isa::Avx512Bf16) => "bf16-pairs-1",
            (Precision::Bf16, _) => "bf16-widened-1",
        };
        name.to_owned()
    }

    fn rows_per_pass(&self) -> usize {
        micro_batches::MICRO_BATCH_TOKENS
    }

    fn gradients(&mut self, passes: &[Batch], scale: f32) -> Result<(EvalReport, f32), TrainError> {
        let mut report = EvalReport::default();
        self.grads.fill(0.0);
        for pass in passes {
            report.add(&self.accumulate(pass, Factors::Same(scale))?);
        }
        Ok((report, self.leave()))
    }

    fn weighed_gradients(
        &mut self,
        passes: &[Batch],
        weigh: &mut Weigh<'_>,
    ) -> Result<f32, TrainError> {
        self.grads.fill(0.0);
        for pass in passes {
            self.accumulate(pass, Factors::ByScore(&mut *weigh))?;
        }
        Ok(self.leave())
    }

    fn update(&mut self, update: Update) -> Result<(), TrainError> {
        let State {
            values,
            exp_avg,
            exp_avg_sq,
        } = &mut self.state;
        self.optimizer.update(
            &self.pool,
            &self.groups,
            update.learning_rate,
            update.step,
            clip_factor(update.grad_norm, self.max_grad_norm),
            &self.grads,
            values,
            exp_avg,
            exp_avg_sq,
        );
        self.repack();
        Ok(())
    }

    fn score(&mut self, pass: &Batch) -> Result<RowLosses, TrainError> {
        let on = On {
            pool: &self.pool,
            base: &self.base,
        };
        Ok(self.passes.score(on, pass)?)
    }

    fn score_by_first(&mut self, pass: &Batch) -> Result<RowLosses, TrainError> {
        let on = On {
            pool: &self.pool,
            base: &self.base,
        };
        let first = self.first.as_mut();
        let first = first.expect("a training by preference keeps it — a bug in the trainer");
        Ok(first.score(on, pass)?)
    }

    fn score_exactly(&mut self, pass: &Batch) -> Result<RowLosses, TrainError> {
        let on = On {
            pool: &self.pool,
            base: &self.base,
        };
        let passes = match (&mut self.passes, &mut self.exact) {
            (passes @ Passes::Fp32(_), _) => passes,
            (_, exact) => {
                let exact = exact.get_or_insert_with(|| Passes::new(Precision::Fp32, &self.layout));
                exact.pack(on, &self.state.values)?;
                exact
            }
        };
        Ok(passes.score(on, pass)?)
    }

    fn logits(&mut self, pass: &Batch) -> Result<Vec<f32>, TrainError> {
        let on = On {
            pool: &self.pool,
            base: &self.base,
        };
        Ok(self.passes.logits(on, pass)?)
    }

    fn gradient_values(&self) -> Result<Vec<f32>, TrainError> {
        Ok(self.grads.clone())
    }

    fn values(&self) -> Result<Cow<'_, [f32]>, TrainError> {
        Ok(Cow::Borrowed(&self.state.values))
    }

    fn state(&self) -> Result<Cow<'_, State>, TrainError> {
        Ok(Cow::Borrowed(&self.state))
    }

    fn set_state(&mut self, state: &State) -> Result<(), TrainError> {
        self.state.clone_from(state);
        self.repack();
        Ok(())
    }
}
