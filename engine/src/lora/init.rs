//! Owns the first values of an adapter: functions of the seed, the shapes and, for PiSSA, the base's weights.

use std::sync::{Arc, Mutex};

use crate::config::ModelConfig;
use crate::cpu::pool::Pool;
use crate::lora::dora::row_norms;
use crate::lora::layout::Layout;
use crate::lora::slots::{Role, Saved, Slot};
use crate::lora::targets::Targets;
use crate::lora::{Adapter, AdapterError, Init, LoraConfig, svd};
use crate::rng::{Purpose, Stream};
use crate::weights::BaseModel;

impl Adapter {
    /// A fresh adapter for a model of this shape, as PEFT begins: B = 0, A a function of the seed alone.
    /// Errors: what the configuration can have wrong; `NeedsBase` where values are made from the base's.
    pub fn init(model: &ModelConfig, config: &LoraConfig, seed: u64) -> Result<Self, AdapterError> {
        if let Some(what) = config.copies_of_base() {
            return Err(AdapterError::NeedsBase { what });
        }
        let layout = layout(model, config)?;
        let values = random(&layout, config.init_lora_weights, seed);
        Ok(Self::from_parts(config.clone(), Arc::new(layout), values))
    }

    /// A fresh adapter for a base whose weights can be looked at: every configuration.
    /// Errors: what the configuration can have wrong.
    pub fn init_from(
        base: &BaseModel,
        config: &LoraConfig,
        seed: u64,
        pool: &Pool,
    ) -> Result<Self, AdapterError> {
        let layout = layout(base.config(), config)?;
        let mut values = match config.init_lora_weights {
            Init::Pissa => principal(&layout, base, pool),
            init => random(&layout, init, seed),
        };
        copy_from_base(&layout, base, pool, &mut values);
        Ok(Self::from_parts(config.clone(), Arc::new(layout), values))
    }
}

/// Magnitudes begin as the norms of the base's rows, biases and what is saved whole as the base has them.
fn copy_from_base(layout: &Layout, base: &BaseModel, pool: &Pool, values: &mut [f32]) {
    for slot in layout.slots() {
        if let Some(place) = &slot.magnitude {
            let weight = &base.layers[slot.layer].linear(slot.module.fused()).weight;
            row_norms(pool, weight, slot.column, &[], &mut values[place.clone()]);
        }
    }
    for bias in layout.biases() {
        let linear = base.layers[bias.layer].linear(bias.module.fused());
        if let Some(from) = &linear.bias {
            values[bias.place.clone()].copy_from_slice(&from[bias.columns.clone()]);
        }
    }
    let saved = [
        (Saved::EmbedTokens, &base.embed_tokens),
        (Saved::LmHead, base.head()),
    ];
    for (saved, from) in saved {
        if let Some(place) = layout.saved(saved) {
            let width = from.n_in();
            pool.for_rows(from.n_out(), (&mut values[place], width), |rows, to| {
                for (row, to) in rows.zip(to.chunks_exact_mut(width)) {
                    from.copy_row(row, to);
                }
            });
        }
    }
}

/// The layout of a new adapter, where also what PEFT would pass over in silence is wrong.
pub(super) fn layout(model: &ModelConfig, config: &LoraConfig) -> Result<Layout, AdapterError> {
    let layout = Layout::new(model, config)?;
    let paths: Vec<String> = layout.slots().iter().map(Slot::path).collect();
    Targets::new(config)?.check_patterns(&paths)?;
    Ok(layout)
}

fn random(layout: &Layout, init: Init, seed: u64) -> Vec<f32> {
    let mut values = vec![0.0; layout.n_values()];
    for (lane, slot) in layout.slots().iter().enumerate() {
        let stream = Stream::new(seed, Purpose::AdapterInit, lane as u64);
        let a = values[slot.a.clone()].iter_mut().zip(0..);
        match init {
            Init::Gaussian => a.for_each(|(a, i)| *a = stream.normal(i) / slot.r as f32),
            _ => {
                let bound = 1.0 / (slot.n_in as f32).sqrt();
                a.for_each(|(a, i)| *a = (2.0 * stream.uniform(i) - 1.0) * bound);
            }
        }
    }
    values
}

/// W ≈ U·S·Vᵀ in rank r: A = √(S/s)·Vᵀ and B = U·√(S/s), so that s·B·A is what W is mostly made of. PEFT takes it out
/// of W; here W stays, and an initial slot with A and −B takes it out of the sum.
fn principal(layout: &Layout, base: &BaseModel, pool: &Pool) -> Vec<f32> {
    let mut values = vec![0.0; layout.n_values()];
    let of_role = |role| layout.slots().iter().filter(move |slot| slot.role == role);
    let pairs: Vec<(&Slot, &Slot)> = of_role(Role::Trained).zip(of_role(Role::Initial)).collect();
    let found: Vec<Mutex<Option<[Vec<f32>; 2]>>> = pairs.iter().map(|_| Mutex::default()).collect();
    pool.run(pairs.len(), |i| {
        let matrices = principal_of(pairs[i].0, base);
        *found[i].lock().expect("one task finds one slot's") = Some(matrices);
    });
    for ((trained, initial), found) in pairs.into_iter().zip(found) {
        let found = found.into_inner().expect("no task panicked, or `run` had");
        let [a, b] = found.expect("every task has run — a bug in the pool");
        let minus_b: Vec<f32> = b.iter().map(|b| -b).collect();
        for (slot, b) in [(trained, &b), (initial, &minus_b)] {
            values[slot.a.clone()].copy_from_slice(&a);
            values[slot.b.clone()].copy_from_slice(b);
        }
    }
    values
}

/// A (r, in) and B (out, r).
fn principal_of(slot: &Slot, base: &BaseModel) -> [Vec<f32>; 2] {
    let Slot { n_in, n_out, r, .. } = *slot;
    let weight = &base.layers[slot.layer].linear(slot.module.fused()).weight;
    let mut w = vec![0.0; n_out * n_in];
    for (i, row) in w.chunks_exact_mut(n_in).enumerate() {
        weight.copy_row(slot.column + i, row);
    }
    let svd = svd::largest(&w, n_in, r);
    let (mut a, mut b) = (vec![0.0; r * n_in], vec![0.0; n_out * r]);
    for (k, &s) in svd.s.iter().enumerate() {
        let root = (s / f64::from(slot.scale)).sqrt();
        let v = &svd.v[k * n_in..(k + 1) * n_in];
        for (a, v) in a[k * n_in..].iter_mut().zip(v) {
            *a = (root * v) as f32;
        }
        let us = &svd.us[k * n_out..(k + 1) * n_out];
        let factor = if s > 0.0 { root / s } else { 0.0 };
        for (b, us) in b[k..].iter_mut().step_by(r).zip(us) {
            *b = (factor * us) as f32;
        }
    }
    [a, b]
}
