//! Between domain values and columns. A column that does not read back is `Corrupt`, a value that does not fit is
//! `Invalid`; neither is ever silently another value.

use domain::id::InvalidId;
use domain::metrics::StepMetrics;
use domain::time::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::StoreError;

/// A count as a column.
pub fn int(value: u64) -> Result<i64, StoreError> {
    i64::try_from(value).map_err(|_| StoreError::Invalid(format!("{value} is too large a number")))
}

/// A column that holds a count.
pub fn unsigned<T: TryFrom<i64>>(value: i64) -> Result<T, StoreError> {
    T::try_from(value).map_err(|_| StoreError::Corrupt(format!("{value} where a count should be")))
}

/// Text from outside as a column. PostgreSQL cannot hold NUL, so neither database does.
pub fn text(field: &str, value: &str) -> Result<String, StoreError> {
    if value.contains('\0') {
        return Err(StoreError::Invalid(format!(
            "{field} contains a NUL character"
        )));
    }
    Ok(value.to_owned())
}

/// Text for people, where losing the line would be worse than showing U+FFFD for NUL.
pub fn shown(value: &str) -> String {
    value.replace('\0', "\u{fffd}")
}

pub fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("plain data becomes JSON — a bug in its Serialize")
}

pub fn from_json<T: DeserializeOwned>(column: &str, text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|e| StoreError::Corrupt(format!("{column}: {e}")))
}

/// An enum without data as its serde name.
pub fn code<T: Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(name)) => name,
        other => unreachable!("{other:?} is no name — a bug in its Serialize"),
    }
}

pub fn from_code<T: DeserializeOwned>(column: &str, name: &str) -> Result<T, StoreError> {
    T::deserialize(serde::de::value::StrDeserializer::<serde::de::value::Error>::new(name))
        .map_err(|e| StoreError::Corrupt(format!("{column}: {e}")))
}

pub fn optional(at: Option<Timestamp>) -> Option<i64> {
    at.map(|at| at.0)
}

impl From<InvalidId> for StoreError {
    fn from(error: InvalidId) -> Self {
        StoreError::Corrupt(error.to_string())
    }
}

/// A step's measurements as they stand in a row; a number that is none is kept as null.
pub struct Measurements {
    pub n_tokens: i64,
    pub train_loss: Option<f64>,
    pub train_mean_token_accuracy: Option<f64>,
    pub valid_loss: Option<f64>,
    pub valid_mean_token_accuracy: Option<f64>,
    pub full_valid_loss: Option<f64>,
    pub full_valid_mean_token_accuracy: Option<f64>,
}

impl TryFrom<&StepMetrics> for Measurements {
    type Error = StoreError;

    fn try_from(m: &StepMetrics) -> Result<Self, StoreError> {
        let number = |value: f64| (!value.is_nan()).then_some(value);
        Ok(Self {
            n_tokens: int(m.n_tokens)?,
            train_loss: number(m.train_loss),
            train_mean_token_accuracy: number(m.train_mean_token_accuracy),
            valid_loss: m.valid_loss.and_then(number),
            valid_mean_token_accuracy: m.valid_mean_token_accuracy.and_then(number),
            full_valid_loss: m.full_valid_loss.and_then(number),
            full_valid_mean_token_accuracy: m.full_valid_mean_token_accuracy.and_then(number),
        })
    }
}

impl Measurements {
    pub fn into_step(self, step: i64) -> Result<StepMetrics, StoreError> {
        Ok(StepMetrics {
            step: unsigned(step)?,
            n_tokens: unsigned(self.n_tokens)?,
            train_loss: self.train_loss.unwrap_or(f64::NAN),
            train_mean_token_accuracy: self.train_mean_token_accuracy.unwrap_or(f64::NAN),
            valid_loss: self.valid_loss,
            valid_mean_token_accuracy: self.valid_mean_token_accuracy,
            full_valid_loss: self.full_valid_loss,
            full_valid_mean_token_accuracy: self.full_valid_mean_token_accuracy,
        })
    }
}
