//! What a row that cannot be read looks like: people name the wrong format, or none.

use domain::x_training::DataFormat;
use serde_json::{Map, Value};

/// The format that has such keys, if one is known by them.
pub(super) fn looks_like(line: &str) -> Option<DataFormat> {
    let row: Map<String, Value> = serde_json::from_str(line).ok()?;
    let has = |key: &str| row.contains_key(key);
    let is_list = |key: &str| row.get(key).is_some_and(Value::is_array);
    let is_text = |key: &str| row.get(key).is_some_and(Value::is_string);
    if let Some(Value::Array(messages)) = row.get("messages") {
        let is_turn = |turn: &Value| turn.get("from").is_some() || turn.get("value").is_some();
        return Some(match messages.first() {
            Some(first) if is_turn(first) => DataFormat::ShareGpt,
            _ => DataFormat::Chat,
        });
    }
    if is_list("conversations") || is_list("conversation") {
        return Some(DataFormat::ShareGpt);
    }
    if has("preferred_output") || has("non_preferred_output") {
        return Some(DataFormat::Chat);
    }
    if is_text("instruction") && (has("output") || has("chosen")) {
        return Some(DataFormat::Alpaca);
    }
    if is_text("query") && has("response") {
        return Some(DataFormat::QueryResponse);
    }
    if is_text("prompt") && has("completion") {
        return Some(DataFormat::PromptCompletion);
    }
    None
}
