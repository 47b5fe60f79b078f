//! What a client orders when it creates a fine-tuning job.

use domain::hyperparameters::{Auto, BATCH_SIZE, Hyperparameters, N_EPOCHS};
use domain::id::FileId;
use domain::method::Method;
use domain::preference::{MIN_KTO_BATCH, Preference, PreferenceLoss};
use poem_openapi::Object;
use serde_json::Value;

use super::decode::{At, Fields, metadata};
use super::number_or_auto::NumberOrAuto;
use super::x_training::{XTrainingOrder, XTrainingRequest, x_training};
use crate::body::Decode;
use crate::error::ApiError;

/// The body of `POST /v1/fine_tuning/jobs`.
#[derive(Debug, Clone, PartialEq, Object)]
pub struct CreateFineTuningJobRequest {
    /// A model of `GET /v1/models`: a base model, or a tuned one to go on from.
    pub model: String,
    /// A file with purpose `fine-tune`: JSONL, one conversation a line, at least ten.
    pub training_file: String,
    /// As `training_file`; its loss is measured while training.
    pub validation_file: Option<String>,
    /// 1–64 characters of `[A-Za-z0-9_.-]`, a part of the tuned model's name.
    pub suffix: Option<String>,
    /// 0 to 2147483647; drawn when absent.
    pub seed: Option<i64>,
    pub method: Option<MethodRequest>,
    /// Deprecated: those of `method` stand above these.
    pub hyperparameters: Option<HyperparametersRequest>,
    /// At most 16 pairs of strings; keys up to 64, values up to 512 characters.
    pub metadata: Option<std::collections::BTreeMap<String, String>>,
    /// Must be empty or absent: none is supported yet.
    pub integrations: Option<Vec<Value>>,
    pub x_training: Option<XTrainingRequest>,
}

/// How to train.
#[derive(Debug, Clone, PartialEq, Object)]
pub struct MethodRequest {
    /// `supervised` or `dpo`.
    pub r#type: String,
    pub supervised: Option<SupervisedRequest>,
    pub dpo: Option<DpoRequest>,
}

#[derive(Debug, Clone, PartialEq, Object)]
pub struct SupervisedRequest {
    pub hyperparameters: Option<HyperparametersRequest>,
}

#[derive(Debug, Clone, PartialEq, Object)]
pub struct DpoRequest {
    pub hyperparameters: Option<DpoHyperparametersRequest>,
}

/// Each is a number or `auto`, the default.
#[derive(Debug, Clone, PartialEq, Object)]
pub struct HyperparametersRequest {
    /// 1–50.
    pub n_epochs: Option<NumberOrAuto<u32>>,
    /// 1–256 examples an optimizer step.
    pub batch_size: Option<NumberOrAuto<u32>>,
    /// Above 0; scales the learning rate that suits the base model.
    pub learning_rate_multiplier: Option<NumberOrAuto<f64>>,
}

/// As for `supervised`, and `beta`.
#[derive(Debug, Clone, PartialEq, Object)]
pub struct DpoHyperparametersRequest {
    /// Above 0, at most 2.
    pub beta: Option<NumberOrAuto<f64>>,
    pub n_epochs: Option<NumberOrAuto<u32>>,
    pub batch_size: Option<NumberOrAuto<u32>>,
    pub learning_rate_multiplier: Option<NumberOrAuto<f64>>,
    /// What is minimised, by TRL's name: `sigmoid` (DPO, the default), `robust`, `hinge`, `ipo`, `exo_pair`, `nca_pair`, `bco_pair`,
    /// `sppo_hard`, `apo_zero`, `apo_down`, `aot`, `aot_unpaired`; without a reference `orpo`, `simpo`, `cpo`; and `kto`, which takes
    /// conversations with a `label` in place of pairs, and at least 2 a step.
    pub x_loss_type: Option<String>,
    /// From 0 to below 0.5: part of the pairs that are taken to be the wrong way round. For `sigmoid`, `robust`, `aot`, `aot_unpaired`
    /// and `exo_pair`, which needs one.
    pub x_label_smoothing: Option<f64>,
    /// From 0 to 10: by how much the better answer should be ahead, for `simpo`; 0.5 when absent.
    pub x_simpo_gamma: Option<f64>,
    /// From 0 to 100: how much the better answer's mean −log p counts beside the loss. Not for `kto`.
    pub x_pref_ftx: Option<f64>,
    /// Above 0, at most 100: how much an answer with `label` true counts, for `kto`; 1 when absent.
    pub x_desirable_weight: Option<f64>,
    /// The same of an answer with `label` false.
    pub x_undesirable_weight: Option<f64>,
}

