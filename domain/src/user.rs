//! People of an organisation. A user has no login here: it is whom keys and memberships belong to.

use crate::id::{OrganizationId, UserId};
use crate::time::Timestamp;
use crate::words::words;

words! {
    /// What a user is to the organisation; only owners administer it.
    OrganizationRole {
        Owner = "owner",
        Reader = "reader",
    }
}

/// A person of an organisation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub id: UserId,
    pub organization_id: OrganizationId,
    /// In lower case; unique within the organisation.
    pub email: String,
    pub name: String,
    pub role: OrganizationRole,
    pub added_at: Timestamp,
}

/// Longest e-mail address. Source: RFC 5321, 4.5.3.1.3, without the brackets.
pub const MAX_EMAIL: usize = 254;

/// An e-mail address as it is kept: in lower case. `None`: it is not `something@somewhere`.
pub fn normal_email(text: &str) -> Option<String> {
    let is_part = |part: &str| {
        !part.is_empty()
            && part
                .chars()
                .all(|c| !c.is_whitespace() && !c.is_control() && c != '@')
    };
    let (local, domain) = text.split_once('@')?;
    (text.len() <= MAX_EMAIL && is_part(local) && is_part(domain)).then(|| text.to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_kept_in_lower_case() {
        let kept = normal_email("Ada.L@Example.COM");
        assert_eq!(kept.as_deref(), Some("ada.l@example.com"));
        for text in [
            "",
            "ada",
            "@b",
            "a@",
            "a b@c",
            "a@b@c",
            "a@b\n",
            &format!("a@{}", "b".repeat(253)),
        ] {
            assert_eq!(normal_email(text), None, "{text:?}");
        }
    }
}
