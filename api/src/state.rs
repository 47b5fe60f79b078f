//! What every handler works with.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use domain::id::Entropy;
use domain::price::ModelPrice;
use domain::time::Timestamp;
use platform::config::Secret;
use platform::objects::Objects;
use platform::outbound::Outbound;
use platform::service_token::ServiceKey;
use platform::vault::Vault;
use store::Store;
use tokio::sync::Notify;

use crate::app::job_news::Newsroom;
use crate::app::ledger::Ledger;
use crate::app::look::Look;
use crate::app::queue::Queue;
use crate::app::rate_limits::Gate;
use crate::app::spending::Spendings;
use crate::app::workers::Alive;
use crate::auth::{Issuers, KeyCache};

/// Shared by all requests.
pub struct State {
    pub store: Store,
    pub objects: Objects,
    pub key_pepper: Secret<String>,
    pub service_key: ServiceKey,
    pub keys: KeyCache,
    /// Lets requests for generated text pass.
    pub gate: Gate,
    /// What projects have spent that have a limit.
    pub spendings: Spendings,
    /// Tells those who follow a job what is new.
    pub newsroom: Newsroom,
    /// Whose tokens open the API beside keys.
    pub issuers: Issuers,
    /// Speaks to the workers.
    pub http: reqwest::Client,
    /// Speaks to where projects say.
    pub outbound: Outbound,
    /// Seals what is kept of their secrets.
    pub vault: Vault,
    /// What answers took and is not stored yet.
    pub ledger: Arc<Ledger>,
    /// Where jobs that wait stand.
    pub queue: Queue,
    /// Those that are alive.
    pub workers: Look<Alive>,
    /// Of the base models that are installed.
    pub base_names: Look<HashSet<String>>,
    pub prices: Vec<ModelPrice>,
    pub max_file_bytes: u64,
    /// Somebody made a batch here.
    pub batch_made: Notify,
    /// The same of a file that comes in parts.
    pub max_upload_bytes: u64,
    /// Of one project that has no number of its own.
    pub max_unfinished_jobs: u64,
    /// Likewise; `None`: as many as there are workers.
    pub running_jobs: Option<u64>,
    /// Likewise. Bytes.
    pub max_stored_bytes: u64,
    /// Where a request may keep files while it runs.
    pub scratch_dir: PathBuf,
}

/// Handlers share the state.
pub type Shared = Arc<State>;

impl State {
    /// The wall clock: this is where the outside enters.
    pub fn now(&self) -> Timestamp {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Timestamp(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
    }

    /// Random bytes for a new identifier.
    pub fn entropy(&self) -> Entropy {
        rand::random()
    }
}

/// Connects quickly or not at all; an answer may take its time, but not between two lines of it.
pub fn worker_client() -> Result<reqwest::Client, reqwest::Error> {
    reqwest::Client::builder()
        .connect_timeout(Duration::from_secs(2))
        .read_timeout(Duration::from_secs(300))
        .no_proxy()
        .build()
}
