//! Reads a JSON request body value by value, so that every refusal names the parameter by its path and says in
//! OpenAI's words what was expected and what came.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::error::ApiError;

/// Longest piece of a client's text that a message repeats. Characters.
const ECHO_CHARS: usize = 64;

/// An object of which fields are taken one by one; what is left at the end was not asked for.
#[derive(Debug)]
pub struct Fields {
    path: String,
    map: Map<String, Value>,
}

/// A value and where it stands.
#[derive(Debug)]
pub struct At {
    pub path: String,
    value: Value,
}

impl Fields {
    /// The request body itself.
    pub fn root(value: Value) -> Result<Self, ApiError> {
        match value {
            Value::Object(map) => Ok(Self {
                path: String::new(),
                map,
            }),
            other => Err(ApiError::new(
                crate::error::Kind::BadRequest,
                format!(
                    "Invalid body: expected an object, but got {} instead.",
                    kind_of(&other)
                ),
            )
            .code("invalid_type")),
        }
    }

    fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }

    /// The field, unless it is absent or null.
    pub fn take(&mut self, key: &str) -> Option<At> {
        let value = self.map.shift_remove(key)?;
        (!value.is_null()).then(|| At {
            path: self.path_of(key),
            value,
        })
    }

    /// The field as it stands, left where it is.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key)
    }

    /// The field; null is a value of the wrong type.
    pub fn require(&mut self, key: &str) -> Result<At, ApiError> {
        let path = self.path_of(key);
        match self.map.shift_remove(key) {
            Some(value) => Ok(At { path, value }),
            None => {
                let message = format!("Missing required parameter: '{path}'.");
                Err(ApiError::invalid(
                    path,
                    "missing_required_parameter",
                    message,
                ))
            }
        }
    }

    /// Drops fields that are accepted and change nothing here.
    pub fn ignore(&mut self, keys: &[&str]) {
        for key in keys {
            self.map.shift_remove(*key);
        }
    }

    /// Refuses fields that stand for something this service does not do; null asks for nothing.
    pub fn refuse(&mut self, keys: &[&str], reason: &str) -> Result<(), ApiError> {
        for key in keys {
            if let Some(at) = self.take(key) {
                let message = format!("Unsupported parameter: '{}'. {reason}", at.path);
                return Err(ApiError::invalid(at.path, "unsupported_parameter", message));
            }
        }
        Ok(())
    }

    /// Nothing else may be there.
    pub fn finish(self) -> Result<(), ApiError> {
        match self.map.keys().next() {
            None => Ok(()),
            Some(key) => {
                let path = self.path_of(&echo(key));
                let message = format!("Unknown parameter: '{path}'.");
                Err(ApiError::invalid(path, "unknown_parameter", message))
            }
        }
    }
}

impl At {
    pub fn new(path: impl Into<String>, value: Value) -> Self {
        Self {
            path: path.into(),
            value,
        }
    }

    pub fn value(self) -> Value {
        self.value
    }

    pub fn is_null(&self) -> bool {
        self.value.is_null()
    }

    pub fn is_string(&self) -> bool {
        self.value.is_string()
    }

    pub fn is_integer(&self) -> bool {
        self.value.is_i64() || self.value.is_u64()
    }

    pub fn is_array(&self) -> bool {
        self.value.is_array()
    }

    /// The value is of another type than `expected` ("a string", "an integer").
    pub fn wrong_type(&self, expected: &str) -> ApiError {
        let message = format!(
            "Invalid type for '{}': expected {expected}, but got {} instead.",
            self.path,
            kind_of(&self.value)
        );
        ApiError::invalid(&self.path, "invalid_type", message)
    }

    pub fn string(self) -> Result<String, ApiError> {
        match self.value {
            Value::String(text) => Ok(text),
            _ => Err(self.wrong_type("a string")),
        }
    }

    /// A string of at most `max` characters.
    pub fn string_up_to(self, max: usize) -> Result<String, ApiError> {
        let path = self.path.clone();
        let text = self.string()?;
        let length = text.chars().count();
        if length > max {
            return Err(ApiError::invalid(
                &path,
                "string_above_max_length",
                format!(
                    "Invalid '{path}': string too long. Expected a string with maximum length {max}, but got a \
                     string with length {length} instead."
                ),
            ));
        }
        Ok(text)
    }

    /// What something is called: 1 to `max` characters.
    pub fn name(self, max: usize) -> Result<String, ApiError> {
        let path = self.path.clone();
        let text = self.string_up_to(max)?;
        if text.trim().is_empty() {
            let message = format!(
                "Invalid '{path}': empty string. Expected a string with minimum length 1, but got an empty string instead."
            );
            return Err(ApiError::invalid(path, "empty_string", message));
        }
        Ok(text)
    }

