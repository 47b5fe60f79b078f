//! `x_training`: how a job trains beyond OpenAI's parameters, as a client orders it and as a job shows it.

use domain::hyperparameters::Auto;
use domain::x_training::{
    AdapterType, AskedAdapter, AskedTraining, BaseWeights, Bias, Compute, DataFormat,
    GradientCheckpointing, Init, Packing, Pairs, R, Refusal, TargetModules, Truncation, XTraining,
};
use poem_openapi::Object;
use serde_json::{Map, Value};

use super::decode::{At, Fields};
use crate::error::ApiError;

/// Names and patterns of one list or map.
const MAX_NAMES: usize = 256;
/// Characters of a module's name, a pattern or a model's name.
const MAX_TEXT: usize = 512;
/// An alpha is a scale; beyond, training only diverges.
const MAX_ALPHA: f64 = 1e6;

/// Options beyond OpenAI's; every one of them may be left out. The job shows what each became under `resolved`.
#[derive(Debug, Clone, PartialEq, Object)]
pub struct XTrainingRequest {
    pub adapter: Option<AdapterRequest>,
    pub optimizer: Option<OptimizerRequest>,
    pub precision: Option<PrecisionRequest>,
    pub memory: Option<MemoryRequest>,
    pub data: Option<DataRequest>,
}

/// What is trained; names as in PEFT.
#[derive(Debug, Clone, PartialEq, Object)]
pub struct AdapterRequest {
    /// `lora`.
    pub r#type: Option<String>,
    /// Rank, 1–1024; 16 by default.
    pub r: Option<u32>,
    /// Scale, over `r`, or over its root with `use_rslora`; twice `r` by default.
    pub alpha: Option<f64>,
    /// 0 to below 1.
    pub dropout: Option<f64>,
    /// A list of names, `all-linear` (the default), or a regular expression that matches whole names.
    pub target_modules: Option<Value>,
    /// Name or pattern to rank.
    pub rank_pattern: Option<Value>,
    /// Name or pattern to alpha.
    pub alpha_pattern: Option<Value>,
    pub use_rslora: Option<bool>,
    pub use_dora: Option<bool>,
    /// `none`, `all` or `lora_only`.
    pub bias: Option<String>,
    /// Names of modules that are trained whole.
    pub modules_to_save: Option<Vec<String>>,
    /// `default`, `gaussian` or `pissa`.
    pub init: Option<String>,
    /// A tuned model of the project, on the same base: training begins with its adapter, whose configuration stands.
    pub continue_from: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Object)]
pub struct OptimizerRequest {
    /// LoRA+: the learning rate of B over that of A, at least 1.
    pub loraplus_lr_ratio: Option<f64>,
}

#[derive(Debug, Clone, PartialEq, Object)]
pub struct PrecisionRequest {
    /// `auto` (`fp32` on a CPU, `bf16` on a GPU), `bf16` or `fp32`.
    pub compute: Option<String>,
    /// `bf16`, all that there is on a GPU: with it, `fp32` is for a CPU alone, as with `auto`.
    pub compute_on_gpu: Option<String>,
    /// `auto` or `stored` (as the model's files hold them), `bf16`, `int8`, `fp8` or `nf4`.
    pub base_weights: Option<String>,
    /// With `nf4` only.
    pub double_quant: Option<bool>,
}

#[derive(Debug, Clone, PartialEq, Object)]
pub struct MemoryRequest {
    /// `auto`, `none`, `selective` or `full`.
    pub gradient_checkpointing: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Object)]
pub struct DataRequest {
    /// How the rows of the files are written: `auto` (as OpenAI has them, the default) or `chat`, `alpaca`, `sharegpt`, `query_response`,
    /// `prompt_completion`.
    pub format: Option<String>,
    /// Tokens of an example; the context of the base model by default, and at most.
    pub max_length: Option<u32>,
    /// What becomes of longer ones: `error`, `left`, `right` (the default: the end is cut off), `drop` or `split`.
    pub truncation: Option<String>,
    /// `none`, `greedy` or `binpack`.
    pub packing: Option<String>,
}

