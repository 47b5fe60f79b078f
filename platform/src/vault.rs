//! Secrets of tenants that are kept: each sealed with AES-256-GCM under a key of its own, which is sealed under the
//! installation's. What is sealed opens only in the place (table, row, column) it was sealed for.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::{hkdf, hmac};
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;

use crate::config::Secret;

/// How sealed texts begin; another form would begin otherwise.
const FORM: &str = "v1.";
const ID_BYTES: usize = 8;
const KEY_BYTES: usize = 32;
const TAG_BYTES: usize = 16;
/// A sealed 32-byte key.
const SEALED_KEY_BYTES: usize = NONCE_LEN + KEY_BYTES + TAG_BYTES;

/// Where a sealed value stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place<'a> {
    pub table: &'a str,
    pub row: &'a str,
    pub column: &'a str,
}

impl Place<'_> {
    /// No part holds a NUL, so two places never read the same.
    fn associated_data(&self) -> Vec<u8> {
        [self.table, self.row, self.column].join("\0").into_bytes()
    }
}

/// Why a sealed value does not open.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VaultError {
    #[error("a sealed value is none of this program's")]
    Unreadable,
    #[error(
        "a sealed value needs a key that is not configured: give the old one as secrets.encryption_key_previous"
    )]
    UnknownKey,
    /// It was changed, or moved from another place.
    #[error("a sealed value was changed, or stands in a place it was not sealed for")]
    NotAuthentic,
}

/// Seals and opens. The first key seals, all of them open.
pub struct Vault {
    keys: Vec<Key>,
}

struct Key {
    id: [u8; ID_BYTES],
    key: LessSafeKey,
}

impl Vault {
    /// `newest` seals; what was sealed under one of `older` still opens.
    pub fn new<'a>(
        newest: &'a Secret<String>,
        older: impl IntoIterator<Item = &'a Secret<String>>,
    ) -> Self {
        let keys = std::iter::once(newest).chain(older).map(Key::derive);
        Self {
            keys: keys.collect(),
        }
    }

    /// A text of printable ASCII, another one each time.
    pub fn seal(&self, place: &Place<'_>, value: &[u8]) -> String {
        let newest = &self.keys[0];
        let own: [u8; KEY_BYTES] = rand::random();
        let mut sealed = newest.id.to_vec();
        sealed.extend(encrypt(&newest.key, place, &own));
        sealed.extend(encrypt(&bare_key(&own), place, value));
        format!("{FORM}{}", STANDARD_NO_PAD.encode(sealed))
    }

    pub fn open(&self, place: &Place<'_>, sealed: &str) -> Result<Secret<Vec<u8>>, VaultError> {
        let bytes = decode(sealed)?;
        let (id, rest) = bytes.split_at(ID_BYTES);
        let (sealed_key, value) = rest.split_at(SEALED_KEY_BYTES);
        let key = self.keys.iter().find(|key| key.id == id);
        let key = key.ok_or(VaultError::UnknownKey)?;
        let own = decrypt(&key.key, place, sealed_key)?;
        let own = own.try_into().map_err(|_| VaultError::Unreadable)?;
        decrypt(&bare_key(&own), place, value).map(Secret::new)
    }

    /// Whether it was sealed under the newest key.
    pub fn is_current(&self, sealed: &str) -> bool {
        decode(sealed).is_ok_and(|bytes| bytes.starts_with(&self.keys[0].id))
    }
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Vault({} keys)", self.keys.len())
    }
}

impl Key {
    /// Configured secrets are text of any length; HKDF-SHA-256 makes a key of them.
    fn derive(secret: &Secret<String>) -> Self {
        let secret = secret.expose().as_bytes();
        let drawn = hkdf::Salt::new(hkdf::HKDF_SHA256, b"luthier vault").extract(secret);
        let expanded = drawn.expand(&[b"key encryption key"], &AES_256_GCM);
        let expanded = expanded.expect("32 bytes are less than HKDF can give");
        let tag = hmac::sign(
            &hmac::Key::new(hmac::HMAC_SHA256, secret),
            b"luthier vault id",
        );
        let mut id = [0; ID_BYTES];
        id.copy_from_slice(&tag.as_ref()[..ID_BYTES]);
        Self {
            id,
            key: LessSafeKey::new(UnboundKey::from(expanded)),
        }
    }
}

