//! Owns PEFT's adapter format: `adapter_config.json` and `adapter_model.safetensors`.

use std::collections::HashMap;
use std::sync::Arc;

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::{Value, json};

use crate::config::ModelConfig;
use crate::lora::layout::{Layout, Slot};
use crate::lora::{Adapter, LoraConfig, Module};
use crate::weights::widen;

/// Why an adapter cannot be made or read.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    #[error(
        "target module {name:?} is not known; known are q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"
    )]
    UnknownModule { name: String },
    #[error("target_modules names no module")]
    NoTargets,
    #[error(
        "r = {r} with lora_alpha = {lora_alpha} cannot be: r is in 1..=the model's width, lora_alpha is finite"
    )]
    BadRank { r: usize, lora_alpha: f32 },
    #[error("adapter_config.json is not valid: {0}")]
    MalformedConfig(String),
    #[error("adapter_config.json has {key} = {value}, which is not supported")]
    Unsupported { key: String, value: String },
    #[error("the adapter's safetensors are not valid: {0}")]
    MalformedTensors(#[from] safetensors::SafeTensorError),
    #[error("tensor {name} is missing")]
    MissingTensor { name: String },
    #[error("tensor {name} belongs to no targeted module of the model")]
    UnexpectedTensor { name: String },
    #[error("tensor {name} is {found}, not {expected}")]
    WrongTensor {
        name: String,
        found: String,
        expected: String,
    },
}

/// The version of PEFT whose `adapter_config.json` is written.
const PEFT_VERSION: &str = "0.21.2";

/// What PEFT writes, and the only values with which an adapter is plain LoRA.
fn plain_lora() -> Value {
    json!({
        "alora_invocation_tokens": null, "alpha_pattern": {}, "arrow_config": null, "auto_mapping": null,
        "bias": "none", "corda_config": null, "ensure_weight_tying": false, "eva_config": null,
        "exclude_modules": null, "fan_in_fan_out": false, "inference_mode": true, "init_lora_weights": true,
        "layer_replication": null, "layers_pattern": null, "layers_to_transform": null, "loftq_config": {},
        "lora_bias": false, "lora_dropout": 0.0, "megatron_config": null, "megatron_core": "megatron.core",
        "modules_to_save": null, "peft_type": "LORA", "qalora_group_size": 16, "rank_pattern": {},
        "revision": null, "target_parameters": null, "task_type": "CAUSAL_LM",
        "trainable_token_indices": null, "use_dora": false, "use_qalora": false, "use_rslora": false,
    })
}

/// Keys of [`plain_lora`] whose value changes nothing of the function the adapter computes.
const HARMLESS: [&str; 7] = [
    "auto_mapping",
    "inference_mode",
    "init_lora_weights",
    "lora_dropout",
    "megatron_core",
    "qalora_group_size",
    "revision",
];

impl Adapter {
    /// `adapter_model.safetensors`: PEFT's tensor names, f32.
    pub fn to_safetensors(&self) -> Vec<u8> {
        let mut tensors: Vec<(String, Vec<usize>, &[f32])> = Vec::new();
        for slot in self.layout().slots() {
            let [a, b] = names(slot);
            tensors.push((
                a,
                vec![self.layout().r, slot.n_in],
                &self.values()[slot.a.clone()],
            ));
            tensors.push((
                b,
                vec![slot.n_out, self.layout().r],
                &self.values()[slot.b.clone()],
            ));
        }
        serialize(
            tensors,
            HashMap::from([("format".to_owned(), "pt".to_owned())]),
        )
    }

    /// `adapter_config.json` with every key that PEFT writes.
    pub fn config_json(&self, base_model_name_or_path: &str) -> String {
        let mut file = plain_lora();
        let mut targets = self.config().target_modules.clone();
        targets.sort();
        targets.dedup();
        file["base_model_name_or_path"] = json!(base_model_name_or_path);
        file["lora_alpha"] = whole_if_possible(self.config().lora_alpha);
        file["peft_version"] = json!(PEFT_VERSION);
        file["r"] = json!(self.config().r);
        file["target_modules"] = json!(targets);
        let sorted: std::collections::BTreeMap<_, _> = file
            .as_object()
            .expect("it is written as an object above")
            .clone()
            .into_iter()
            .collect();
        serde_json::to_string_pretty(&sorted).expect("a JSON value can be written")
    }

    /// Reads an adapter that PEFT, or this engine, has written; lower precisions are widened to f32.
    /// Errors: anything that would make the adapter another function than PEFT's, by name: nothing is skipped.
    pub fn from_peft(
        config_json: &str,
        safetensors: &[u8],
        model: &ModelConfig,
    ) -> Result<Self, AdapterError> {
        let config = read_config(config_json)?;
        let layout = Layout::new(model, &config)?;
        let tensors = SafeTensors::deserialize(safetensors)?;
        let mut values = vec![0.0; layout.n_values()];
        for slot in layout.slots() {
            let [a, b] = names(slot);
            read_tensor(
                &tensors,
                &a,
                &[layout.r, slot.n_in],
                &mut values[slot.a.clone()],
            )?;
            read_tensor(
                &tensors,
                &b,
                &[slot.n_out, layout.r],
                &mut values[slot.b.clone()],
            )?;
        }
        let known: std::collections::HashSet<String> =
            layout.slots().iter().flat_map(names).collect();
        match tensors
            .names()
            .into_iter()
            .find(|name| !known.contains(*name))
        {
            Some(name) => Err(AdapterError::UnexpectedTensor {
                name: name.to_owned(),
            }),
            None => Ok(Self::from_parts(config, Arc::new(layout), values)),
        }
    }
}

