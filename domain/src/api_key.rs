//! API keys: how the secret is spelled and what is kept of it.

use crate::id::{KeyId, OrganizationId, ProjectId, ServiceAccountId, UserId, base62};
use crate::scope::Scopes;
use crate::time::Timestamp;

/// What is stored of a project's key: never the secret, only its HMAC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKey {
    pub id: KeyId,
    pub project_id: ProjectId,
    pub name: String,
    /// Hex HMAC-SHA256 of the secret under the installation's pepper; unique.
    pub hmac: String,
    /// `sk-proj-…last4`, for people to recognise it.
    pub redacted: String,
    pub scopes: Scopes,
    pub owner: KeyOwner,
    pub created_at: Timestamp,
    pub expires_at: Option<Timestamp>,
    pub last_used_at: Option<Timestamp>,
    pub revoked_at: Option<Timestamp>,
}

/// Whose key it is: it opens as long as its owner has access to the project.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyOwner {
    /// Made on the command line for nobody in particular.
    Installation,
    User(UserId),
    ServiceAccount(ServiceAccountId),
}

/// Whether a key's owner may use the project.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnerAccess {
    Active,
    /// The owner is not of the project any more.
    Removed,
    /// A service account with the role `none`.
    NoRole,
}

/// What is stored of a key that administers an organisation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminKey {
    pub id: KeyId,
    pub organization_id: OrganizationId,
    pub name: String,
    /// Hex HMAC-SHA256 of the secret under the installation's pepper; unique.
    pub hmac: String,
    pub redacted: String,
    /// It opens while this user is an owner of the organisation; `None`: made on the command line for nobody.
    pub owner: Option<UserId>,
    pub created_at: Timestamp,
    pub expires_at: Option<Timestamp>,
    pub last_used_at: Option<Timestamp>,
    pub revoked_at: Option<Timestamp>,
}

/// What a key is for; its spelling begins accordingly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyKind {
    Project,
    ServiceAccount,
    Admin,
}

/// Random bytes for one key: 8 for its public part, 32 for its secret.
pub type KeyEntropy = [u8; 40];

const PUBLIC_CHARS: usize = 8;
/// 256 bits in base 62.
const SECRET_CHARS: usize = 43;
/// 32 bits in base 62.
const CHECKSUM_CHARS: usize = 6;
/// What stood behind `sk-proj-` before keys had a checksum.
const FORMER_CHARS: usize = 48;

impl KeyKind {
    const ALL: [KeyKind; 3] = [KeyKind::Project, KeyKind::ServiceAccount, KeyKind::Admin];

    pub fn prefix(self) -> &'static str {
        match self {
            KeyKind::Project => "sk-proj-",
            KeyKind::ServiceAccount => "sk-svcacct-",
            KeyKind::Admin => "sk-admin-",
        }
    }

    /// The kind of key that `text` could be, judged without looking it up. `None`: no key was ever spelled so.
    pub fn recognise(text: &str) -> Option<Self> {
        let (kind, rest) = split(text)?;
        if !rest.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return None;
        }
        let fits = match rest.len() {
            FORMER_CHARS => kind == KeyKind::Project,
            _ => has_checksum(text, rest),
        };
        fits.then_some(kind)
    }
}

fn split(text: &str) -> Option<(KeyKind, &str)> {
    let split = |kind: KeyKind| Some((kind, text.strip_prefix(kind.prefix())?));
    KeyKind::ALL.into_iter().find_map(split)
}

fn has_checksum(text: &str, rest: &str) -> bool {
    rest.len() == PUBLIC_CHARS + SECRET_CHARS + CHECKSUM_CHARS && {
        let (body, sum) = text.split_at(text.len() - CHECKSUM_CHARS);
        checksum(body) == sum
    }
}

fn checksum(body: &str) -> String {
    number62(
        &crc32fast::hash(body.as_bytes()).to_be_bytes(),
        CHECKSUM_CHARS,
    )
}

/// Spells a new key: prefix, public part, secret, and a CRC32 of all that, so that a typing error or a stranger's text
/// is told without a look-up. Shown once, then forgotten.
pub fn spell(kind: KeyKind, entropy: &KeyEntropy) -> String {
    let (public, secret) = entropy.split_at(PUBLIC_CHARS);
    let body = format!(
        "{}{}{}",
        kind.prefix(),
        base62(public),
        number62(secret, SECRET_CHARS)
    );
    let sum = checksum(&body);
    body + &sum
}

/// `bytes` as one big-endian number in base 62, with `width` digits.
fn number62(bytes: &[u8], width: usize) -> String {
    let mut number = bytes.to_vec();
    let mut digits = vec![0; width];
    for digit in digits.iter_mut().rev() {
        let mut rest = 0;
        for byte in &mut number {
            let value = rest * 256 + u32::from(*byte);
            *byte = (value / 62) as u8;
            rest = value % 62;
        }
        *digit = rest as u8;
    }
    base62(&digits)
}

/// The key as it may be shown: what it begins with (its public part, where it has one) and its last four characters.
/// Text that is no key of ours keeps at most 3 leading and 4 trailing characters.
pub fn redact(key: &str) -> String {
    let shown = match split(key) {
        Some((kind, rest)) if has_checksum(key, rest) => kind.prefix().len() + PUBLIC_CHARS,
        Some((kind, _)) => kind.prefix().len(),
        None => 3,
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
    fn a_key_is_recognised_until_one_character_is_another() {
        for kind in KeyKind::ALL {
            let key = spell(kind, &[7; 40]);
            assert_eq!(KeyKind::recognise(&key), Some(kind), "{key}");
            for place in kind.prefix().len()..key.len() {
                let mut other = key.clone().into_bytes();
                other[place] = if other[place] == b'a' { b'b' } else { b'a' };
                let other = String::from_utf8(other).unwrap();
                assert_eq!(KeyKind::recognise(&other), None, "{other}");
            }
        }
    }

    #[test]
    fn a_key_from_before_checksums_is_recognised() {
        let former = format!("sk-proj-{}", base62(&[3; 48]));
        assert_eq!(KeyKind::recognise(&former), Some(KeyKind::Project));
        for other in [
            former.replace("proj", "admin"),
            format!("{former}0"),
            format!("sk-proj-{}", "ä".repeat(24)),
            "sk-proj-".to_owned(),
            "sk-".to_owned(),
            String::new(),
        ] {
            assert_eq!(KeyKind::recognise(&other), None, "{other}");
        }
    }

    #[test]
    fn the_secret_is_a_number_of_256_bits() {
        assert_eq!(number62(&[0, 0, 0, 61], 6), "00000z");
        assert_eq!(number62(&[0, 0, 0, 62], 6), "000010");
        assert_eq!(number62(&[255; 4], 6), "4gfFC3"); // 4294967295
        let largest = number62(&[255; 32], SECRET_CHARS);
        assert!(
            !largest.starts_with('0'),
            "no digit is spent for nothing: {largest}"
        );
    }

    #[test]
    fn a_redacted_key_shows_its_ends_only() {
        let key = spell(KeyKind::Project, &[1; 40]);
        let tail = &key[key.len() - 4..];
        assert_eq!(redact(&key), format!("sk-proj-11111111…{tail}"));
        let former = format!("sk-proj-{}", base62(&[2; 48]));
        assert_eq!(redact(&former), "sk-proj-…2222");
        assert_eq!(redact("sk-abc"), "******");
        assert_eq!(redact("sk-proj-ä…ö67890123"), "sk-proj-…0123");
    }
}
