//! API keys: how the secret is spelled and what is kept of it.

use crate::id::{Entropy, KeyId, ProjectId, base62};
use crate::time::Timestamp;

/// What is stored of a key: never the secret, only its HMAC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKey {
    pub id: KeyId,
    pub project_id: ProjectId,
    pub name: String,
    /// Hex HMAC-SHA256 of the secret under the installation's pepper; unique.
    pub hmac: String,
    /// `sk-proj-…last4`, for people to recognise it.
    pub redacted: String,
    pub created_at: Timestamp,
    pub last_used_at: Option<Timestamp>,
    pub revoked_at: Option<Timestamp>,
}

/// The prefix of a project key.
pub const PROJECT_KEY_PREFIX: &str = "sk-proj-";

/// Spells a new project key from 48 random bytes (about 285 bits). Shown once, then forgotten.
pub fn spell_project_key(a: Entropy, b: Entropy) -> String {
    format!("{PROJECT_KEY_PREFIX}{}{}", base62(&a), base62(&b))
}

/// The key as it may be shown: its prefix and its last four characters.
/// Text that is no key of ours keeps at most 3 leading and 4 trailing characters.
pub fn redact(key: &str) -> String {
    let shown = if key.starts_with(PROJECT_KEY_PREFIX) {
        PROJECT_KEY_PREFIX.len()
    } else {
        3
    };
    let chars: Vec<char> = key.chars().collect();
    if chars.len() < shown + 8 {
        return "*".repeat(chars.len().min(12));
    }
    let head: String = chars[..shown].iter().collect();
    let tail: String = chars[chars.len() - 4..].iter().collect();
    format!("{head}…{tail}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redacted_key_shows_its_ends_only() {
        let key = spell_project_key([1; 24], [2; 24]);
        assert_eq!(redact(&key), "sk-proj-…2222");
        assert_eq!(redact("sk-abc"), "******");
    }
}
