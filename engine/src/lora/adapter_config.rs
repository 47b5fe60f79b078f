//! Owns `adapter_config.json`, as PEFT writes and reads it.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::lora::{AdapterError, Bias, Init, LoraConfig, TargetModules};

/// The version of PEFT whose file is written.
const PEFT_VERSION: &str = "0.21.2";

/// What PEFT writes where nothing is asked for: the only values of the keys that the engine has no field for.
fn defaults() -> Value {
    json!({
        "alora_invocation_tokens": null, "arrow_config": null, "auto_mapping": null,
        "corda_config": null, "ensure_weight_tying": false, "eva_config": null,
        "fan_in_fan_out": false, "inference_mode": true,
        "layer_replication": null, "layers_pattern": null, "loftq_config": {},
        "lora_bias": false, "megatron_config": null, "megatron_core": "megatron.core",
        "peft_type": "LORA", "qalora_group_size": 16,
        "revision": null, "target_parameters": null, "task_type": "CAUSAL_LM",
        "trainable_token_indices": null, "use_qalora": false,
    })
}

/// Keys whose value changes nothing of the function the adapter computes, given `init_lora_weights`.
const HARMLESS: [&str; 11] = [
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "eva_config",
    "inference_mode",
    "loftq_config",
    "lora_ga_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
];

/// Keys that become fields of [`LoraConfig`].
const READ: [&str; 13] = [
    "alpha_pattern",
    "bias",
    "exclude_modules",
    "init_lora_weights",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "modules_to_save",
    "r",
    "rank_pattern",
    "target_modules",
    "use_dora",
    "use_rslora",
];

/// The file's text, keys in order; `linears` are those of the model that "all-linear" means.
pub(crate) fn write(
    config: &LoraConfig,
    linears: &[&str],
    base_model_name_or_path: &str,
) -> String {
    let write_modules = |modules| write_modules(modules, linears);
    let mut file = defaults();
    file["base_model_name_or_path"] = json!(base_model_name_or_path);
    file["peft_version"] = json!(PEFT_VERSION);
    file["r"] = json!(config.r);
    file["lora_alpha"] = whole_if_possible(config.lora_alpha);
    file["lora_dropout"] = short(config.lora_dropout);
    file["target_modules"] = write_modules(&config.target_modules);
    file["exclude_modules"] = json!(config.exclude_modules.as_ref().map(write_modules));
    file["layers_to_transform"] = json!(config.layers_to_transform);
    file["rank_pattern"] = write_pattern(&config.rank_pattern, |&r| json!(r));
    file["alpha_pattern"] = write_pattern(&config.alpha_pattern, |&alpha| whole_if_possible(alpha));
    file["use_rslora"] = json!(config.use_rslora);
    file["use_dora"] = json!(config.use_dora);
    file["bias"] = json!(config.bias.name());
    file["modules_to_save"] = match &*config.modules_to_save {
        [] => Value::Null,
        names => json!(names),
    };
    file["init_lora_weights"] = match config.init_lora_weights {
        Init::Default => json!(true),
        Init::Gaussian => json!("gaussian"),
        Init::Pissa => json!("pissa"),
    };
    let object = file.as_object().expect("it is written as an object above");
    let sorted: BTreeMap<_, _> = object.clone().into_iter().collect();
    serde_json::to_string_pretty(&sorted).expect("a JSON value can be written")
}

/// Errors: `MalformedConfig`, and `Unsupported` or `ChangedBase` for what makes an adapter another function than the
/// fields of [`LoraConfig`] say.
pub(crate) fn read(text: &str) -> Result<LoraConfig, AdapterError> {
    let file: Value = serde_json::from_str(text)
        .map_err(|error| AdapterError::MalformedConfig(error.to_string()))?;
    let file = file
        .as_object()
        .ok_or_else(|| AdapterError::MalformedConfig("it is not an object".to_owned()))?;
    check_the_rest(file)?;
    let file = File(file);
    let config = LoraConfig {
        r: file.required("r", as_usize)?,
        lora_alpha: file.required("lora_alpha", as_f32)?,
        target_modules: file.required("target_modules", read_targets)?,
        exclude_modules: file.optional("exclude_modules", read_modules)?,
        layers_to_transform: file.optional("layers_to_transform", read_layers)?,
        rank_pattern: file.or("rank_pattern", |v| read_pattern(v, as_usize), vec![])?,
        alpha_pattern: file.or("alpha_pattern", |v| read_pattern(v, as_f32), vec![])?,
        use_rslora: file.or("use_rslora", Value::as_bool, false)?,
        use_dora: file.or("use_dora", Value::as_bool, false)?,
        lora_dropout: file.or("lora_dropout", as_f32, 0.0)?,
        bias: file.or("bias", read_bias, Bias::None)?,
        modules_to_save: file.or("modules_to_save", as_names, vec![])?,
        init_lora_weights: read_init(file.0.get("init_lora_weights"))?,
    };
    Ok(config)
}

