//! Which models a project may name.

use serde::{Deserialize, Serialize};

use crate::words::words;

words! {
    /// How the list of a policy is meant.
    PermissionMode {
        /// These models and no others.
        AllowList = "allow_list",
        /// All models but these.
        DenyList = "deny_list",
    }
}

/// A project's policy on models, base models and tuned ones alike.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelPermissions {
    pub mode: PermissionMode,
    pub model_ids: Vec<String>,
}

impl ModelPermissions {
    pub fn allow(&self, model: &str) -> bool {
        let is_listed = self.model_ids.iter().any(|id| id == model);
        is_listed == (self.mode == PermissionMode::AllowList)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_allows_or_denies_what_is_on_it() {
        for (mode, on, off) in [
            (PermissionMode::AllowList, true, false),
            (PermissionMode::DenyList, false, true),
        ] {
            let model_ids = vec!["a".to_owned()];
            let policy = ModelPermissions { mode, model_ids };
            assert_eq!(
                (policy.allow("a"), policy.allow("b")),
                (on, off),
                "{mode:?}"
            );
        }
    }
}