fn bare_key(bytes: &[u8; KEY_BYTES]) -> LessSafeKey {
    let key = UnboundKey::new(&AES_256_GCM, bytes);
    LessSafeKey::new(key.expect("AES-256 takes 32 bytes"))
}

/// Nonce, ciphertext, tag.
fn encrypt(key: &LessSafeKey, place: &Place<'_>, value: &[u8]) -> Vec<u8> {
    let nonce: [u8; NONCE_LEN] = rand::random();
    let mut bytes = value.to_vec();
    let aad = Aad::from(place.associated_data());
    key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut bytes)
        .expect("a secret is far below what AES-GCM can take");
    [&nonce[..], &bytes].concat()
}

fn decrypt(key: &LessSafeKey, place: &Place<'_>, sealed: &[u8]) -> Result<Vec<u8>, VaultError> {
    let (nonce, bytes) = sealed
        .split_first_chunk::<NONCE_LEN>()
        .ok_or(VaultError::Unreadable)?;
    let mut bytes = bytes.to_vec();
    let aad = Aad::from(place.associated_data());
    let opened = key.open_in_place(Nonce::assume_unique_for_key(*nonce), aad, &mut bytes);
    opened
        .map(|value| value.to_vec())
        .map_err(|_| VaultError::NotAuthentic)
}

fn decode(sealed: &str) -> Result<Vec<u8>, VaultError> {
    let text = sealed.strip_prefix(FORM).ok_or(VaultError::Unreadable)?;
    let bytes = STANDARD_NO_PAD.decode(text);
    bytes
        .ok()
        .filter(|bytes| bytes.len() >= ID_BYTES + SEALED_KEY_BYTES + NONCE_LEN + TAG_BYTES)
        .ok_or(VaultError::Unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place<'_> = Place {
        table: "webhook_secrets",
        row: "wkey_1",
        column: "sealed",
    };

    fn secret(text: &str) -> Secret<String> {
        Secret::from(text)
    }

    #[test]
    fn what_is_sealed_opens_in_its_place_and_nowhere_else() {
        let vault = Vault::new(&secret("one"), []);
        let sealed = vault.seal(&PLACE, b"attack at dawn");
        assert_eq!(
            vault.open(&PLACE, &sealed).unwrap().expose(),
            b"attack at dawn"
        );
        for elsewhere in [
            Place {
                table: "other",
                ..PLACE
            },
            Place {
                row: "wkey_2",
                ..PLACE
            },
            Place {
                column: "other",
                ..PLACE
            },
        ] {
            assert_eq!(
                vault.open(&elsewhere, &sealed).unwrap_err(),
                VaultError::NotAuthentic,
                "{elsewhere:?}"
            );
        }
        assert_ne!(sealed, vault.seal(&PLACE, b"attack at dawn"));
        assert!(!sealed.contains("dawn"));
    }

    #[test]
    fn a_byte_that_was_changed_is_noticed_wherever_it_stands() {
        let vault = Vault::new(&secret("one"), []);
        let bytes = decode(&vault.seal(&PLACE, b"x")).unwrap();
        for i in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[i] ^= 1;
            let changed = format!("{FORM}{}", STANDARD_NO_PAD.encode(changed));
            assert!(vault.open(&PLACE, &changed).is_err(), "byte {i}");
        }
        for text in ["", "v1.", "v1.AAAA", "v2.AAAA", "plain"] {
            assert_eq!(
                vault.open(&PLACE, text).unwrap_err(),
                VaultError::Unreadable,
                "{text}"
            );
        }
    }

    #[test]
    fn an_older_key_opens_and_no_longer_seals() {
        let (old, new) = (secret("old"), secret("new"));
        let before = Vault::new(&old, []).seal(&PLACE, b"x");
        let rotated = Vault::new(&new, [&old]);
        assert_eq!(rotated.open(&PLACE, &before).unwrap().expose(), b"x");
        assert!(!rotated.is_current(&before));
        let after = rotated.seal(&PLACE, b"x");
        assert!(rotated.is_current(&after));
        assert_eq!(
            Vault::new(&old, []).open(&PLACE, &after).unwrap_err(),
            VaultError::UnknownKey
        );
    }
}
