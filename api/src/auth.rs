//! Who calls: a project or an administrator, by its API key or the token of a trusted issuer. Runs before anything else
//! on `/v1`.

mod cache;
mod extract;
mod jwks;
mod look_up;
mod token;

use std::sync::Arc;

use domain::api_key::{KeyKind, redact, spell};
use domain::id::KeyId;
use domain::project::{Organization, Project};
use domain::scope::Scopes;
use domain::time::Timestamp;
use domain::user::User;
use hmac::{Hmac, KeyInit, Mac};
use platform::config::Secret;
use poem::Request;
use poem::http::{HeaderMap, header};
use sha2::Sha256;

use crate::access;
use crate::error::{ApiError, Kind};
use crate::state::State;

pub use cache::KeyCache;
pub use token::Issuers;

/// The project that calls, and the key it calls with; with a token, what stands for whom it speaks for.
#[derive(Debug, Clone)]
pub struct Caller {
    pub project: Arc<Project>,
    pub key_id: KeyId,
    /// When the key or the token ends by itself.
    pub expires_at: Option<Timestamp>,
}

/// Who administers which organisation, by an admin key, and from where.
#[derive(Debug, Clone)]
pub struct Admin {
    pub organization: Arc<Organization>,
    pub key_id: KeyId,
    /// `None`: a key that was made on the command line for nobody.
    pub user: Option<User>,
    /// When the key ends by itself.
    pub expires_at: Option<Timestamp>,
    /// The address that the connection came from.
    pub ip: String,
}

/// Whom a key stands for.
#[derive(Debug, Clone)]
pub enum Principal {
    Project(Caller),
    Admin(Admin),
}

/// A key that opens something.
#[derive(Debug, Clone)]
struct Known {
    principal: Principal,
    scopes: Scopes,
}

/// What came as a bearer, judged without looking anything up.
#[derive(Debug, Clone, Copy)]
enum Bearer {
    Key(KeyKind),
    Token,
}

impl Bearer {
    fn recognise(state: &State, text: &str) -> Option<Self> {
        let key = KeyKind::recognise(text).map(Bearer::Key);
        key.or_else(|| state.issuers.recognise(text).then_some(Bearer::Token))
    }
}

/// Finds the caller by the `Authorization` header, and judges whether its key opens this route.
/// Errors: 401; 403; 503 where the database cannot be asked.
pub async fn authenticate(state: &State, request: &Request) -> Result<Principal, ApiError> {
    let headers = request.headers();
    let key = bearer(headers).ok_or_else(no_key)?;
    // Before anything is looked up: a wrong key costs no query.
    let bearer = Bearer::recognise(state, &key).ok_or_else(|| wrong_key(&key))?;
    let hmac = key_hmac(&state.key_pepper, &key);
    let known = match state.keys.get(&hmac) {
        Some(known) => known,
        None => {
            let epoch = state.keys.epoch();
            let known = match bearer {
                Bearer::Key(kind) => look_up::by_hmac(state, kind, &hmac).await?,
                Bearer::Token => Some(token::open(state, &key).await?),
            };
            let known = known.ok_or_else(|| wrong_key(&key))?;
            state.keys.insert(hmac, known.clone(), epoch);
            known
        }
    };
    let expires_at = known.principal.expires_at();
    if expires_at.is_some_and(|at| at <= state.now()) {
        return Err(match bearer {
            Bearer::Key(_) => expired(&key),
            Bearer::Token => token::expired(),
        });
    }
    check_tenant(headers, &known.principal)?;
    let path = request.uri().path();
    access::check(&known.principal, &known.scopes, request.method(), path)?;
    Ok(match known.principal {
        Principal::Admin(admin) => Principal::Admin(Admin {
            ip: address(request),
            ..admin
        }),
        project => project,
    })
}

impl Principal {
    pub fn organization_slug(&self) -> &str {
        match self {
            Principal::Project(caller) => &caller.project.organization_slug,
            Principal::Admin(admin) => &admin.organization.slug,
        }
    }

    pub fn key_id(&self) -> &KeyId {
        match self {
            Principal::Project(caller) => &caller.key_id,
            Principal::Admin(admin) => &admin.key_id,
        }
    }

