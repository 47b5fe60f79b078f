//! One decoder block, forward: x + Attention(norm(x)), then + SwiGLU(norm(…)), every linear with its low-rank change.
//! The stream is f32 whatever the precision; what the linears and the attention read and write is `E`.

use std::ops::Range;

use crate::config::ModelConfig;
use crate::cpu::buffer::{Buffer, OutOfMemory};
use crate::cpu::element::Element;
use crate::cpu::gemm::Out;
use crate::cpu::pool::Pool;
use crate::lora::{Fused, PackedLora};
use crate::nn::dropout::{Dropout, Mask};
use crate::nn::linear::LoraRows;
use crate::nn::rope::{Angles, Turn};
use crate::nn::{linear, rms_norm, rope, swiglu};
use crate::weights::Layer;

/// Which adapter changes which rows; rows that are in no range run the base.
pub(crate) type Loras<'a, E> = [(Range<usize>, &'a PackedLora<E>)];

/// What the backward needs of a block's forward. Norms and SwiGLU are computed again instead: they are cheap.
#[derive(Default)]
pub(crate) struct Activations<E> {
    /// Factor of the first norm, (T).
    pub input_rstd: Buffer,
    /// q and k rotated, and v: (T, (H+2K)·C).
    pub qkv: Buffer<E>,
    /// (T, H·C)
    pub attended: Buffer<E>,
    /// Log-sum-exp of every query, (H, T).
    pub lse: Buffer,
    /// The stream between attention and feed-forward, (T, D).
    pub middle: Buffer,
    /// Factor of the second norm, (T).
    pub middle_rstd: Buffer,
    /// (T, 2F)
    pub gate_up: Buffer<E>,
    /// x·s·Aᵀ of the four fused linears, (T, R) each.
    pub low_rank: [Buffer<E>; 4],
}

/// Memory that every block uses in turn.
#[derive(Default)]
pub(crate) struct Scratch<E> {
    /// (T, D)
    pub normed: Buffer<E>,
    /// (T, F)
    pub inner: Buffer<E>,
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
        self.normed.ensure(rows * config.hidden_size)?;
        self.inner.ensure(rows * config.intermediate_size)
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
        angles: &Angles,
        saved: &mut Activations<E>,
        scratch: &mut Scratch<E>,
        attend: impl FnOnce(&[E], &mut [E], &mut [f32]) -> Result<(), OutOfMemory>,
    ) -> Result<(), OutOfMemory> {
        let (pool, config, layer) = (self.pool, self.config, self.layer);
        let (weight, eps) = (&layer.input_layernorm, config.rms_norm_eps);
        rms_norm::forward(
            pool,
            x,
            weight,
            eps,
            &mut scratch.normed,
            &mut saved.input_rstd,
        );
        let h = &mut saved.low_rank[Fused::Qkv as usize];
        let (normed, room) = (&scratch.normed, &mut scratch.linear);
        self.linear(Fused::Qkv, normed, room, h, Out::Set(&mut saved.qkv))?;
        let n_rotated = config.num_attention_heads + config.num_key_value_heads;
        let width = layer.qkv.weight.n_out();
        rope::rotate(
            pool,
            angles,
            n_rotated,
            &mut saved.qkv,
            width,
            Turn::Forward,
        );
        attend(&saved.qkv, &mut saved.attended, &mut saved.lse)?;
        saved.middle.copy_from_slice(x);
        let h = &mut saved.low_rank[Fused::O as usize];
        let (attended, room) = (&saved.attended, &mut scratch.linear);
        let out = Out::AddSums(&mut saved.middle);
        self.linear(Fused::O, attended, room, h, out)
    }

    /// From `saved.middle` to gate and up before their product, `saved.gate_up`.
    /// Errors: `OutOfMemory`.
    pub fn gate_up(
        self,
        saved: &mut Activations<E>,
        scratch: &mut Scratch<E>,
    ) -> Result<(), OutOfMemory> {
        let (weight, eps) = (
            &self.layer.post_attention_layernorm,
            self.config.rms_norm_eps,
        );
        let rows = saved.middle.len() / self.config.hidden_size;
        saved
            .gate_up
            .ensure(rows * 2 * self.config.intermediate_size)?;
        let (middle, rstd) = (&saved.middle, &mut saved.middle_rstd);
        rms_norm::forward(self.pool, middle, weight, eps, &mut scratch.normed, rstd);
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
        let inner = self.config.intermediate_size;
        swiglu::forward(self.pool, &saved.gate_up, &mut scratch.inner, inner);
        out.copy_from_slice(&saved.middle);
        let h = &mut saved.low_rank[Fused::Down as usize];
        let (inner, room) = (&scratch.inner, &mut scratch.linear);
        self.linear(Fused::Down, inner, room, h, Out::AddSums(out))
    }

    /// The first half of the adapters' change to down, x·s·Aᵀ of `scratch.inner`, alone.
    /// Errors: `OutOfMemory`.
    pub fn low_rank_of_down(
        self,
        saved: &mut Activations<E>,
        scratch: &mut Scratch<E>,
    ) -> Result<(), OutOfMemory> {
        let (inner, room) = (&scratch.inner, &mut scratch.linear);
        let h = &mut saved.low_rank[Fused::Down as usize];
        let (pool, changes) = (self.pool, self.changes(Fused::Down));
        let n_in = self.layer.down.weight.n_in();
        linear::low_rank_of_kept(pool, n_in, &changes, self.mask(Fused::Down), inner, room, h)
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
