//! What is refused at creation: what does not go together, and what the engine of this build cannot do yet.

use super::{BaseWeights, Init, Training};

/// Why `x_training` is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{param}: {reason}")]
pub struct Refusal {
    /// The parameter's path in the request, such as `x_training.adapter.r`.
    pub param: String,
    pub kind: RefusalKind,
    /// Follows on the parameter's name and a colon.
    pub reason: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalKind {
    /// It contradicts another parameter, the base model or the adapter that is continued.
    Conflict,
    /// The words are right; this build's engine cannot do it.
    NotYet,
}

impl Refusal {
    /// `path` below `x_training`.
    pub(super) fn conflict(path: &str, reason: impl Into<String>) -> Self {
        Self {
            param: format!("x_training.{path}"),
            kind: RefusalKind::Conflict,
            reason: reason.into(),
        }
    }
}

/// A path and whether a training asks for more than its ordinary value there.
type Wish = (&'static str, fn(&Training) -> bool);

/// What the engine of this build cannot do. A line goes when the engine can, and `gpu-worker/src/train/config.rs`
/// hands the value over.
const NOT_YET: [Wish; 1] = [("precision.base_weights", |t| {
    t.precision.base_weights != BaseWeights::Stored
})];

/// Judges a training whose every leaf is known. `context_length`: of its base model, in tokens.
pub(super) fn check(training: &Training, context_length: u32) -> Result<(), Refusal> {
    let (adapter, precision) = (&training.adapter, &training.precision);
    if training.data.max_length > context_length {
        let reason = format!("the base model reads at most {context_length} tokens");
        return Err(Refusal::conflict("data.max_length", reason));
    }
    let is_quantised = matches!(precision.base_weights, BaseWeights::Int8 | BaseWeights::Nf4);
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
    training.check_engine()
}

impl Training {
    /// Whether the engine of this build can do it. Errors: `NotYet`, by its path.
    pub fn check_engine(&self) -> Result<(), Refusal> {
        match NOT_YET.iter().find(|(_, is_asked)| is_asked(self)) {
            None => Ok(()),
            Some((path, _)) => Err(Refusal {
                param: format!("x_training.{path}"),
                kind: RefusalKind::NotYet,
                reason: "this value is not supported yet by this build's engine".to_owned(),
            }),
        }
    }
}