/// The order, and how it was written.
#[derive(Debug, Clone, PartialEq)]
pub struct XTrainingOrder {
    pub asked: AskedTraining,
    pub raw: Value,
}

/// Reads the object. Errors: 400 that names the key by its path.
pub fn x_training(at: At) -> Result<XTrainingOrder, ApiError> {
    let path = at.path.clone();
    let raw = at.value();
    let mut fields = At::new(path, raw.clone()).object()?;
    let mut asked = AskedTraining::default();
    section(&mut fields, "adapter", |fields| {
        asked.adapter = adapter(fields)?;
        Ok(())
    })?;
    section(&mut fields, "optimizer", |fields| {
        let ratio = fields.take("loraplus_lr_ratio");
        asked.loraplus_lr_ratio = ratio.map(|at| at.decimal(1.0, 1e6)).transpose()?;
        Ok(())
    })?;
    section(&mut fields, "precision", |fields| {
        asked.compute = word_or_auto(fields.take("compute"), Compute::WORDS, Compute::parse)?;
        let on_gpu = word(fields.take("compute_on_gpu"), &["bf16"], Compute::parse)?;
        if on_gpu.is_some() && asked.compute == Auto::Given(Compute::Fp32) {
            // What a job shows of `auto`.
            asked.compute = Auto::Auto;
        }
        let base_weights = fields.take("base_weights");
        asked.base_weights = word_or_auto(base_weights, BaseWeights::WORDS, BaseWeights::parse)?;
        asked.double_quant = boolean(fields, "double_quant")?;
        Ok(())
    })?;
    section(&mut fields, "memory", |fields| {
        let (words, parse) = (GradientCheckpointing::WORDS, GradientCheckpointing::parse);
        asked.gradient_checkpointing = word(fields.take("gradient_checkpointing"), words, parse)?;
        Ok(())
    })?;
    section(&mut fields, "data", |fields| {
        let format = fields.take("format");
        asked.format = word_or_auto(format, DataFormat::WORDS, DataFormat::parse)?;
        asked.max_length = count(fields.take("max_length"), 2..=i64::from(i32::MAX))?;
        let truncation = fields.take("truncation");
        asked.truncation = word(truncation, Truncation::WORDS, Truncation::parse)?;
        asked.packing = word(fields.take("packing"), Packing::WORDS, Packing::parse)?;
        Ok(())
    })?;
    fields.finish()?;
    Ok(XTrainingOrder { asked, raw })
}

fn adapter(fields: &mut Fields) -> Result<AskedAdapter, ApiError> {
    word(fields.take("type"), AdapterType::WORDS, AdapterType::parse)?;
    let alpha = |at: At| at.decimal_above(0.0, MAX_ALPHA);
    let rank = |at: At| Ok(count(Some(at), ranks())?.unwrap_or_default());
    Ok(AskedAdapter {
        r: count(fields.take("r"), ranks())?,
        alpha: fields.take("alpha").map(alpha).transpose()?,
        dropout: fields
            .take("dropout")
            .map(|at| at.decimal_below(0.0, 1.0))
            .transpose()?,
        target_modules: fields
            .take("target_modules")
            .map(target_modules)
            .transpose()?,
        rank_pattern: pattern(fields.take("rank_pattern"), rank)?,
        alpha_pattern: pattern(fields.take("alpha_pattern"), alpha)?,
        use_rslora: boolean(fields, "use_rslora")?,
        use_dora: boolean(fields, "use_dora")?,
        bias: word(fields.take("bias"), Bias::WORDS, Bias::parse)?,
        modules_to_save: fields
            .take("modules_to_save")
            .map(|at| names(at, 0))
            .transpose()?,
        init: word(fields.take("init"), Init::WORDS, Init::parse)?,
        continue_from: fields
            .take("continue_from")
            .map(|at| at.string_up_to(MAX_TEXT))
            .transpose()?,
    })
}

