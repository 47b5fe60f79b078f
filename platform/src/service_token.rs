//! Short-lived tokens with which the processes of one installation recognise each other.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};

use crate::config::Secret;

/// In every token, so that one made for another product with the same key is refused.
const ISSUER: &str = "luthier";
/// How far the clocks of two hosts may differ. Seconds.
const LEEWAY_S: u64 = 30;

/// The key that all processes of an installation share.
#[derive(Clone)]
pub struct ServiceKey {
    encoding: EncodingKey,
    decoding: DecodingKey,
}

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Always `luthier`.
    pub iss: String,
    /// Who may accept the token, such as `door` or `worker`.
    pub aud: String,
    /// When it was made. Unix seconds.
    pub iat: u64,
    /// When it ends. Unix seconds.
    pub exp: u64,
}

/// Why a token is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("the service token has expired; check the clocks of both hosts")]
    Expired,

    #[error("the service token is not for {audience}")]
    WrongAudience { audience: String },

    /// Not signed with our key, or not a token at all.
    #[error("the service token is not valid; is secrets.service_key the same everywhere?")]
    Invalid,
}

impl ServiceKey {
    /// A key from `secrets.service_key`.
    pub fn new(secret: &Secret<String>) -> Self {
        let bytes = secret.expose().as_bytes();
        Self {
            encoding: EncodingKey::from_secret(bytes),
            decoding: DecodingKey::from_secret(bytes),
        }
    }
}

impl std::fmt::Debug for ServiceKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ServiceKey(hidden)")
    }
}

/// A token for `audience` that ends after `ttl`.
pub fn issue(key: &ServiceKey, audience: &str, ttl: Duration) -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let claims = Claims {
        iss: ISSUER.to_owned(),
        aud: audience.to_owned(),
        iat: now.as_secs(),
        exp: (now + ttl).as_secs(),
    };
    jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &key.encoding)
        .expect("plain claims and an HMAC key always encode — a bug in service_token")
}

/// The claims of `token`, if it was made with `key` for `audience` and has not ended.
pub fn verify(key: &ServiceKey, audience: &str, token: &str) -> Result<Claims, TokenError> {
    // One algorithm, and every claim required: a token must not choose how it is checked.
    let mut validation = Validation::new(Algorithm::HS256);
    validation.leeway = LEEWAY_S;
    validation.set_issuer(&[ISSUER]);
    validation.set_audience(&[audience]);
    validation.set_required_spec_claims(&["exp", "iss", "aud"]);
    match jsonwebtoken::decode::<Claims>(token, &key.decoding, &validation) {
        Ok(data) => Ok(data.claims),
        Err(error) => Err(match error.kind() {
            jsonwebtoken::errors::ErrorKind::ExpiredSignature => TokenError::Expired,
            jsonwebtoken::errors::ErrorKind::InvalidAudience => TokenError::WrongAudience {
                audience: audience.to_owned(),
            },
            _ => TokenError::Invalid,
        }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn key(text: &str) -> ServiceKey {
        ServiceKey::new(&Secret::from(text.repeat(32).as_str()))
    }

    fn signed(algorithm: Algorithm, claims: &Value) -> String {
        jsonwebtoken::encode(&Header::new(algorithm), claims, &key("k").encoding).unwrap()
    }

    #[test]
    fn a_token_is_good_for_its_audience_and_its_key_alone() {
        let token = issue(&key("k"), "door", MINUTE);
        let claims = verify(&key("k"), "door", &token).unwrap();
        assert_eq!((claims.aud.as_str(), claims.exp - claims.iat), ("door", 60));
        assert!(matches!(
            verify(&key("k"), "worker", &token),
            Err(TokenError::WrongAudience { .. })
        ));
        assert!(matches!(
            verify(&key("x"), "door", &token),
            Err(TokenError::Invalid)
        ));
    }

    #[test]
    fn what_is_old_unsigned_or_incomplete_is_refused() {
        let far = 4_000_000_000_u64;
        let good = json!({"iss": "luthier", "aud": "door", "iat": 1, "exp": far});
        verify(&key("k"), "door", &signed(Algorithm::HS256, &good)).unwrap();
        let with = |name: &str, value: Value| {
            let mut claims = good.clone();
            claims[name] = value;
            signed(Algorithm::HS256, &claims)
        };
        let without = |name: &str| {
            let mut claims = good.clone();
            claims.as_object_mut().unwrap().remove(name);
            signed(Algorithm::HS256, &claims)
        };
        let unsigned = {
            let token = signed(Algorithm::HS256, &good);
            format!("{}.", token.rsplit_once('.').unwrap().0)
        };
        let cases = [
            with("exp", json!(1)),
            with("exp", json!("4000000000")),
            with("iss", json!("other")),
            without("exp"),
            without("aud"),
            without("iss"),
            signed(Algorithm::HS384, &good),
            unsigned,
            String::new(),
        ];
        for token in cases {
            let result = verify(&key("k"), "door", &token);
            assert!(result.is_err(), "{token} gave {result:?}");
        }
    }
}
