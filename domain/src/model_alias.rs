//! Other names for models, such as those that a client already knows.

use crate::id::ProjectId;
use crate::time::Timestamp;

/// Aliases that a project may have.
pub const MAX_ALIASES: u64 = 100;

/// A name that stands for a model. A model of the same name goes before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelAlias {
    pub name: String,
    /// Whose it is; `None`: the operator's, for every project that has none of this name.
    pub project_id: Option<ProjectId>,
    /// The name of a base model, or of a tuned model of the project; never another alias.
    pub model: String,
    pub created_at: Timestamp,
}

/// 1–256 characters of `[A-Za-z0-9._:/-]`, as models' names are spelled in the field; begins with a letter or a digit.
pub fn is_valid_alias(name: &str) -> bool {
    (1..=256).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'/' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_field_are_aliases_and_other_texts_are_not() {
        for name in [
            "gpt-4o-mini-2024-07-18",
            "ft:gpt-4o-2024-08-06:acme::AbC1",
            "openai/gpt-4o",
        ] {
            assert!(is_valid_alias(name), "{name}");
        }
        for name in ["", " ", "a b", "-x", "a\n", "ä", "a\0", &"x".repeat(257)] {
            assert!(!is_valid_alias(name), "{name:?}");
        }
    }
}
