//! OpenAI's HTTP surface: routes, the operations behind them, and OpenAI's JSON. It never computes: training belongs
//! to the scheduler, tokens to the workers.

mod app;
pub mod auth;
mod body;
mod error;
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
use std::time::Duration;

use platform::config::{Config, ConfigError};
use platform::objects::Objects;
use platform::service_token::ServiceKey;
use platform::shutdown::Shutdown;
use platform::telemetry::Metrics;
use poem::{EndpointExt, IntoEndpoint, Server as PoemServer};
use store::Store;

pub use listener::ListenError;

use crate::listener::Incoming;
use crate::outer::Outer;
use crate::state::{Shared, State};

/// How long answers that are on their way may still take when the service stops.
const DRAIN: Duration = Duration::from_secs(20);
/// A connection that says nothing for so long is closed; longer than any pause within an answer.
const IDLE_CONNECTION: Duration = Duration::from_secs(330);

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
    #[error("cannot set up the HTTP client for the workers: {0}")]
    Client(#[from] reqwest::Error),
}

/// Both listeners, open; nothing is answered before [`ApiServer::serve`].
pub struct ApiServer {
    public: Incoming,
    operational: Incoming,
    state: Shared,
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
        http: state::worker_client()?,
        max_file_bytes: config.api.max_file_bytes,
    };
    Ok(ApiServer {
        public: Incoming::public(&config.api).await?,
        operational: Incoming::plain(config.api.operational_listen).await?,
        state: Arc::new(state),
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

    /// Answers until `shutdown`, then finishes what is on its way.
    pub async fn serve(self, shutdown: Shutdown) -> io::Result<()> {
        let routes = routes::service().into_endpoint().data(self.state.clone());
        let public = PoemServer::new_with_acceptor(self.public)
            .name("api")
            .idle_timeout(IDLE_CONNECTION)
            .run_with_graceful_shutdown(
                Outer::new(routes, self.state.clone()),
                shutdown.begun(),
                Some(DRAIN),
            );
        let operational = PoemServer::new_with_acceptor(self.operational)
            .name("operational")
            .run_with_graceful_shutdown(
                operational::endpoint(self.state, self.metrics),
                shutdown.begun(),
                Some(DRAIN),
            );
        let (public, operational) = tokio::join!(public, operational);
        public.and(operational)
    }
}

/// The OpenAPI document, as JSON that ends with a line break: what the routes say of themselves.
pub fn openapi_document() -> String {
    let spec = routes::service().spec();
    // Sorted, so that a change shows where it is.
    let mut document: serde_json::Value =
        serde_json::from_str(&spec).expect("the document is JSON — a bug in poem-openapi");
    document.sort_all_objects();
    let text = serde_json::to_string_pretty(&document).expect("a value becomes JSON");
    text + "\n"
}
