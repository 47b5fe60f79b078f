//! Keys of a row that no format knows. Tools leave them unread, and so it is here, but for those that would change what
//! is trained: media are refused, and what calls the one answer good or bad is kept.

use std::collections::HashSet;

use serde::de::{self, MapAccess};
use serde_json::Value;

use super::super::LineErrorKind as Kind;
use super::super::strict::{Trail, ValueSeed, shorten};

/// Parts of a conversation that are no text.
const MEDIA: [&str; 6] = ["images", "videos", "audios", "image", "video", "audio"];
/// What says whether the one answer is a good one, in TRL and in LLaMA-Factory.
const LABELS: [&str; 2] = ["label", "kto_tag"];

/// The names of those that were met, and what they say of the answer.
#[derive(Default)]
pub(super) struct Foreign {
    met: HashSet<String>,
    label: Option<Label>,
}

/// What says whether the one answer is a good one.
#[derive(Clone, Copy)]
pub(super) struct Label {
    pub key: &'static str,
    /// `None`: it is no boolean.
    pub is_good: Option<bool>,
}

impl Foreign {
    pub(super) fn label(&self) -> Option<Label> {
        self.label
    }

    /// Reads the value of `key`. Errors: it comes twice, or it would change what is trained.
    pub(super) fn read<'de, A: MapAccess<'de>>(
        &mut self,
        key: &str,
        map: &mut A,
        trail: &Trail,
    ) -> Result<(), A::Error> {
        if self.met.contains(key) {
            return Err(trail.duplicate(key));
        }
        let key = key.to_owned();
        trail.key(key.clone(), || {
            let value = map.next_value_seed(ValueSeed(trail))?;
            check(&key, &value, trail)?;
            self.keep_label(&key, &value, trail)
        })?;
        self.met.insert(key);
        Ok(())
    }

    fn keep_label<E: de::Error>(
        &mut self,
        key: &str,
        value: &Value,
        trail: &Trail,
    ) -> Result<(), E> {
        let Some(key) = LABELS.into_iter().find(|label| *label == key) else {
            return Ok(());
        };
        let is_good = value.as_bool();
        match self.label {
            Some(label) if label.is_good.is_some() && is_good.is_some() => {
                let reason = format!("has both '{}' and '{key}'", label.key);
                Err(trail.fail(Kind::InvalidValue, reason))
            }
            Some(label) if label.is_good.is_some() => Ok(()),
            _ => {
                self.label = Some(Label { key, is_good });
                Ok(())
            }
        }
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
    Ok(())
}