/// The order, judged as far as it can be without looking at anything else.
#[derive(Debug, Clone, PartialEq)]
pub struct JobOrder {
    pub model: String,
    pub training_file: String,
    pub validation_file: Option<String>,
    pub suffix: Option<String>,
    pub seed: Option<u32>,
    pub method: Method,
    pub metadata: Option<Vec<(String, String)>>,
    pub x_training: Option<XTrainingOrder>,
}

impl Decode for JobOrder {
    type Schema = CreateFineTuningJobRequest;

    fn decode(mut body: Fields) -> Result<Self, ApiError> {
        let order = Self {
            model: body.require("model")?.string()?,
            training_file: body.require("training_file")?.string()?,
            validation_file: body.take("validation_file").map(At::string).transpose()?,
            suffix: body.take("suffix").map(suffix).transpose()?,
            seed: body.take("seed").map(seed).transpose()?,
            method: method(&mut body)?,
            metadata: body.take("metadata").map(metadata).transpose()?,
            x_training: body.take("x_training").map(x_training).transpose()?,
        };
        refuse_integrations(&mut body)?;
        body.finish()?;
        Ok(order)
    }
}

fn suffix(at: At) -> Result<String, ApiError> {
    let text = at.string_up_to(64)?;
    if !domain::model::is_valid_suffix(&text) {
        let message = "Invalid 'suffix': expected 1 to 64 letters, digits, '.', '_' or '-': it becomes a part of the \
                       model's name.";
        return Err(ApiError::invalid("suffix", "invalid_value", message));
    }
    Ok(text)
}

fn seed(at: At) -> Result<u32, ApiError> {
    let seed = at.integer(0..=i64::from(i32::MAX))?;
    Ok(u32::try_from(seed).expect("within 0 to 2^31 − 1 — a bug in At::integer"))
}

/// `method`, or the deprecated `hyperparameters` beside it.
pub(super) fn method(body: &mut Fields) -> Result<Method, ApiError> {
    let legacy = body
        .take("hyperparameters")
        .map(hyperparameters)
        .transpose()?;
    let Some(method) = body.take("method") else {
        return Ok(Method::Supervised {
            hyperparameters: legacy.unwrap_or_default(),
        });
    };
    let mut method = method.object()?;
    let name = method
        .require("type")?
        .one_of(&["supervised", "dpo", "reinforcement"])?;
    let read = match name {
        "supervised" => supervised(&mut method, legacy)?,
        "dpo" => dpo(&mut method)?,
        _ => {
            let message = "Unsupported value: 'method.type' does not support 'reinforcement' with this service.";
            return Err(ApiError::unsupported("method.type", message));
        }
    };
    method.finish()?;
    Ok(read)
}

fn supervised(method: &mut Fields, legacy: Option<Hyperparameters>) -> Result<Method, ApiError> {
    let mut given = None;
    if let Some(config) = method.take("supervised") {
        let mut config = config.object()?;
        given = config
            .take("hyperparameters")
            .map(hyperparameters)
            .transpose()?;
        config.finish()?;
    }
    Ok(Method::Supervised {
        hyperparameters: given.or(legacy).unwrap_or_default(),
    })
}

fn dpo(method: &mut Fields) -> Result<Method, ApiError> {
    let (mut preference, mut common) = (Preference::default(), Hyperparameters::default());
    if let Some(config) = method.take("dpo") {
        let mut config = config.object()?;
        if let Some(fields) = config.take("hyperparameters") {
            let mut fields = fields.object()?;
            preference = self::preference(&mut fields)?;
            common = common_hyperparameters(&mut fields)?;
            fields.finish()?;
        }
        config.finish()?;
    }
    let is_alone = matches!(common.batch_size, Auto::Given(n) if n < MIN_KTO_BATCH);
    if is_alone && preference.loss_type == PreferenceLoss::Kto {
        let param = "method.dpo.hyperparameters.batch_size";
        let message = format!(
            "Invalid '{param}': x_loss_type 'kto' compares the answers of a batch; expected at least {MIN_KTO_BATCH}, or 'auto'."
        );
        return Err(ApiError::invalid(param, "invalid_value", message));
    }
    Ok(Method::Dpo {
        preference,
        hyperparameters: common,
    })
}

