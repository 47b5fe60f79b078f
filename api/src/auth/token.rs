//! Bearer tokens (JWTs) of trusted issuers: each stands for the project that it names, for services that have an
//! identity already. What a token says is believed once its signature holds, and of how it says so nothing: algorithms
//! and keys are the configuration's. Sources: RFC 7519, RFC 8725.

use std::collections::BTreeMap;
use std::sync::Arc;

use domain::id::{Entropy, KeyId, ProjectId};
use domain::project::Project;
use domain::scope::Scopes;
use domain::time::Timestamp;
use jsonwebtoken::dangerous::insecure_decode_claims;
use jsonwebtoken::{Algorithm, DecodingKey, Header, Validation, decode, decode_header};
use platform::config::{Issuer, Signature};
use serde::Deserialize;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::jwks::{self, Jwks};
use super::{Caller, Known, Principal};
use crate::app::store_error;
use crate::error::{ApiError, Kind};
use crate::state::State;

/// How far an issuer's clock may be from ours. Seconds.
const LEEWAY_S: u64 = 30;

/// Everyone whose tokens open the API.
pub struct Issuers(Vec<Trusted>);

struct Trusted {
    issuer: Issuer,
    keys: Jwks,
}

/// What a token says. Times are numbers: as text they would be read as absent elsewhere (CVE-2026-25537).
#[derive(Debug, Deserialize)]
struct Claims {
    iss: String,
    exp: f64,
    #[serde(rename = "nbf")]
    _nbf: Option<f64>,
    sub: Option<String>,
    #[serde(flatten)]
    more: Map<String, Value>,
}

impl Issuers {
    /// Errors: no HTTP client can be made.
    pub fn new(issuers: &[Issuer]) -> Result<Self, reqwest::Error> {
        let http = jwks::client()?;
        let trusted = |issuer: &Issuer| Trusted {
            issuer: issuer.clone(),
            keys: Jwks::new(issuer.keys.clone(), http.clone()),
        };
        Ok(Self(issuers.iter().map(trusted).collect()))
    }

    /// Whether `text` could be a token of somebody: three parts, of which the first begins as JSON does in base64.
    pub(super) fn recognise(&self, text: &str) -> bool {
        !self.0.is_empty() && text.starts_with("eyJ") && text.split('.').count() == 3
    }

    /// The token's issuer and what it says, once its signature holds.
    async fn verify(&self, token: &str) -> Result<(&Issuer, Claims), ApiError> {
        let header = decode_header(token).map_err(|error| {
            refused("it has no header that can be read").detail(error.to_string())
        })?;
        // Only to know whom to ask; believed is nothing of it yet.
        let claimed: Claims = insecure_decode_claims(token).map_err(|error| {
            refused("its claims cannot be read, or lack `iss` or `exp`").detail(error.to_string())
        })?;
        let trusted = self
            .0
            .iter()
            .find(|known| known.issuer.issuer == claimed.iss);
        let trusted = trusted.ok_or_else(|| refused("its issuer is not trusted here"))?;
        let key = trusted.key(&header).await?;
        let validation = trusted.validation(header.alg);
        let verified = decode::<Claims>(token, &key, &validation).map_err(|error| {
            refused("its signature, audience or time does not hold").detail(error.to_string())
        })?;
        Ok((&trusted.issuer, verified.claims))
    }
}

impl Trusted {
    /// The issuer's key for this token. What the header says of other keys (`jku`, `x5u`, `jwk`) is not looked at.
    async fn key(&self, header: &Header) -> Result<DecodingKey, ApiError> {
        let is_allowed = |signature: &Signature| algorithm(*signature) == header.alg;
        if !self.issuer.algorithms.iter().any(is_allowed) {
            return Err(refused("its algorithm is not one of its issuer's"));
        }
        let key_id = header.kid.as_deref();
        let key_id = key_id.ok_or_else(|| refused("it names no key (`kid`)"))?;
        let found = self.keys.find(key_id).await;
        let found = found.map_err(|error| ApiError::unavailable(error.to_string()))?;
        let key = found.ok_or_else(|| refused("its issuer has no such key"))?;
        DecodingKey::from_jwk(&key)
            .map_err(|error| refused("its issuer's key cannot be used").detail(error.to_string()))
    }

