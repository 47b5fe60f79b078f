//! Signed messages to where tenants say, after the Standard Webhooks specification
//! (github.com/standard-webhooks/standard-webhooks): who knows the secret can tell that we sent them, and when.

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};

use domain::id::WebhookSecretId;
use domain::time::Timestamp;

use crate::config::Secret;
use crate::outbound::{CallError, Outbound};
use crate::vault::{Place, Vault, VaultError};

const PREFIX: &str = "whsec_";
/// The specification wants 24 to 64.
const SECRET_BYTES: usize = 32;

/// What an endpoint's messages are signed with.
#[derive(Debug, Clone)]
pub struct SigningSecret(Secret<Vec<u8>>);

impl SigningSecret {
    /// A new one, from the system's randomness.
    pub fn draw() -> Self {
        Self(Secret::new(rand::random::<[u8; SECRET_BYTES]>().to_vec()))
    }

    /// What is to be kept of it, in the row of this id and in no other.
    pub fn seal(&self, vault: &Vault, row: &WebhookSecretId) -> String {
        vault.seal(&place(row), self.0.expose())
    }

    /// Errors: it was sealed for another row, was changed, or needs a key that is not there.
    pub fn open(vault: &Vault, row: &WebhookSecretId, sealed: &str) -> Result<Self, VaultError> {
        vault.open(&place(row), sealed).map(Self)
    }

    /// As the receiver must know it: `whsec_…`.
    pub fn text(&self) -> Secret<String> {
        Secret::new(format!("{PREFIX}{}", STANDARD.encode(self.0.expose())))
    }

    /// Enough of the text to recognise it.
    pub fn hint(&self) -> String {
        let text = self.text();
        let text = text.expose();
        format!("{PREFIX}…{}", &text[text.len() - 4..])
    }

    /// `v1,` and the base64 of the HMAC-SHA-256.
    fn sign(&self, message: &Message<'_>) -> String {
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.0.expose());
        let Message { id, sent_at, body } = message;
        let signed = format!("{id}.{}.{body}", sent_at.unix_s());
        let signature = hmac::sign(&key, signed.as_bytes());
        format!("v1,{}", STANDARD.encode(signature))
    }
}

fn place(row: &WebhookSecretId) -> Place<'_> {
    Place {
        table: "webhook_secrets",
        row: row.as_str(),
        column: "sealed",
    }
}

/// A message as it goes out.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    /// The same however often it is sent.
    pub id: &'a str,
    pub sent_at: Timestamp,
    pub body: &'a str,
}

/// Sends a message once, with a signature for each secret; the receiver's status.
pub async fn send(
    outbound: &Outbound,
    url: &str,
    message: &Message<'_>,
    secrets: &[SigningSecret],
) -> Result<u16, CallError> {
    let headers = headers(message, secrets);
    outbound.post(url, headers, message.body.to_owned()).await
}

fn headers(message: &Message<'_>, secrets: &[SigningSecret]) -> HeaderMap {
    let signatures: Vec<String> = secrets.iter().map(|secret| secret.sign(message)).collect();
    let plain = |text: String| {
        HeaderValue::try_from(text).expect("ids, digits and base64 — a bug in the webhook's id")
    };
    HeaderMap::from_iter([
        (CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (
            HeaderName::from_static("webhook-id"),
            plain(message.id.to_owned()),
        ),
        (
            HeaderName::from_static("webhook-timestamp"),
            plain(message.sent_at.unix_s().to_string()),
        ),
        (
            HeaderName::from_static("webhook-signature"),
            plain(signatures.join(" ")),
        ),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the specification's own libraries.
    #[test]
    fn a_signature_is_that_of_the_specification() {
        let bytes = STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let secret = SigningSecret(Secret::new(bytes));
        let message = Message {
            id: "msg_p5jXN8AQM9LWM0D4loKWxJek",
            sent_at: Timestamp::from_unix_s(1_614_265_330),
            body: r#"{"test": 2432232314}"#,
        };
        let own = SigningSecret::draw();
        let headers = headers(&message, &[secret, own.clone()]);
        let signatures = headers["webhook-signature"].to_str().unwrap();
        let (first, second) = signatures.split_once(' ').unwrap();
        assert_eq!(first, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        assert_eq!(second, own.sign(&message));
        assert_eq!(headers["webhook-timestamp"], "1614265330");
    }

    #[test]
    fn a_kept_secret_opens_in_its_own_row_alone() {
        let vault = Vault::new(&Secret::from("k"), []);
        let (own, other) = (
            WebhookSecretId::mint([1; 24]),
            WebhookSecretId::mint([2; 24]),
        );
        let secret = SigningSecret::draw();
        let sealed = secret.seal(&vault, &own);
        let opened = SigningSecret::open(&vault, &own, &sealed).unwrap();
        assert_eq!(opened.text(), secret.text());
        assert!(SigningSecret::open(&vault, &other, &sealed).is_err());
    }

    #[test]
    fn a_hint_shows_the_ends_of_a_secret_only() {
        let secret = SigningSecret(Secret::new(vec![0; SECRET_BYTES]));
        assert_eq!(secret.text().expose().len(), PREFIX.len() + 44);
        assert_eq!(secret.hint(), "whsec_…AAA=");
        assert!(!format!("{secret:?}").contains("AAA"));
    }
}
