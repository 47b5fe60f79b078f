//! Keys of a row that no format knows. Tools leave them unread, and so it is here, but for those that would change what
//! is trained.

use std::collections::HashSet;

use serde::de::{self, MapAccess};
use serde_json::Value;

use super::super::LineErrorKind as Kind;
use super::super::strict::{Trail, ValueSeed, shorten};

/// Parts of a conversation that are no text.
const MEDIA: [&str; 6] = ["images", "videos", "audios", "image", "video", "audio"];
/// Whether the one answer is a good or a bad one.
const LABELS: [&str; 2] = ["label", "kto_tag"];

/// The names of those that were met.
#[derive(Default)]
pub(super) struct Foreign(HashSet<String>);

impl Foreign {
    /// Reads the value of `key`. Errors: it comes twice, or it would change what is trained.
    pub(super) fn read<'de, A: MapAccess<'de>>(
        &mut self,
        key: &str,
        map: &mut A,
        trail: &Trail,
    ) -> Result<(), A::Error> {
        if self.0.contains(key) {
            return Err(trail.duplicate(key));
        }
        let key = key.to_owned();
        trail.key(key.clone(), || {
            let value = map.next_value_seed(ValueSeed(trail))?;
            check(&key, &value, trail)
        })?;
        self.0.insert(key);
        Ok(())
    }
}

fn check<E: de::Error>(key: &str, value: &Value, trail: &Trail) -> Result<(), E> {
    let is_nothing = match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(values) => values.is_empty(),
        _ => false,
    };
    if MEDIA.contains(&key) && !is_nothing {
        let reason = format!("has '{}'; only text can be trained on", shorten(key));
        return Err(trail.fail(Kind::Unsupported, reason));
    }
    if LABELS.contains(&key) && value.is_boolean() {
        let reason = format!(
            "has a '{key}' that calls its one answer good or bad, which no method trains on"
        );
        return Err(trail.fail(Kind::Unsupported, reason));
    }
    Ok(())
}
