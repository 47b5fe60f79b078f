//! `auth.issuers`: who else signs bearer tokens that open the API.

use std::path::PathBuf;

use serde::Deserialize;

use super::value::ConfigValue;

/// How a token may be signed. With the issuer's public key alone nobody can make one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Signature {
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
    ES256,
    ES384,
    EdDSA,
}

/// Where an issuer's public keys (a JWK set) are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeysAt {
    Url(String),
    File(PathBuf),
}

/// Whose tokens (JWTs) stand for a project, for services that have an identity already.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Spelled")]
pub struct Issuer {
    /// The token's `iss`, character by character.
    pub issuer: String,
    /// What must be the token's `aud`, or one of them.
    pub audience: String,
    pub keys: KeysAt,
    /// At least one.
    pub algorithms: Vec<Signature>,
    /// The claim with the id of the project.
    pub project_claim: String,
    /// The claim with what the token may do, as a list or between blanks; `None`: all that a key of the project may.
    pub scopes_claim: Option<String>,
}

/// As it stands in the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Spelled {
    issuer: String,
    audience: String,
    jwks_url: Option<String>,
    jwks_file: Option<PathBuf>,
    algorithms: Vec<Signature>,
    #[serde(default = "project_claim")]
    project_claim: String,
    scopes_claim: Option<String>,
}

fn project_claim() -> String {
    "project_id".to_owned()
}

impl TryFrom<Spelled> for Issuer {
    type Error = &'static str;

    fn try_from(spelled: Spelled) -> Result<Self, Self::Error> {
        let keys = match (spelled.jwks_url, spelled.jwks_file) {
            (Some(url), None) if is_private_or_own(&url) => KeysAt::Url(url),
            (None, Some(file)) => KeysAt::File(file),
            (Some(_), None) => return Err("jwks_url is neither https:// nor on this host"),
            _ => return Err("one of jwks_url and jwks_file is needed"),
        };
        if spelled.issuer.is_empty() || spelled.audience.is_empty() {
            return Err("issuer and audience must say something");
        }
        if spelled.algorithms.is_empty() {
            return Err("algorithms must name one at least");
        }
        Ok(Self {
            issuer: spelled.issuer,
            audience: spelled.audience,
            keys,
            algorithms: spelled.algorithms,
            project_claim: spelled.project_claim,
            scopes_claim: spelled.scopes_claim,
        })
    }
}

/// Whoever can change the keys on their way can sign: they come over TLS, or do not leave this host.
fn is_private_or_own(url: &str) -> bool {
    let own = [
        "http://127.0.0.1:",
        "http://127.0.0.1/",
        "http://[::1]:",
        "http://[::1]/",
    ];
    url.starts_with("https://") || own.iter().any(|start| url.starts_with(start))
}

impl ConfigValue for Vec<Issuer> {
    const EXPECTED: &'static str = "a list of issuers, each with `issuer`, `audience`, `jwks_url` (https://) or `jwks_file`, `algorithms` such as \
                                    [\"RS256\"], and perhaps `project_claim` and `scopes_claim`";

    /// The environment has no lists: JSON.
    fn from_text(text: &str) -> Option<Self> {
        if text.is_empty() {
            return Some(Vec::new());
        }
        serde_json::from_str(text).ok()
    }

    fn from_toml(value: &toml::Value) -> Option<Self> {
        value.clone().try_into().ok()
    }
}
