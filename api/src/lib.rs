//! OpenAI's HTTP surface: routes, the operations behind them, and OpenAI's JSON. It never computes: training belongs
//! to the scheduler, tokens to the workers.

pub mod access;
mod app;
pub mod auth;
mod batches;
mod body;
mod document;
mod error;
mod kept;
mod listener;
mod multipart;
mod operational;
mod outer;
mod routes;
mod state;
mod stream;
mod wire;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use platform::config::{Config, ConfigError};
use platform::objects::Objects;
use platform::outbound::{Lookup, Outbound};
use platform::service_token::ServiceKey;
use platform::shutdown::Shutdown;
use platform::telemetry::Metrics;
use poem::{EndpointExt, IntoEndpoint};
use store::Store;

pub use listener::ListenError;

use crate::app::rate_limits::Gate;
use crate::batches::Runner;
use crate::listener::Incoming;
use crate::outer::Outer;
use crate::state::{Shared, State};

/// What the API works with.
pub struct ApiOptions {
    pub config: Config,
    pub store: Store,
    pub objects: Objects,
}

/// Why the API does not start.
#[derive(Debug, thiserror::Error)]
pub enum ApiStartError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error("cannot set up an HTTP client: {0}")]
    Client(#[from] reqwest::Error),
}

/// Both listeners, open; nothing is answered before [`ApiServer::serve`].
pub struct ApiServer {
    public: Incoming,
    operational: Incoming,
    state: Shared,
    batches: Runner,
    metrics: Option<Metrics>,
}

/// Opens the listeners. Errors: a public one without TLS, an address that is taken, a missing secret.
pub async fn bind(options: ApiOptions) -> Result<ApiServer, ApiStartError> {
    let ApiOptions {
        config,
        store,
        objects,
    } = options;
    let state = State {
        store,
        objects,
        key_pepper: config.key_pepper()?.clone(),
        service_key: ServiceKey::new(config.service_key()?),
        keys: Default::default(),
        gate: Gate::new(&config.limits),
        spendings: Default::default(),
        newsroom: Default::default(),
        issuers: auth::Issuers::new(&config.auth.issuers)?,
        http: state::worker_client()?,
        batch_made: Default::default(),
        outbound: Outbound::new(config.webhook_rules(), Lookup::System)?,
        vault: config.vault()?,
        ledger: Default::default(),
        queue: Default::default(),
        workers: Default::default(),
        base_names: Default::default(),
        prices: config.prices.models.clone(),
        max_file_bytes: config.api.max_file_bytes,
        max_upload_bytes: config.api.max_upload_bytes,
        max_unfinished_jobs: config.limits.unfinished_jobs,
        running_jobs: config.limits.running_jobs(),
        max_stored_bytes: config.limits.stored_bytes,
        scratch_dir: config.cache_dir().join("api"),
    };
    let state = Arc::new(state);
    Ok(ApiServer {
        batches: Runner::new(state.clone(), &config.api),
        public: Incoming::public(&config.api).await?,
        operational: Incoming::plain(config.api.operational_listen).await?,
        state,
        metrics: record_metrics(),
    })
}

/// Starts to record, unless somebody else in this process did; then `/metrics` is theirs.
fn record_metrics() -> Option<Metrics> {
    match Metrics::install() {
        Ok(metrics) => Some(metrics),
        Err(error) => {
            tracing::warn!(%error, "/metrics shows nothing");
            None
        }
    }
}

impl ApiServer {
    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.public.address()
    }

    /// Where `/metrics` is.
    pub fn operational_address(&self) -> SocketAddr {
        self.operational.address()
    }

    /// Answers, and runs batches, until `shutdown`; then finishes what is on its way.
    pub async fn serve(self, shutdown: Shutdown) -> io::Result<()> {
        let routes = routes::service().into_endpoint().data(self.state.clone());
        let public = Outer::new(routes, self.state.clone());
        let operational = operational::endpoint(self.state.clone(), self.metrics);
        let (ledger, store) = (&self.state.ledger, &self.state.store);
        tracing::info!(address = %self.public.address(), "the API answers");
        tokio::join!(
            self.public.serve(public, shutdown.begun()),
            self.operational.serve(operational, shutdown.begun()),
            self.batches.run(shutdown.clone()),
            self.state.newsroom.run(&self.state, shutdown.clone()),
            ledger.keep(store, shutdown.begun()),
        );
        // What was answered while we stopped.
        ledger.flush(store).await;
        Ok(())
    }
}

/// The OpenAPI document, as JSON that ends with a line break: what the routes say of themselves.
pub fn openapi_document() -> String {
    document::text()
}
