//! Who calls: a project, by its API key. Runs before anything else on `/v1`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use domain::api_key::redact;
use domain::id::KeyId;
use domain::project::Project;
use hmac::{Hmac, KeyInit, Mac};
use platform::config::Secret;
use poem::http::{HeaderMap, header};
use poem::{Request, RequestBody};
use poem_openapi::registry::{MetaSecurityScheme, Registry};
use poem_openapi::{ApiExtractor, ApiExtractorType, ExtractParamOptions};
use sha2::Sha256;

use crate::app;
use crate::error::{ApiError, Kind};
use crate::state::State;

/// How long a key that was found is taken at its word: a revoked one works at most so much longer.
const CACHE_TTL: Duration = Duration::from_secs(15);
/// Bound on the cache's memory; beyond it everything is looked up again.
const CACHE_KEYS: usize = 10_000;

/// The project that calls, and the key it calls with.
#[derive(Debug, Clone)]
pub struct Caller {
    pub project: Arc<Project>,
    pub key_id: KeyId,
}

/// Keys that were found lately, by their HMAC.
#[derive(Default)]
pub struct KeyCache {
    found: Mutex<HashMap<String, (Caller, Instant)>>,
}

impl KeyCache {
    fn get(&self, hmac: &str) -> Option<Caller> {
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let (caller, since) = found.get(hmac)?;
        (since.elapsed() < CACHE_TTL).then(|| caller.clone())
    }

    fn insert(&self, hmac: String, caller: Caller) {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if found.len() >= CACHE_KEYS {
            found.clear();
        }
        found.insert(hmac, (caller, Instant::now()));
    }
}

/// Finds the caller by the `Authorization` header. Errors: 401; 503 where the database cannot be asked.
pub async fn authenticate(state: &State, headers: &HeaderMap) -> Result<Caller, ApiError> {
    let key = bearer(headers).ok_or_else(no_key)?;
    let hmac = key_hmac(&state.key_pepper, &key);
    let caller = match state.keys.get(&hmac) {
        Some(caller) => caller,
        None => {
            let caller = look_up(state, &hmac)
                .await?
                .ok_or_else(|| wrong_key(&key))?;
            state.keys.insert(hmac, caller.clone());
            caller
        }
    };
    check_named(
        headers,
        "openai-organization",
        "invalid_organization",
        |named| {
            named == caller.project.organization_id.as_str()
                || named == caller.project.organization_slug
        },
    )?;
    check_named(headers, "openai-project", "invalid_project", |named| {
        named == caller.project.id.as_str()
    })?;
    Ok(caller)
}

async fn look_up(state: &State, hmac: &str) -> Result<Option<Caller>, ApiError> {
    let found = state
        .store
        .api_keys()
        .find_by_hmac(hmac)
        .await
        .map_err(app::store_error)?;
    let Some((key, project)) = found else {
        return Ok(None);
    };
    if let Err(error) = state.store.api_keys().touch(&key.id, state.now()).await {
        tracing::warn!(key = %key.id, %error, "the key's last use was not noted");
    }
    Ok(Some(Caller {
        project: Arc::new(project),
        key_id: key.id,
    }))
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

fn bearer(headers: &HeaderMap) -> Option<String> {
    let value = String::from_utf8_lossy(headers.get(header::AUTHORIZATION)?.as_bytes());
    let (scheme, key) = value.split_once(' ')?;
    let key = key.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !key.is_empty()).then(|| key.to_owned())
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

fn wrong_key(key: &str) -> ApiError {
    let shown = crate::wire::decode::echo(&redact(key));
    let message = format!("Incorrect API key provided: {shown}. `luthier key create` makes one.");
    ApiError::new(Kind::Unauthorized, message).code("invalid_api_key")
}

const SCHEME: &str = "ApiKey";

impl<'a> ApiExtractor<'a> for Caller {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::SecurityScheme];
    type ParamType = ();
    type ParamRawType = ();

    fn register(registry: &mut Registry) {
        registry.create_security_scheme(
            SCHEME,
            MetaSecurityScheme {
                ty: "http",
                description: Some("A project's API key: `Authorization: Bearer sk-proj-…`."),
                name: None,
                key_in: None,
                scheme: Some("bearer"),
                bearer_format: None,
                flows: None,
                openid_connect_url: None,
            },
        );
    }

    fn security_schemes() -> Vec<&'static str> {
        vec![SCHEME]
    }

    async fn from_request(
        request: &'a Request,
        _body: &mut RequestBody,
        _options: ExtractParamOptions<Self::ParamType>,
    ) -> poem::Result<Self> {
        // The outermost middleware found the caller already.
        let caller = request.extensions().get::<Caller>();
        Ok(caller.cloned().ok_or_else(no_key)?)
    }
}
