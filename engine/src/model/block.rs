//! One decoder block, forward: x + Attention(norm(x)), then + MLP(norm(…)), every linear with its low-rank change, with
//! whatever norms before, within and after the branches the model has.
//! The stream is f32 whatever the precision; what the linears and the attention read and write is `E`.

use std::ops::Range;

use crate::config::ModelConfig;
use crate::cpu::buffer::{Buffer, OutOfMemory};
use crate::cpu::element::Element;
use crate::cpu::gemm::Out;
use crate::cpu::pool::Pool;
use crate::lora::{Fused, PackedLora};
use crate::model::experts::{self, Mixture, Routing};
use crate::nn::dropout::{Dropout, Mask};
use crate::nn::linear::LoraRows;
use crate::nn::rope::{Angles, Turn};
use crate::nn::{glu, linear, qk_norm, rms_norm, rope, rounding};
use crate::weights::Layer;

/// Rows, and the adapter that changes them.
pub(crate) type Changed<'a, E> = (Range<usize>, &'a PackedLora<E>);

/// Which adapter changes which rows; rows that are in no range run the base.
pub(crate) type Loras<'a, E> = [Changed<'a, E>];

/// What the backward needs of a block's forward. Norms before branches and the gated unit are computed again instead: they are cheap.
#[derive(Default)]
pub(crate) struct Activations<E> {
    /// Factor of the first norm, (T).
    pub input_rstd: Buffer,
    /// q and k before their norms, (T, (H+K)·C), and the factors of those, (T, groups); empty without such norms.
    pub qk: Buffer<E>,
    pub qk_rstd: Buffer,
    /// q and k rotated, and v: (T, (H+2K)·C).
    pub qkv: Buffer<E>,
    /// (T, H·C)
    pub attended: Buffer<E>,
    /// Log-sum-exp of every query, (H, T).
    pub lse: Buffer,
    pub after_attention: Branch<E>,
    /// The stream between attention and feed-forward, (T, D).
    pub middle: Buffer,
    /// Factor of the second norm, (T).
    pub middle_rstd: Buffer,
    /// What the router of experts decided.
    pub routing: Routing,
    /// (T, 2F), or that of the experts of every row.
    pub gate_up: Buffer<E>,
    pub after_mlp: Branch<E>,
    /// x·s·Aᵀ of the four fused linears, (T, R) each.
    pub low_rank: [Buffer<E>; 4],
}

/// What a branch gives before the norm after it; empty without such a norm.
#[derive(Default)]
pub(crate) struct Branch<E> {
    /// (T, D)
    pub out: Buffer<E>,
    /// Factor of the norm, (T).
    pub rstd: Buffer,
}

/// Memory that every block uses in turn.
#[derive(Default)]
pub(crate) struct Scratch<E> {
    /// (T, D)
    pub normed: Buffer<E>,
    /// (T, F), or that of the experts of every row.
    pub inner: Buffer<E>,
    pub experts: experts::Scratch<E>,
    pub linear: linear::Scratch<E>,
}

impl<E: Element> Activations<E> {
    /// Errors: `OutOfMemory`.
    pub fn ensure(&mut self, config: &ModelConfig, rows: usize) -> Result<(), OutOfMemory> {
        self.input_rstd.ensure(rows)?;
        self.qkv
            .ensure(rows * (config.query_size() + 2 * config.key_value_size()))?;
        self.attended.ensure(rows * config.query_size())?;
        self.lse.ensure(rows * config.num_attention_heads)?;
        self.middle.ensure(rows * config.hidden_size)?;
        self.middle_rstd.ensure(rows)
    }
}

impl<E: Element> Scratch<E> {
    /// Errors: `OutOfMemory`.
    pub fn ensure(&mut self, config: &ModelConfig, rows: usize) -> Result<(), OutOfMemory> {
        self.normed.ensure(rows * config.hidden_size)
    }
}

/// A block of a model and the adapters on it.
#[derive(Clone, Copy)]
pub(crate) struct Block<'a, E> {
    pub pool: &'a Pool,
    pub config: &'a ModelConfig,
    pub layer: &'a Layer,
    pub index: usize,
    pub loras: &'a Loras<'a, E>,
    /// Of the inputs of the low-rank changes, in training.
    pub dropout: Option<&'a Dropout>,
}

