//! An issuer's public keys: from where the configuration says, and from nowhere else.

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use jsonwebtoken::jwk::{Jwk, JwkSet};
use platform::config::KeysAt;
use tokio::io::AsyncReadExt;
use tokio::sync::Mutex;

/// At most once in so long, whatever tokens name: they cost nothing to make up.
const PAUSE: Duration = Duration::from_secs(60);
/// Keys are taken at their word for so long; a key that its issuer has withdrawn opens nothing afterwards.
const FRESH: Duration = Duration::from_secs(3600);
/// For the whole answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Large issuers have a dozen keys of 2 KiB. Bytes.
const MAX_BYTES: usize = 256 * 1024;

/// The keys were never to be had.
#[derive(Debug, thiserror::Error)]
#[error("the keys of {0} cannot be had")]
pub(super) struct Unreachable(String);

/// Why they cannot be had at the moment; for the operator.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error(transparent)]
    Http(#[from] reqwest::Error),
    #[error(transparent)]
    File(#[from] std::io::Error),
    #[error("more than {MAX_BYTES} bytes")]
    TooLarge,
    #[error("no JWK set: {0}")]
    Malformed(#[from] serde_json::Error),
}

/// The keys of one issuer, fetched when a token first needs one.
pub(super) struct Jwks {
    at: KeysAt,
    http: reqwest::Client,
    held: RwLock<Option<Held>>,
    /// When they were last asked for; whoever holds it asks.
    asked: Mutex<Option<Instant>>,
}

#[derive(Clone)]
struct Held {
    keys: Arc<JwkSet>,
    since: Instant,
}

/// Goes where it is sent and nowhere else.
pub(super) fn client() -> Result<reqwest::Client, reqwest::Error> {
    reqwest::Client::builder()
        .timeout(TIMEOUT)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .build()
}

impl Jwks {
    pub fn new(at: KeysAt, http: reqwest::Client) -> Self {
        Self {
            at,
            http,
            held: RwLock::default(),
            asked: Mutex::default(),
        }
    }

    /// The key that a token names. Errors: the issuer was never reached.
    pub async fn find(&self, key_id: &str) -> Result<Option<Jwk>, Unreachable> {
        if let Some(key) = self.fresh(key_id) {
            return Ok(Some(key));
        }
        let mut asked = self.asked.lock().await;
        // Who waited for the lock may find what the other one has fetched.
        if self.fresh(key_id).is_none() && asked.is_none_or(|at| at.elapsed() >= PAUSE) {
            *asked = Some(Instant::now());
            self.renew().await;
        }
        drop(asked);
        let Held { keys, .. } = self.held().ok_or_else(|| Unreachable(self.place()))?;
        Ok(keys.find(key_id).cloned())
    }

    fn held(&self) -> Option<Held> {
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
        held.clone()
    }

    fn fresh(&self, key_id: &str) -> Option<Jwk> {
        let held = self.held().filter(|held| held.since.elapsed() < FRESH)?;
        held.keys.find(key_id).cloned()
    }

    /// What was there stays where nothing new can be had.
    async fn renew(&self) {
        match self.fetch().await {
            Ok(keys) => {
                let (keys, since) = (Arc::new(keys), Instant::now());
                let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
                *held = Some(Held { keys, since });
            }
            Err(error) => {
                let from = self.place();
                tracing::warn!(from, %error, "an issuer's keys cannot be fetched");
            }
        }
    }

    async fn fetch(&self) -> Result<JwkSet, FetchError> {
        let bytes = match &self.at {
            KeysAt::Url(url) => self.download(url).await?,
            KeysAt::File(path) => read(path).await?,
        };
        Ok(serde_json::from_slice(&bytes)?)
    }

    async fn download(&self, url: &str) -> Result<Vec<u8>, FetchError> {
        let mut response = self.http.get(url).send().await?.error_for_status()?;
        let mut whole = Vec::new();
        while let Some(chunk) = response.chunk().await? {
            if whole.len() + chunk.len() > MAX_BYTES {
                return Err(FetchError::TooLarge);
            }
            whole.extend_from_slice(&chunk);
        }
        Ok(whole)
    }

    fn place(&self) -> String {
        match &self.at {
            KeysAt::Url(url) => url.clone(),
            KeysAt::File(path) => path.display().to_string(),
        }
    }
}

async fn read(path: &Path) -> Result<Vec<u8>, FetchError> {
    let file = tokio::fs::File::open(path).await?;
    let mut whole = Vec::new();
    let limit = MAX_BYTES as u64 + 1;
    file.take(limit).read_to_end(&mut whole).await?;
    if whole.len() > MAX_BYTES {
        return Err(FetchError::TooLarge);
    }
    Ok(whole)
}
