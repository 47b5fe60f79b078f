//! One decoder block, forward: x + Attention(norm(x)), then + SwiGLU(norm(…)), every linear with its low-rank change.

use std::ops::Range;

use crate::buffer::{Buffer, OutOfMemory};
use crate::config::ModelConfig;
use crate::lora::{Fused, PackedLora};
use crate::nn::gemm::Write;
use crate::nn::linear::LoraRows;
use crate::nn::rope::{Angles, Turn};
use crate::nn::{linear, rms_norm, rope, swiglu};
use crate::pool::Pool;
use crate::weights::Layer;

/// Which adapter changes which rows; rows that are in no range run the base.
pub(crate) type Loras<'a> = [(Range<usize>, &'a PackedLora)];

/// What the backward needs of a block's forward. Norms and SwiGLU are computed again instead: they are cheap.
#[derive(Default)]
pub(crate) struct Activations {
    /// Factor of the first norm, (T).
    pub input_rstd: Buffer,
    /// q and k rotated, and v: (T, (H+2K)·C).
    pub qkv: Buffer,
    /// (T, H·C)
    pub attended: Buffer,
    /// Log-sum-exp of every query, (H, T).
    pub lse: Buffer,
    /// The stream between attention and feed-forward, (T, D).
    pub middle: Buffer,
    /// Factor of the second norm, (T).
    pub middle_rstd: Buffer,
    /// (T, 2F)
    pub gate_up: Buffer,
    /// x·s·Aᵀ of the four fused linears, (T, R) each.
    pub low_rank: [Buffer; 4],
}

/// Memory that every block uses in turn.
#[derive(Default)]
pub(crate) struct Scratch {
    /// (T, D)
    pub normed: Buffer,
    /// (T, F)
    pub inner: Buffer,
}

impl Activations {
    /// Errors: `OutOfMemory`.
    pub fn ensure(&mut self, config: &ModelConfig, rows: usize) -> Result<(), OutOfMemory> {
        self.input_rstd.ensure(rows)?;
        self.qkv
            .ensure(rows * (config.query_size() + 2 * config.key_value_size()))?;
        self.attended.ensure(rows * config.query_size())?;
        self.lse.ensure(rows * config.num_attention_heads)?;
        self.middle.ensure(rows * config.hidden_size)?;
        self.middle_rstd.ensure(rows)?;
        self.gate_up.ensure(rows * 2 * config.intermediate_size)
    }
}

impl Scratch {
    /// Errors: `OutOfMemory`.
    pub fn ensure(&mut self, config: &ModelConfig, rows: usize) -> Result<(), OutOfMemory> {
        self.normed.ensure(rows * config.hidden_size)?;
        self.inner.ensure(rows * config.intermediate_size)
    }
}

/// A block of a model and the adapters on it.
#[derive(Clone, Copy)]
pub(crate) struct Block<'a> {
    pub pool: &'a Pool,
    pub config: &'a ModelConfig,
    pub layer: &'a Layer,
    pub index: usize,
    pub loras: &'a Loras<'a>,
}

impl Block<'_> {
    /// From the stream `x` to the stream `out`, (T, D) both. `attend` gets the rotated (T, (H+2K)·C) and fills
    /// (T, H·C) and the (H, T) log-sum-exps.
    /// Errors: `OutOfMemory`.
    pub fn forward(
        self,
        x: &[f32],
        out: &mut [f32],
        angles: &Angles,
        saved: &mut Activations,
        scratch: &mut Scratch,
        attend: impl FnOnce(&[f32], &mut [f32], &mut [f32]) -> Result<(), OutOfMemory>,
    ) -> Result<(), OutOfMemory> {
        let (pool, config, layer) = (self.pool, self.config, self.layer);
        let eps = config.rms_norm_eps;
        rms_norm::forward(
            pool,
            x,
            &layer.input_layernorm,
            eps,
            &mut scratch.normed,
            &mut saved.input_rstd,
        );
        self.linear(
            Fused::Qkv,
            &scratch.normed,
            saved_rank(&mut saved.low_rank, Fused::Qkv),
            &mut saved.qkv,
            Write::Set,
        )?;
        let n_rotated = config.num_attention_heads + config.num_key_value_heads;
        let width = layer.qkv.weight.columns();
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
        self.linear(
            Fused::O,
            &saved.attended,
            saved_rank(&mut saved.low_rank, Fused::O),
            &mut saved.middle,
            Write::Add,
        )?;

        let weight = &layer.post_attention_layernorm;
        rms_norm::forward(
            pool,
            &saved.middle,
            weight,
            eps,
            &mut scratch.normed,
            &mut saved.middle_rstd,
        );
        let h = saved_rank(&mut saved.low_rank, Fused::GateUp);
        self.linear(
            Fused::GateUp,
            &scratch.normed,
            h,
            &mut saved.gate_up,
            Write::Set,
        )?;
        swiglu::forward(
            pool,
            &saved.gate_up,
            &mut scratch.inner,
            config.intermediate_size,
        );
        out.copy_from_slice(&saved.middle);
        self.linear(
            Fused::Down,
            &scratch.inner,
            saved_rank(&mut saved.low_rank, Fused::Down),
            out,
            Write::Add,
        )
    }

    fn linear(
        self,
        fused: Fused,
        x: &[f32],
        h: &mut Buffer,
        y: &mut [f32],
        write: Write,
    ) -> Result<(), OutOfMemory> {
        let loras: Vec<_> = self
            .loras
            .iter()
            .map(|(rows, packed)| LoraRows {
                rows: rows.clone(),
                lora: packed.fused(self.index, fused),
            })
            .collect();
        linear::forward(self.pool, self.layer.linear(fused), &loras, x, h, y, write)
    }
}

fn saved_rank(low_rank: &mut [Buffer; 4], fused: Fused) -> &mut Buffer {
    &mut low_rank[fused as usize]
}