impl<E: Element> Block<'_, E> {
    /// From the stream `x` (T, D) to that after the attention, `saved.middle`. `attend` gets the rotated (T, (H+2K)·C) and
    /// fills (T, H·C) and the (H, T) log-sum-exps.
    /// Errors: `OutOfMemory`.
    pub fn attention(
        self,
        x: &[f32],
        angles: Option<&Angles>,
        saved: &mut Activations<E>,
        scratch: &mut Scratch<E>,
        attend: impl FnOnce(&[E], &mut [E], &mut [f32]) -> Result<(), OutOfMemory>,
    ) -> Result<(), OutOfMemory> {
        let (pool, config, layer) = (self.pool, self.config, self.layer);
        let norm = layer.before_attention.as_deref();
        self.norm(norm, x, &mut scratch.normed, &mut saved.input_rstd);
        let h = &mut saved.low_rank[Fused::Qkv as usize];
        let (normed, room) = (&scratch.normed, &mut scratch.linear);
        self.linear(Fused::Qkv, normed, room, h, Out::Set(&mut saved.qkv))?;
        let width = layer.qkv.weight.n_out();
        if let Some(weights) = &layer.qk_norm {
            let rows = x.len() / config.hidden_size;
            saved.qk.ensure(rows * weights.width())?;
            saved.qk_rstd.ensure(rows * weights.n_groups())?;
            let (qkv, eps) = ((&mut *saved.qkv, width), config.rms_norm_eps);
            qk_norm::forward(pool, weights, eps, qkv, &mut saved.qk, &mut saved.qk_rstd);
        }
        if let Some(angles) = angles {
            let n_rotated = config.num_attention_heads + config.num_key_value_heads;
            let qkv = &mut saved.qkv;
            rope::rotate(pool, angles, n_rotated, qkv, width, Turn::Forward);
        }
        attend(&saved.qkv, &mut saved.attended, &mut saved.lse)?;
        let h = &mut saved.low_rank[Fused::O as usize];
        let (input, room) = (&saved.attended, &mut scratch.linear);
        let (branch, middle) = (&mut saved.after_attention, &mut saved.middle);
        self.add_branch(Fused::O, input, room, h, x, branch, middle)
    }

    /// From `saved.middle` to gate and up before their product, `saved.gate_up`.
    /// Errors: `OutOfMemory`.
    pub fn gate_up(
        self,
        saved: &mut Activations<E>,
        scratch: &mut Scratch<E>,
    ) -> Result<(), OutOfMemory> {
        let (middle, rstd) = (&saved.middle, &mut saved.middle_rstd);
        let norm = self.layer.before_mlp.as_deref();
        self.norm(norm, middle, &mut scratch.normed, rstd);
        if let Some(mixture) = self.mixture() {
            let (normed, room) = (&scratch.normed, &mut scratch.experts);
            return mixture.gate_up(normed, &mut saved.routing, room, &mut saved.gate_up);
        }
        let rows = saved.middle.len() / self.config.hidden_size;
        saved
            .gate_up
            .ensure(rows * 2 * self.config.intermediate_size)?;
        let h = &mut saved.low_rank[Fused::GateUp as usize];
        let (normed, room) = (&scratch.normed, &mut scratch.linear);
        let out = Out::Set(&mut saved.gate_up);
        self.linear(Fused::GateUp, normed, room, h, out)
    }

    /// From `saved.gate_up` and `saved.middle` to the stream `out`, (T, D).
    /// Errors: `OutOfMemory`.
    pub fn down(
        self,
        out: &mut [f32],
        saved: &mut Activations<E>,
        scratch: &mut Scratch<E>,
    ) -> Result<(), OutOfMemory> {
        self.inner(&saved.gate_up, scratch)?;
        if let Some(mixture) = self.mixture() {
            out.copy_from_slice(&saved.middle);
            return mixture.down(&scratch.inner, &saved.routing, &mut scratch.experts, out);
        }
        let (h, x) = (&mut saved.low_rank[Fused::Down as usize], &saved.middle);
        let (input, room) = (&scratch.inner, &mut scratch.linear);
        self.add_branch(Fused::Down, input, room, h, x, &mut saved.after_mlp, out)
    }

    /// What down reads, `scratch.inner`.
    /// Errors: `OutOfMemory`.
    pub fn inner(self, gate_up: &[E], scratch: &mut Scratch<E>) -> Result<(), OutOfMemory> {
        if let Some(mixture) = self.mixture() {
            return mixture.inner(gate_up, &mut scratch.inner);
        }
        let (act, inner) = (self.config.hidden_act, self.config.intermediate_size);
        scratch.inner.ensure(gate_up.len() / 2)?;
        glu::forward(self.pool, act, gate_up, &mut scratch.inner, inner);
        Ok(())
    }

    /// The experts of a block that has them.
    fn mixture(&self) -> Option<Mixture<'_>> {
        Mixture::of(self.pool, self.config, self.layer)
    }

    /// What the backward of down needs, again: x·s·Aᵀ of `scratch.inner`, and before a norm down's result.
    /// Errors: `OutOfMemory`.
    pub fn restore_down(
        self,
        saved: &mut Activations<E>,
        scratch: &mut Scratch<E>,
    ) -> Result<(), OutOfMemory> {
        if self.mixture().is_some() {
            return Ok(());
        }
        let (inner, room) = (&scratch.inner, &mut scratch.linear);
        let h = &mut saved.low_rank[Fused::Down as usize];
        if self.layer.after_mlp.is_some() {
            return self.branch(Fused::Down, inner, room, h, &mut saved.after_mlp);
        }
        let (pool, changes) = (self.pool, self.changes(Fused::Down));
        let n_in = self.layer.linear(Fused::Down).weight.n_in();
        linear::low_rank_of_kept(pool, n_in, &changes, self.mask(Fused::Down), inner, room, h)
    }

    /// `to` becomes what the first linear of a branch reads of the stream `x`.
    fn norm(self, weight: Option<&[f32]>, x: &[f32], to: &mut [E], rstd: &mut [f32]) {
        let (pool, eps) = (self.pool, self.config.rms_norm_eps);
        match weight {
            Some(weight) => rms_norm::forward(pool, x, weight, eps, to, rstd),
            None => rounding::round(pool, self.config.hidden_size, x, to),
        }
    }

    /// `to` becomes the stream `x` plus what the last linear of a branch makes of `input`, through the norm after it if
    /// there is one.
    #[allow(clippy::too_many_arguments)]
    fn add_branch(
        self,
        fused: Fused,
        input: &[E],
        room: &mut linear::Scratch<E>,
        h: &mut Buffer<E>,
        x: &[f32],
        branch: &mut Branch<E>,
        to: &mut [f32],
    ) -> Result<(), OutOfMemory> {
        to.copy_from_slice(x);
        let Some(weight) = self.layer.norm_after(fused) else {
            return self.linear(fused, input, room, h, Out::AddSums(to));
        };
        self.branch(fused, input, room, h, branch)?;
        rms_norm::add(self.pool, &branch.out, weight, &branch.rstd, to);
        Ok(())
    }

    /// What the last linear of a branch makes of `input`, and the factors of the norm after it.
    fn branch(
        self,
        fused: Fused,
        input: &[E],
        room: &mut linear::Scratch<E>,
        h: &mut Buffer<E>,
        Branch { out, rstd }: &mut Branch<E>,
    ) -> Result<(), OutOfMemory> {
        let (width, eps) = (self.config.hidden_size, self.config.rms_norm_eps);
        let rows = input.len() / self.layer.linear(fused).weight.n_in();
        out.ensure(rows * width)?;
        rstd.ensure(rows)?;
        self.linear(fused, input, room, h, Out::Set(out))?;
        rms_norm::factors(self.pool, width, out, eps, rstd);
        Ok(())
    }

    fn linear(
        self,
        fused: Fused,
        x: &[E],
        room: &mut linear::Scratch<E>,
        h: &mut Buffer<E>,
        out: Out<'_, E>,
    ) -> Result<(), OutOfMemory> {
        let (linear, changes) = (self.layer.linear(fused), self.changes(fused));
        let mask = self.mask(fused);
        linear::forward(self.pool, linear, &changes, mask, x, room, h, out)
    }

    fn mask(&self, fused: Fused) -> Option<Mask<'_>> {
        self.dropout
            .map(|dropout| dropout.at(self.index, fused as usize))
    }

    fn changes(&self, fused: Fused) -> Vec<LoraRows<'_, E>> {
        self.loras
            .iter()
            .map(|(rows, packed)| LoraRows {
                rows: rows.clone(),
                lora: packed.fused(self.index, fused),
            })
            .collect()
    }
}