    /// One of the words that `parse` knows.
    pub fn word<T>(
        self,
        words: &[&'static str],
        parse: fn(&str) -> Option<T>,
    ) -> Result<T, ApiError> {
        let path = self.path.clone();
        let text = self.string()?;
        parse(&text).ok_or_else(|| not_one_of(&path, &text, words))
    }

    pub fn boolean(self) -> Result<bool, ApiError> {
        self.value
            .as_bool()
            .ok_or_else(|| self.wrong_type("a boolean"))
    }

    /// A whole number within `range`.
    pub fn integer(self, range: RangeInclusive<i64>) -> Result<i64, ApiError> {
        let number = match &self.value {
            Value::Number(number) if !number.is_f64() => number,
            _ => return Err(self.wrong_type("an integer")),
        };
        // Beyond i64 only upwards: serde_json reads a smaller one as a float.
        let value = number.as_i64().unwrap_or(i64::MAX);
        let bound = |side, sign, limit: i64| {
            Err(ApiError::invalid(
                &self.path,
                if side == "below minimum" {
                    "integer_below_min_value"
                } else {
                    "integer_above_max_value"
                },
                format!(
                    "Invalid '{}': integer {side} value. Expected a value {sign} {limit}, but got {number} instead.",
                    self.path
                ),
            ))
        };
        if value < *range.start() {
            return bound("below minimum", ">=", *range.start());
        }
        if value > *range.end() || number.as_i64().is_none() {
            return bound("above maximum", "<=", *range.end());
        }
        Ok(value)
    }

    /// A number from `min` to `max`.
    pub fn decimal(self, min: f64, max: f64) -> Result<f64, ApiError> {
        let value = self
            .value
            .as_f64()
            .ok_or_else(|| self.wrong_type("a decimal"))?;
        if value < min {
            return Err(self.out_of_bounds("decimal_below_min_value", "below minimum", ">=", min));
        }
        if value > max {
            return Err(self.out_of_bounds("decimal_above_max_value", "above maximum", "<=", max));
        }
        Ok(value)
    }

    /// A number above `min` and at most `max`.
    pub fn decimal_above(self, min: f64, max: f64) -> Result<f64, ApiError> {
        match self.value.as_f64() {
            Some(value) if value <= min => {
                Err(self.out_of_bounds("decimal_below_min_value", "below minimum", ">", min))
            }
            _ => self.decimal(min, max),
        }
    }

    /// A number from `min` to below `max`.
    pub fn decimal_below(self, min: f64, max: f64) -> Result<f64, ApiError> {
        match self.value.as_f64() {
            Some(value) if value >= max => {
                Err(self.out_of_bounds("decimal_above_max_value", "above maximum", "<", max))
            }
            _ => self.decimal(min, max),
        }
    }

    fn out_of_bounds(&self, code: &'static str, side: &str, sign: &str, limit: f64) -> ApiError {
        let message = format!(
            "Invalid '{}': decimal {side} value. Expected a value {sign} {limit}, but got {} instead.",
            self.path, self.value
        );
        ApiError::invalid(&self.path, code, message)
    }

    /// An object as the client spelled it.
    pub fn json_object(self) -> Result<Value, ApiError> {
        match self.value {
            Value::Object(_) => Ok(self.value),
            _ => Err(self.wrong_type("an object")),
        }
    }

    pub fn object(self) -> Result<Fields, ApiError> {
        match self.value {
            Value::Object(map) => Ok(Fields {
                path: self.path,
                map,
            }),
            _ => Err(self.wrong_type("an object")),
        }
    }

    /// The object's pairs, each with its path; at most `max` of them.
    pub fn pairs(self, max: usize) -> Result<Vec<(String, At)>, ApiError> {
        let fields = self.object()?;
        let n = fields.map.len();
        if n > max {
            return Err(ApiError::invalid(
                &fields.path,
                "object_above_max_properties",
                format!(
                    "Invalid '{}': too many properties. Expected an object with at most {max} properties, but got an \
                     object with {n} properties instead.",
                    fields.path
                ),
            ));
        }
        let path = fields.path;
        let at = |(key, value): (String, Value)| {
            let at = At::new(format!("{path}.{}", echo(&key)), value);
            (key, at)
        };
        Ok(fields.map.into_iter().map(at).collect())
    }

    /// The array's items, each with its path; `min` to `max` of them.
    pub fn items(self, min: usize, max: usize) -> Result<Vec<At>, ApiError> {
        let Value::Array(items) = self.value else {
            return Err(self.wrong_type("an array"));
        };
        let (path, n) = (self.path, items.len());
        if n < min {
            return Err(ApiError::invalid(
                &path,
                "empty_array",
                format!(
                    "Invalid '{path}': empty array. Expected an array with minimum length {min}, but got an empty array \
                     instead."
                ),
            ));
        }
        if n > max {
            return Err(ApiError::invalid(
                &path,
                "array_above_max_length",
                format!(
                    "Invalid '{path}': array too long. Expected an array with maximum length {max}, but got an array \
                     with length {n} instead."
                ),
            ));
        }
        let at = |(i, value)| At::new(format!("{path}[{i}]"), value);
        Ok(items.into_iter().enumerate().map(at).collect())
    }

    /// One of a few words.
    pub fn one_of(self, words: &[&'static str]) -> Result<&'static str, ApiError> {
        let path = self.path.clone();
        let text = self.string()?;
        words
            .iter()
            .find(|word| **word == text)
            .copied()
            .ok_or_else(|| not_one_of(&path, &text, words))
    }
}

/// The value is none of the words.
pub fn not_one_of(path: &str, text: &str, words: &[&str]) -> ApiError {
    let quoted: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
    let known = match quoted.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, [one])) => format!("{one} and {last}"),
        Some((last, rest)) => format!("{}, and {last}", rest.join(", ")),
        None => "none".to_owned(),
    };
    let message = format!(
        "Invalid value: '{}'. Supported values are: {known}.",
        echo(text)
    );
    ApiError::invalid(path, "invalid_value", message)
}