fn ranks() -> std::ops::RangeInclusive<i64> {
    i64::from(*R.start())..=i64::from(*R.end())
}

/// The object under `key`, every field of which `read` knows.
fn section(
    fields: &mut Fields,
    key: &str,
    read: impl FnOnce(&mut Fields) -> Result<(), ApiError>,
) -> Result<(), ApiError> {
    let Some(at) = fields.take(key) else {
        return Ok(());
    };
    let mut inner = at.object()?;
    read(&mut inner)?;
    inner.finish()
}

fn boolean(fields: &mut Fields, key: &str) -> Result<Option<bool>, ApiError> {
    fields.take(key).map(At::boolean).transpose()
}

fn count(at: Option<At>, range: std::ops::RangeInclusive<i64>) -> Result<Option<u32>, ApiError> {
    let Some(at) = at else {
        return Ok(None);
    };
    let value = at.integer(range)?;
    Ok(Some(
        u32::try_from(value).expect("within a range of u32 — a bug in At::integer"),
    ))
}

fn word<T>(
    at: Option<At>,
    words: &[&'static str],
    parse: fn(&str) -> Option<T>,
) -> Result<Option<T>, ApiError> {
    Ok(match at {
        Some(at) => parse(at.one_of(words)?),
        None => None,
    })
}

fn word_or_auto<T>(
    at: Option<At>,
    words: &[&'static str],
    parse: fn(&str) -> Option<T>,
) -> Result<Auto<T>, ApiError> {
    let words: Vec<&'static str> = ["auto"].iter().chain(words).copied().collect();
    let given = word(at, &words, parse)?;
    Ok(given.map_or(Auto::Auto, Auto::Given))
}

fn target_modules(at: At) -> Result<TargetModules, ApiError> {
    if at.is_array() {
        return names(at, 1).map(TargetModules::Named);
    }
    if !at.is_string() {
        return Err(at.wrong_type("a string or an array of strings"));
    }
    at.string_up_to(MAX_TEXT).map(TargetModules::Pattern)
}

fn names(at: At, min: usize) -> Result<Vec<String>, ApiError> {
    let items = at.items(min, MAX_NAMES)?;
    items
        .into_iter()
        .map(|at| at.string_up_to(MAX_TEXT))
        .collect()
}

fn pattern<T>(
    at: Option<At>,
    read: impl Fn(At) -> Result<T, ApiError>,
) -> Result<Option<Pairs<T>>, ApiError> {
    let Some(at) = at else {
        return Ok(None);
    };
    let mut pairs = Vec::new();
    for (key, value) in at.pairs(MAX_NAMES)? {
        // A key is bounded like every other text of a request; its length is judged as a value's.
        At::new(value.path.clone(), key.as_str().into()).string_up_to(MAX_TEXT)?;
        pairs.push((key, read(value)?));
    }
    Ok(Some(Pairs(pairs)))
}

/// What a client reads of a refusal that needed the base model's or the adapter's word.
pub fn refused(refusal: Refusal) -> ApiError {
    let Refusal { param, reason } = refusal;
    let message = format!("Invalid '{param}': {reason}.");
    ApiError::invalid(param, "invalid_value", message)
}

/// What was asked for, as it was written, and under `resolved` what every leaf became.
pub fn shown(x_training: &XTraining) -> Value {
    let mut object = match &x_training.asked {
        Some(Value::Object(asked)) => asked.clone(),
        _ => Map::new(),
    };
    let resolved = serde_json::to_value(&x_training.resolved);
    let resolved = resolved.expect("it is stored as JSON too — a bug in x_training");
    object.insert("resolved".to_owned(), resolved);
    Value::Object(object)
}
