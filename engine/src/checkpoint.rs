//! Owns the format of a training run's state: one safetensors file with the adapter, both moments and the step.

use std::collections::HashMap;

use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};

use crate::cpu::simd::Isa;
use crate::lora::{Role, Tensor, named};
use crate::model::MemoryLevel;
use crate::stored::widen;
use crate::train::{State, TrainConfig, TrainError, Trainer};

/// Raised when the file changes so that an older reader would misread it.
const FORMAT_VERSION: u32 = 1;

/// The one key of the file's metadata, so that the same state is always the same bytes: safetensors keeps its keys in
/// no order.
const HEADER_KEY: &str = "training_state";

/// What stands beside the tensors, as JSON.
#[derive(Serialize, Deserialize)]
struct Header {
    format_version: u32,
    arithmetic: String,
    /// Of the machine that wrote the file; told, not required.
    instruction_set: String,
    config_hash: String,
    step: u64,
}

const MOMENTS: [&str; 2] = ["exp_avg", "exp_avg_sq"];

/// Writes the state of `trainer`.
/// Errors: `Gpu`.
pub(crate) fn save(trainer: &Trainer) -> Result<Vec<u8>, TrainError> {
    let state = trainer.run.state()?;
    let mut tensors = Vec::new();
    let parts = [&state.values, &state.exp_avg, &state.exp_avg_sq];
    for (suffix, values) in suffixes().into_iter().zip(parts) {
        tensors.extend(named(kept(trainer, &suffix), values, &suffix));
    }
    let header = Header {
        format_version: FORMAT_VERSION,
        arithmetic: trainer.run.arithmetic(),
        instruction_set: Isa::detect().name().to_owned(),
        config_hash: config_hash(trainer),
        step: trainer.n_steps,
    };
    let header = serde_json::to_string(&header).expect("strings and numbers can be written");
    let metadata = HashMap::from([(HEADER_KEY.to_owned(), header)]);
    Ok(crate::lora::serialize(tensors, metadata))
}

/// Reads a state into `trainer`, which is changed only if all of it is good.
/// Errors: `BadInput`; `OtherArithmetic`; `Gpu`.
pub(crate) fn load(trainer: &mut Trainer, bytes: &[u8]) -> Result<(), TrainError> {
    let bad = |what: String| TrainError::BadInput(format!("the saved state {what}"));
    let malformed = |error: safetensors::SafeTensorError| bad(format!("cannot be read: {error}"));
    let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(malformed)?;
    let text = metadata
        .metadata()
        .as_ref()
        .and_then(|map| map.get(HEADER_KEY));
    let text = text.ok_or_else(|| bad(format!("has no {HEADER_KEY}")))?;
    let header: Header =
        serde_json::from_str(text).map_err(|error| bad(format!("cannot be read: {error}")))?;
    let same = |key: &str, found: String, expected: String| match found == expected {
        true => Ok(()),
        false => Err(bad(format!("has {key} {found:?}, not {expected:?}"))),
    };
    same(
        "format_version",
        header.format_version.to_string(),
        FORMAT_VERSION.to_string(),
    )?;
    let (found, expected) = (header.arithmetic, trainer.run.arithmetic());
    if found != expected {
        return Err(TrainError::OtherArithmetic { found, expected });
    }
    same("config_hash", header.config_hash, config_hash(trainer))?;
    let tensors = SafeTensors::deserialize(bytes).map_err(malformed)?;
    let mut loaded: Vec<Vec<f32>> = Vec::new();
    for suffix in suffixes() {
        loaded.push(read(trainer, &tensors, &suffix).map_err(bad)?);
    }
    let [values, exp_avg, exp_avg_sq] = loaded.try_into().expect("three parts were read above");
    trainer.run.set_state(&State {
        values,
        exp_avg,
        exp_avg_sq,
    })?;
    trainer.n_steps = header.step;
    Ok(())
}

fn read(trainer: &Trainer, tensors: &SafeTensors<'_>, suffix: &str) -> Result<Vec<f32>, String> {
    let mut values = vec![0.0; trainer.layout.n_values()];
    for tensor in kept(trainer, suffix) {
        let name = format!("{}{suffix}", tensor.name);
        let view = tensors
            .tensor(&name)
            .map_err(|_| format!("lacks tensor {name}"))?;
        let place = tensor.place.clone();
        if view.dtype() != Dtype::F32 || view.data().len() != place.len() * 4 {
            return Err(format!(
                "has tensor {name} as {:?} {:?}",
                view.dtype(),
                view.shape()
            ));
        }
        widen(Dtype::F32, view.data(), &mut values[place]);
    }
    Ok(values)
}

/// What follows the tensors' names: nothing for the values, then the moments.
fn suffixes() -> [String; 3] {
    let [first, second] = MOMENTS.map(|name| format!(".{name}"));
    [String::new(), first, second]
}

/// The tensors of which there is something under `suffix`: what is not trained has no moments.
fn kept<'a>(trainer: &'a Trainer, suffix: &str) -> impl Iterator<Item = &'a Tensor> {
    let is_value = suffix.is_empty();
    let tensors = trainer.layout.tensors().iter();
    tensors.filter(move |tensor| is_value || tensor.role == Role::Trained)
}

/// 64 bits that differ where model, adapter or training configuration do. How much memory is used changes no bit of a result.
fn config_hash(trainer: &Trainer) -> String {
    let config = TrainConfig {
        memory: MemoryLevel::default(),
        ..trainer.config.clone()
    };
    let (model, lora) = (trainer.run.model(), &trainer.lora_config);
    let text = format!("{model:?} {lora:?} {}", told(&config));
    // FNV-1a: stable over versions of the standard library, unlike its hashers.
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("{hash:016x}")
}

/// A configuration as text. What came later and was not asked for is left out, so that states from before can still be read.
fn told(config: &TrainConfig) -> String {
    format!("{config:?}")
        .replace(", pass_tokens: None", "")
        .replace(", preference: None", "")
        .replace(
            ", desirable_weight: 1.0, undesirable_weight: 1.0, max_length: None",
            "",
        )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::Preference;

    #[test]
    fn what_a_configuration_is_hashed_as_stays() {
        let first = "TrainConfig { learning_rate: 0.001, total_steps: 1, warmup_steps: 0, schedule: Linear, \
            weight_decay: 0.0, betas: (0.9, 0.999), eps: 1e-8, max_grad_norm: Some(1.0), loraplus_lr_ratio: None, seed: 0, \
            precision: Fp32, memory: KeepAll, packing: BinPack }";
        assert_eq!(told(&TrainConfig::default()), first);
        let other = TrainConfig {
            pass_tokens: Some(2048),
            ..TrainConfig::default()
        };
        assert!(told(&other).contains("pass_tokens: Some(2048)"));
        let dpo = TrainConfig {
            preference: Some(Preference::default()),
            ..TrainConfig::default()
        };
        let first = "preference: Some(Preference { loss: Sigmoid, beta: 0.1, label_smoothing: 0.0, gamma: 0.5, ftx: 0.0 })";
        assert!(told(&dpo).contains(first), "{}", told(&dpo));
    }
}