/// At most [`ECHO_CHARS`] characters of a client's text, without control characters.
pub fn echo(text: &str) -> String {
    let mut shown: String = text
        .chars()
        .take(ECHO_CHARS)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect();
    if text.chars().nth(ECHO_CHARS).is_some() {
        shown.push('…');
    }
    shown
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if number.is_f64() => "a decimal",
        Value::Number(_) => "an integer",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// At most 16 pairs, keys up to 64 and values up to 512 characters, in the client's order.
pub fn metadata(at: At) -> Result<Vec<(String, String)>, ApiError> {
    let path = at.path.clone();
    let mut pairs = Vec::new();
    for (key, value) in at.pairs(16)? {
        if key.chars().count() > 64 {
            let message = format!(
                "Invalid '{path}': a key is too long. Expected keys with maximum length 64, but got '{}'.",
                echo(&key)
            );
            return Err(ApiError::invalid(&path, "string_above_max_length", message));
        }
        let value = value.string_up_to(512)?;
        if key.contains('\0') || value.contains('\0') {
            let message = format!("Invalid '{path}': a text with NUL characters cannot be stored.");
            return Err(ApiError::invalid(&path, "invalid_value", message));
        }
        pairs.push((key, value));
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(value: Value, read: impl Fn(At) -> Result<(), ApiError>, code: &str, message: &str) {
        let error = read(At::new("p", value)).unwrap_err();
        assert_eq!(
            (error.code, error.param.as_deref(), error.message.as_str()),
            (Some(code), Some("p"), message)
        );
    }

    #[test]
    fn a_refusal_says_what_was_expected_and_what_came() {
        let integer = |at: At| at.integer(1..=50).map(drop);
        let decimal = |at: At| at.decimal(0.0, 2.0).map(drop);
        check(
            json!("x"),
            integer,
            "invalid_type",
            "Invalid type for 'p': expected an integer, but got a string instead.",
        );
        check(
            json!(1.5),
            integer,
            "invalid_type",
            "Invalid type for 'p': expected an integer, but got a decimal instead.",
        );
        check(
            json!(0),
            integer,
            "integer_below_min_value",
            "Invalid 'p': integer below minimum value. Expected a value >= 1, but got 0 instead.",
        );
        check(
            json!(u64::MAX),
            integer,
            "integer_above_max_value",
            "Invalid 'p': integer above maximum value. Expected a value <= 50, but got 18446744073709551615 instead.",
        );
        check(
            json!(200),
            decimal,
            "decimal_above_max_value",
            "Invalid 'p': decimal above maximum value. Expected a value <= 2, but got 200 instead.",
        );
        check(
            json!(0),
            |at| at.decimal_above(0.0, 2.0).map(drop),
            "decimal_below_min_value",
            "Invalid 'p': decimal below minimum value. Expected a value > 0, but got 0 instead.",
        );
        check(
            json!(1.0),
            |at| at.decimal_below(0.0, 1.0).map(drop),
            "decimal_above_max_value",
            "Invalid 'p': decimal above maximum value. Expected a value < 1, but got 1.0 instead.",
        );
        check(
            json!([]),
            |at| at.items(1, 4).map(drop),
            "empty_array",
            "Invalid 'p': empty array. Expected an array with minimum length 1, but got an empty array instead.",
        );
        check(
            json!("magic"),
            |at| at.one_of(&["a", "b", "c"]).map(drop),
            "invalid_value",
            "Invalid value: 'magic'. Supported values are: 'a', 'b', and 'c'.",
        );
    }

    #[test]
    fn what_is_left_in_an_object_is_unknown() {
        let mut fields = Fields::root(json!({"a": {"b": 1, "c": 2}, "d": null})).unwrap();
        assert!(fields.take("d").is_none());
        let mut inner = fields.take("a").unwrap().object().unwrap();
        inner.take("b").unwrap().integer(0..=9).unwrap();
        fields.finish().unwrap();
        let error = inner.finish().unwrap_err();
        assert_eq!(
            (error.code, error.param.as_deref()),
            (Some("unknown_parameter"), Some("a.c"))
        );
    }

    #[test]
    fn a_required_field_is_missing_or_null() {
        let mut fields = Fields::root(json!({"model": null})).unwrap();
        let null = fields.require("model").unwrap().string().unwrap_err();
        assert_eq!(
            null.message,
            "Invalid type for 'model': expected a string, but got null instead."
        );
        let missing = fields.require("messages").unwrap_err();
        assert_eq!(missing.code, Some("missing_required_parameter"));
        assert_eq!(missing.message, "Missing required parameter: 'messages'.");
    }
}