    fn expires_at(&self) -> Option<Timestamp> {
        match self {
            Principal::Project(caller) => caller.expires_at,
            Principal::Admin(admin) => admin.expires_at,
        }
    }

    /// The project that calls; an administrator calls for none.
    pub fn project(&self) -> Option<&Project> {
        match self {
            Principal::Project(caller) => Some(&caller.project),
            Principal::Admin(_) => None,
        }
    }
}

/// The secret of a new key, and what is kept of it.
pub struct NewSecret {
    /// Shown once, then forgotten.
    pub value: String,
    pub hmac: String,
    pub redacted: String,
}

impl NewSecret {
    /// Draws a secret.
    pub fn mint(pepper: &Secret<String>, kind: KeyKind) -> Self {
        let value = spell(kind, &rand::random());
        Self {
            hmac: key_hmac(pepper, &value),
            redacted: redact(&value),
            value,
        }
    }
}

/// The hexadecimal HMAC-SHA256 of a key under the installation's pepper: what the database keeps of it.
pub fn key_hmac(pepper: &Secret<String>, key: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(pepper.expose().as_bytes())
        .expect("HMAC takes a key of any length");
    mac.update(key.as_bytes());
    mac.finalize()
        .into_bytes()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// The key of the one `Authorization` header.
fn bearer(headers: &HeaderMap) -> Option<String> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return None;
    };
    let value = String::from_utf8_lossy(value.as_bytes());
    let (scheme, key) = value.split_once(' ')?;
    let key = key.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !key.is_empty()).then(|| key.to_owned())
}

/// Never what a header claims: only a proxy in front could know better, and this service has none of its own.
fn address(request: &Request) -> String {
    let remote = request.remote_addr().as_socket_addr();
    remote.map_or_else(String::new, |address| address.ip().to_string())
}

/// What the headers name must be what the key belongs to.
fn check_tenant(headers: &HeaderMap, principal: &Principal) -> Result<(), ApiError> {
    let (id, slug) = match principal {
        Principal::Project(caller) => {
            let project = &caller.project;
            (&project.organization_id, &project.organization_slug)
        }
        Principal::Admin(admin) => (&admin.organization.id, &admin.organization.slug),
    };
    let is_organization = |named: &str| named == id.as_str() || named == slug;
    check_named(
        headers,
        "openai-organization",
        "invalid_organization",
        is_organization,
    )?;
    match principal {
        Principal::Project(caller) => {
            let is_project = |named: &str| named == caller.project.id.as_str();
            check_named(headers, "openai-project", "invalid_project", is_project)
        }
        // An administrator is of no project, whatever its SDK was set up with.
        Principal::Admin(_) => Ok(()),
    }
}

fn check_named(
    headers: &HeaderMap,
    name: &str,
    code: &'static str,
    is_callers: impl Fn(&str) -> bool,
) -> Result<(), ApiError> {
    match headers
        .get(name)
        .map(|value| value.to_str().unwrap_or_default())
    {
        Some(named) if !named.is_empty() && !is_callers(named) => {
            let message = format!("The {name} header does not name what this API key belongs to.");
            Err(ApiError::new(Kind::Unauthorized, message).code(code))
        }
        _ => Ok(()),
    }
}

fn no_key() -> ApiError {
    ApiError::new(
        Kind::Unauthorized,
        "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer auth \
         (i.e. Authorization: Bearer YOUR_KEY). `luthier key create` makes one.",
    )
}

fn shown(key: &str) -> String {
    crate::wire::decode::echo(&redact(key))
}

fn wrong_key(key: &str) -> ApiError {
    let shown = shown(key);
    let message = format!("Incorrect API key provided: {shown}. `luthier key create` makes one.");
    ApiError::new(Kind::Unauthorized, message).code("invalid_api_key")
}

fn expired(key: &str) -> ApiError {
    let shown = shown(key);
    let message = format!("The API key {shown} has expired. `luthier key create` makes a new one.");
    ApiError::new(Kind::Unauthorized, message).code("expired_api_key")
}