fn preference(fields: &mut Fields) -> Result<Preference, ApiError> {
    let mut read = Preference::default();
    if let Some(at) = fields.take("beta") {
        read.beta = auto(at, |at| at.decimal_above(0.0, 2.0))?;
    }
    if let Some(at) = fields.take("x_loss_type") {
        let name = at.one_of(&PreferenceLoss::ALL.map(PreferenceLoss::name))?;
        let mut known = PreferenceLoss::ALL.into_iter();
        read.loss_type = known
            .find(|loss| loss.name() == name)
            .expect("one of the names — a bug in At::one_of");
    }
    let loss = read.loss_type;
    let unread = |leaf: &str, by: &str| {
        let param = format!("method.dpo.hyperparameters.{leaf}");
        let message = format!(
            "Invalid '{param}': x_loss_type '{}' does not read it, {by} would.",
            loss.name()
        );
        Err(ApiError::invalid(&param, "invalid_value", message))
    };
    if let Some(at) = fields.take("x_label_smoothing") {
        read.label_smoothing = at.decimal_below(0.0, 0.5)?;
        if read.label_smoothing > 0.0 && !loss.is_smoothed() {
            return unread(
                "x_label_smoothing",
                "'sigmoid', 'robust', 'exo_pair', 'aot' and 'aot_unpaired'",
            );
        }
    }
    if loss == PreferenceLoss::ExoPair && read.label_smoothing == 0.0 {
        let param = "method.dpo.hyperparameters.x_label_smoothing";
        let message =
            format!("Invalid '{param}': x_loss_type 'exo_pair' needs one above 0, such as 0.001.");
        return Err(ApiError::invalid(param, "invalid_value", message));
    }
    if let Some(at) = fields.take("x_simpo_gamma") {
        read.simpo_gamma = at.decimal(0.0, 10.0)?;
        if loss != PreferenceLoss::Simpo {
            return unread("x_simpo_gamma", "'simpo'");
        }
    }
    if let Some(at) = fields.take("x_pref_ftx") {
        read.pref_ftx = at.decimal(0.0, 100.0)?;
        if read.pref_ftx > 0.0 && loss == PreferenceLoss::Kto {
            return unread("x_pref_ftx", "every loss over pairs");
        }
    }
    for (key, weight) in [
        ("x_desirable_weight", &mut read.desirable_weight),
        ("x_undesirable_weight", &mut read.undesirable_weight),
    ] {
        if let Some(at) = fields.take(key) {
            *weight = at.decimal_above(0.0, 100.0)?;
            if loss != PreferenceLoss::Kto {
                return unread(key, "'kto'");
            }
        }
    }
    Ok(read)
}

fn hyperparameters(at: At) -> Result<Hyperparameters, ApiError> {
    let mut fields = at.object()?;
    let read = common_hyperparameters(&mut fields)?;
    fields.finish()?;
    Ok(read)
}

fn common_hyperparameters(fields: &mut Fields) -> Result<Hyperparameters, ApiError> {
    let count = |range: std::ops::RangeInclusive<u32>| {
        move |at: At| {
            let value = at.integer(i64::from(*range.start())..=i64::from(*range.end()))?;
            Ok(u32::try_from(value).expect("within a range of u32 — a bug in At::integer"))
        }
    };
    let mut read = Hyperparameters::default();
    if let Some(at) = fields.take("n_epochs") {
        read.n_epochs = auto(at, count(N_EPOCHS))?;
    }
    if let Some(at) = fields.take("batch_size") {
        read.batch_size = auto(at, count(BATCH_SIZE))?;
    }
    if let Some(at) = fields.take("learning_rate_multiplier") {
        read.learning_rate_multiplier = auto(at, |at| at.decimal_above(0.0, 1e6))?;
    }
    Ok(read)
}

/// `"auto"` or what `read` makes of it.
fn auto<T>(at: At, read: impl FnOnce(At) -> Result<T, ApiError>) -> Result<Auto<T>, ApiError> {
    if at.is_string() {
        at.one_of(&["auto"])?;
        return Ok(Auto::Auto);
    }
    read(at).map(Auto::Given)
}

/// An integration that is silently dropped would be a lie; there are none yet.
fn refuse_integrations(body: &mut Fields) -> Result<(), ApiError> {
    let Some(at) = body.take("integrations") else {
        return Ok(());
    };
    if at.items(0, 5)?.is_empty() {
        return Ok(());
    }
    let message = "Unsupported parameter: 'integrations'. This service reports to no third party; metrics are in the \
                   job's events and its result file.";
    Err(ApiError::invalid(
        "integrations",
        "unsupported_parameter",
        message,
    ))
}

/// A file id of the request, or OpenAI's refusal of it.
pub fn file_id(param: &'static str, text: &str) -> Result<FileId, ApiError> {
    FileId::parse(text).map_err(|_| unknown_file(param, text))
}

/// The file is not there, or not the caller's: the same answer for both.
pub fn unknown_file(param: &'static str, text: &str) -> ApiError {
    let message = format!("invalid {param}: {}", super::decode::echo(text));
    ApiError::invalid(param, "invalid_value", message)
}