    fn validation(&self, algorithm: Algorithm) -> Validation {
        let mut validation = Validation::new(algorithm);
        validation.leeway = LEEWAY_S;
        validation.validate_nbf = true;
        validation.set_issuer(&[&self.issuer.issuer]);
        validation.set_audience(&[&self.issuer.audience]);
        validation.set_required_spec_claims(&["exp", "aud", "iss"]);
        validation
    }
}

/// What the token opens. Errors: 401 that says why; 503 where its issuer was never reached.
pub(super) async fn open(state: &State, token: &str) -> Result<Known, ApiError> {
    let (issuer, claims) = state.issuers.verify(token).await?;
    let project = project(state, issuer, &claims).await?;
    Ok(Known {
        principal: Principal::Project(Caller {
            project: Arc::new(project),
            key_id: stand_in(&claims),
            // Beyond what a timestamp can say is never.
            expires_at: Some(Timestamp(((claims.exp + LEEWAY_S as f64) * 1e6) as i64)),
        }),
        scopes: scopes(issuer, &claims),
    })
}

async fn project(state: &State, issuer: &Issuer, claims: &Claims) -> Result<Project, ApiError> {
    let named = claims
        .more
        .get(&issuer.project_claim)
        .and_then(Value::as_str);
    let id = named.and_then(|text| ProjectId::parse(text).ok());
    let found = match id {
        Some(id) => state
            .store
            .projects()
            .find(&id)
            .await
            .map_err(store_error)?,
        None => None,
    };
    let found = found.filter(|project| project.archived_at.is_none());
    found.ok_or_else(|| refused("it names no project of this installation"))
}

/// What the token may do. Issuers have words of their own beside ours; without any of ours it opens nothing.
fn scopes(issuer: &Issuer, claims: &Claims) -> Scopes {
    let Some(claim) = &issuer.scopes_claim else {
        return Scopes::All;
    };
    let words: Vec<&str> = match claims.more.get(claim) {
        Some(Value::String(text)) => text.split_whitespace().collect(),
        Some(Value::Array(values)) => values.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    let ours = Scopes::names();
    let words: Vec<&str> = words
        .into_iter()
        .filter(|word| ours.contains(word))
        .collect();
    if words.is_empty() {
        return Scopes::Restricted(BTreeMap::new());
    }
    Scopes::parse(&words).expect("names of ours alone — a bug in scopes")
}

/// A token has no key of ours: who it speaks for stands in its place, so that its repetitions are recognised.
fn stand_in(claims: &Claims) -> KeyId {
    let subject = claims.sub.as_deref().unwrap_or_default();
    let digest = Sha256::digest(format!("{}\n{subject}", claims.iss).as_bytes());
    let mut bytes = Entropy::default();
    let n = bytes.len();
    bytes.copy_from_slice(&digest[..n]);
    KeyId::mint(bytes)
}

fn algorithm(signature: Signature) -> Algorithm {
    match signature {
        Signature::RS256 => Algorithm::RS256,
        Signature::RS384 => Algorithm::RS384,
        Signature::RS512 => Algorithm::RS512,
        Signature::PS256 => Algorithm::PS256,
        Signature::PS384 => Algorithm::PS384,
        Signature::PS512 => Algorithm::PS512,
        Signature::ES256 => Algorithm::ES256,
        Signature::ES384 => Algorithm::ES384,
        Signature::EdDSA => Algorithm::EdDSA,
    }
}

fn refused(reason: &str) -> ApiError {
    let message = format!("This bearer token opens nothing here: {reason}.");
    ApiError::new(Kind::Unauthorized, message).code("invalid_token")
}

/// It was taken before, and its time has come.
pub(super) fn expired() -> ApiError {
    refused("it has expired")
}