/// Refuses every key that is not read, unless it says nothing or what [`defaults`] has.
fn check_the_rest(file: &Map<String, Value>) -> Result<(), AdapterError> {
    let defaults = defaults();
    for (key, value) in file {
        let is_known = READ.contains(&key.as_str()) || HARMLESS.contains(&key.as_str());
        // An adapter that was made without a task has the same tensors.
        let says_nothing =
            is_empty(value) && (defaults.get(key).is_none_or(is_empty) || key == "task_type");
        let is_default = defaults.get(key) == Some(value)
            || (key == "layers_pattern" && names_of(value) == Some(vec!["layers".to_owned()]));
        if !(is_known || says_nothing || is_default) {
            return Err(AdapterError::Unsupported {
                key: key.clone(),
                value: value.to_string(),
            });
        }
    }
    Ok(())
}

/// Versions of PEFT differ in how they write that something is not used.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Object(object) => object.is_empty(),
        Value::Array(array) => array.is_empty(),
        _ => false,
    }
}

struct File<'a>(&'a Map<String, Value>);

impl File<'_> {
    fn required<T>(
        &self,
        key: &'static str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<T, AdapterError> {
        self.optional(key, read)?
            .ok_or_else(|| AdapterError::MalformedConfig(format!("{key} is missing")))
    }

    fn or<T>(
        &self,
        key: &'static str,
        read: impl Fn(&Value) -> Option<T>,
        default: T,
    ) -> Result<T, AdapterError> {
        Ok(self.optional(key, read)?.unwrap_or(default))
    }

    /// `None` where the key is missing or null.
    fn optional<T>(
        &self,
        key: &'static str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>, AdapterError> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match read(value) {
                Some(read) => Ok(Some(read)),
                None => Err(AdapterError::MalformedConfig(format!(
                    "{key} = {value} is of the wrong type"
                ))),
            },
        }
    }
}

/// What PEFT does to the base before it reads the tensors is done at the time of reading; B = 0 or not makes no difference.
fn read_init(value: Option<&Value>) -> Result<Init, AdapterError> {
    match value {
        None | Some(Value::Null | Value::Bool(_)) => Ok(Init::Default),
        Some(Value::String(name)) if name.eq_ignore_ascii_case("gaussian") => Ok(Init::Gaussian),
        Some(Value::String(name)) if name == "eva" || name == "orthogonal" => Ok(Init::Default),
        Some(value) => Err(AdapterError::ChangedBase {
            value: value.to_string(),
        }),
    }
}

fn read_bias(value: &Value) -> Option<Bias> {
    [Bias::None, Bias::All, Bias::LoraOnly]
        .into_iter()
        .find(|bias| value == bias.name())
}

fn read_targets(value: &Value) -> Option<TargetModules> {
    match value {
        Value::String(all) if all.eq_ignore_ascii_case("all-linear") => {
            Some(TargetModules::AllLinear)
        }
        value => read_modules(value),
    }
}

fn read_modules(value: &Value) -> Option<TargetModules> {
    match value {
        Value::String(pattern) => Some(TargetModules::Regex(pattern.clone())),
        value => as_names(value).map(TargetModules::List),
    }
}

fn write_modules(modules: &TargetModules, linears: &[&str]) -> Value {
    let sorted = |mut names: Vec<String>| {
        names.sort();
        names.dedup();
        json!(names)
    };
    match modules {
        TargetModules::AllLinear => sorted(linears.iter().map(|&name| name.to_owned()).collect()),
        TargetModules::List(names) => sorted(names.clone()),
        TargetModules::Regex(pattern) => json!(pattern),
    }
}

fn read_layers(value: &Value) -> Option<Vec<usize>> {
    match value {
        Value::Array(layers) => layers.iter().map(as_usize).collect(),
        value => Some(vec![as_usize(value)?]),
    }
}

fn read_pattern<T>(value: &Value, read: impl Fn(&Value) -> Option<T>) -> Option<Vec<(String, T)>> {
    let entries = value.as_object()?.iter();
    entries
        .map(|(key, value)| Some((key.clone(), read(value)?)))
        .collect()
}

fn write_pattern<T>(entries: &[(String, T)], write: impl Fn(&T) -> Value) -> Value {
    let entries = entries
        .iter()
        .map(|(key, value)| (key.clone(), write(value)));
    Value::Object(entries.collect())
}

fn as_names(value: &Value) -> Option<Vec<String>> {
    let names = value.as_array()?.iter();
    names.map(|name| name.as_str().map(str::to_owned)).collect()
}

/// One name, or a list.
fn names_of(value: &Value) -> Option<Vec<String>> {
    value
        .as_str()
        .map(|name| vec![name.to_owned()])
        .or_else(|| as_names(value))
}

fn as_usize(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|n| usize::try_from(n).ok())
}

fn as_f32(value: &Value) -> Option<f32> {
    value.as_f64().map(|x| x as f32)
}

/// PEFT writes 32, not 32.0.
fn whole_if_possible(x: f32) -> Value {
    if x.fract() == 0.0 && x.abs() < 1e9 {
        json!(x as i64)
    } else {
        short(x)
    }
}

/// 0.1 and not 0.10000000149.
fn short(x: f32) -> Value {
    x.to_string()
        .parse::<f64>()
        .map_or(Value::Null, |x| json!(x))
}
