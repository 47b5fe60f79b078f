//! What is refused at creation: what does not go together.

use super::{BaseWeights, DataFormat, Init, Training, Truncation};
use crate::method::Method;

/// Why `x_training` is not taken: a parameter contradicts another one, the base model or the adapter that is continued.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{param}: {reason}")]
pub struct Refusal {
    /// The parameter's path in the request, such as `x_training.adapter.r`.
    pub param: String,
    /// Follows on the parameter's name and a colon.
    pub reason: String,
}

impl Refusal {
    /// `path` below `x_training`.
    pub(super) fn conflict(path: &str, reason: impl Into<String>) -> Self {
        Self {
            param: format!("x_training.{path}"),
            reason: reason.into(),
        }
    }
}

impl Training {
    /// Judges what the method does not allow.
    pub fn check_method(&self, method: &Method) -> Result<(), Refusal> {
        let is_split = self.data.truncation == Truncation::Split;
        if is_split && method.preference().is_some() {
            let reason = "an answer in pieces cannot be compared; 'left' keeps its end, 'drop' leaves the row out";
            return Err(Refusal::conflict("data.truncation", reason));
        }
        let is_text = self.data.format == DataFormat::PromptCompletion;
        if is_text && method.preference().is_some() {
            let reason = "a prompt has one completion there and no label; write answers to compare as 'chat', 'alpaca', 'sharegpt' or 'query_response'";
            return Err(Refusal::conflict("data.format", reason));
        }
        Ok(())
    }
}

/// Judges a training whose every leaf is known. `context_length`: of its base model, in tokens.
pub(super) fn check(training: &Training, context_length: u32) -> Result<(), Refusal> {
    let (adapter, precision) = (&training.adapter, &training.precision);
    if training.data.max_length > context_length {
        let reason = format!("the base model reads at most {context_length} tokens");
        return Err(Refusal::conflict("data.max_length", reason));
    }
    let is_quantised = match precision.base_weights {
        BaseWeights::Stored | BaseWeights::Bf16 => false,
        BaseWeights::Int8 | BaseWeights::Fp8 | BaseWeights::Nf4 => true,
    };
    if adapter.init == Init::Pissa {
        if adapter.use_dora {
            let reason = "'pissa' and use_dora both decompose the weight; ask for one of them";
            return Err(Refusal::conflict("adapter.init", reason));
        }
        if adapter.dropout > 0.0 {
            let reason = "'pissa' takes its start out of the base, which dropout does not touch";
            return Err(Refusal::conflict("adapter.init", reason));
        }
        if is_quantised {
            let reason = "'pissa' changes the base's weights, which quantised ones do not allow";
            return Err(Refusal::conflict("adapter.init", reason));
        }
    }
    Ok(())
}