/// The names of A and B.
pub(crate) fn names(slot: &Slot) -> [String; 2] {
    let module = format!(
        "base_model.model.model.layers.{}.{}",
        slot.layer,
        slot.module.path()
    );
    [
        format!("{module}.lora_A.weight"),
        format!("{module}.lora_B.weight"),
    ]
}

/// One safetensors file of f32 tensors.
pub(crate) fn serialize(
    tensors: Vec<(String, Vec<usize>, &[f32])>,
    metadata: HashMap<String, String>,
) -> Vec<u8> {
    let views = tensors.into_iter().map(|(name, shape, values)| {
        let bytes = bytemuck::cast_slice(values);
        (
            name,
            TensorView::new(Dtype::F32, shape, bytes)
                .expect("shape and bytes agree — a bug in the layout"),
        )
    });
    safetensors::serialize(views, Some(metadata))
        .expect("names are distinct and shapes agree — a bug in the layout")
}

fn read_tensor(
    tensors: &SafeTensors<'_>,
    name: &str,
    shape: &[usize],
    out: &mut [f32],
) -> Result<(), AdapterError> {
    let view = tensors
        .tensor(name)
        .map_err(|_| AdapterError::MissingTensor {
            name: name.to_owned(),
        })?;
    if view.shape() != shape || !matches!(view.dtype(), Dtype::F32 | Dtype::BF16 | Dtype::F16) {
        return Err(AdapterError::WrongTensor {
            name: name.to_owned(),
            found: format!("{:?} {:?}", view.dtype(), view.shape()),
            expected: format!("F32, BF16 or F16 {shape:?}"),
        });
    }
    widen(view.dtype(), view.data(), out);
    match out.iter().find(|x| !x.is_finite()) {
        Some(x) => Err(AdapterError::WrongTensor {
            name: name.to_owned(),
            found: format!("not finite ({x})"),
            expected: "finite".to_owned(),
        }),
        None => Ok(()),
    }
}

fn read_config(text: &str) -> Result<LoraConfig, AdapterError> {
    let file: Value = serde_json::from_str(text)
        .map_err(|error| AdapterError::MalformedConfig(error.to_string()))?;
    let file = file
        .as_object()
        .ok_or_else(|| AdapterError::MalformedConfig("it is not an object".to_owned()))?;
    let plain = plain_lora();
    for (key, value) in file {
        let expected = plain.get(key);
        let is_plain =
            expected.is_none_or(|expected| value == expected || means_nothing(value, expected));
        if !is_plain && !HARMLESS.contains(&key.as_str()) {
            return Err(AdapterError::Unsupported {
                key: key.clone(),
                value: value.to_string(),
            });
        }
    }
    let missing =
        |key: &str| AdapterError::MalformedConfig(format!("{key} is missing or of the wrong type"));
    let r = file
        .get("r")
        .and_then(Value::as_u64)
        .ok_or_else(|| missing("r"))?;
    let lora_alpha = file
        .get("lora_alpha")
        .and_then(Value::as_f64)
        .ok_or_else(|| missing("lora_alpha"))?;
    Ok(LoraConfig {
        r: r as usize,
        lora_alpha: lora_alpha as f32,
        target_modules: read_targets(
            file.get("target_modules")
                .ok_or_else(|| missing("target_modules"))?,
        )?,
    })
}

/// Other versions of PEFT write null, false or an empty map for "not used".
fn means_nothing(value: &Value, expected: &Value) -> bool {
    let empty = |v: &Value| {
        matches!(v, Value::Null | Value::Bool(false)) || v.as_object().is_some_and(|o| o.is_empty())
    };
    empty(value) && empty(expected)
}

fn read_targets(value: &Value) -> Result<Vec<String>, AdapterError> {
    if value == "all-linear" {
        return Ok(LoraConfig::default().target_modules);
    }
    let unsupported = || AdapterError::Unsupported {
        key: "target_modules".to_owned(),
        value: value.to_string(),
    };
    let named: Option<Vec<&str>> = value
        .as_array()
        .and_then(|names| names.iter().map(Value::as_str).collect());
    let named = named.ok_or_else(unsupported)?;
    if let Some(name) = named
        .iter()
        .find(|name| !Module::ALL.iter().any(|module| module.name() == **name))
    {
        return Err(AdapterError::UnknownModule {
            name: (*name).to_owned(),
        });
    }
    // The block's order: two adapters with the same targets have the same layout.
    Ok(Module::ALL
        .map(Module::name)
        .into_iter()
        .filter(|name| named.contains(name))
        .map(str::to_owned)
        .collect())
}

/// PEFT writes 32, not 32.0.
fn whole_if_possible(x: f32) -> Value {
    if x.fract() == 0.0 && x.abs() < 1e9 {
        json!(x as i64)
    } else {
        json!(x)
    }
}
