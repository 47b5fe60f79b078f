//! Starting and stopping: the listener of the door, the loops, and their end in good order.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use platform::config::ConfigError;
use platform::service_token::ServiceKey;
use platform::shutdown::Shutdown;
use poem::Server;
use poem::listener::TcpAcceptor;
use tokio_util::sync::CancellationToken;

use crate::door;
use crate::loops;
use crate::scheduler::{Scheduler, SchedulerOptions};

/// Longest wait for calls that are being answered.
const CLOSE_LIMIT: Duration = Duration::from_secs(10);
/// Why a scheduler does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the door cannot listen on {address}")]
    Listen {
        address: SocketAddr,
        source: io::Error,
    },
    #[error("{0}")]
    Config(#[from] ConfigError),
    #[error("cannot set up the HTTP client for webhooks: {0}")]
    Client(reqwest::Error),
}

/// A scheduler whose door listens; nothing is answered before [`SchedulerServer::serve`].
pub struct SchedulerServer {
    scheduler: Scheduler,
    acceptor: TcpAcceptor,
    address: SocketAddr,
    key: ServiceKey,
}

/// Binds the door; with port 0 the system picks one, see [`SchedulerServer::address`].
pub async fn bind(options: SchedulerOptions) -> Result<SchedulerServer, StartError> {
    let wanted = options.config.scheduler.door_listen;
    let key = ServiceKey::new(options.config.service_key()?);
    let failed = |source| StartError::Listen {
        address: wanted,
        source,
    };
    let listener = platform::listen(wanted).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let acceptor = TcpAcceptor::from_tokio(listener).map_err(failed)?;
    Ok(SchedulerServer {
        scheduler: Scheduler::new(options)?,
        acceptor,
        address,
        key,
    })
}

impl SchedulerServer {
    /// Where the door listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The passes, for whoever wants to do them by hand.
    pub fn scheduler(&self) -> Scheduler {
        self.scheduler.clone()
    }

    /// Answers the door and does every duty until `shutdown`; then nothing new is offered, claimed
    /// or validated, and calls that are being answered are finished, at most 10 s.
    ///
    /// Attempts go on: their workers repeat their calls until a scheduler answers again. On one
    /// machine the worker drains first, so the caller asks for our end after its.
    pub async fn serve(self, shutdown: Shutdown) -> io::Result<()> {
        let stop = CancellationToken::new();
        let mut duties = loops::start(&self.scheduler, &stop);
        let draining = self.scheduler.shared.draining.clone();
        let answering = self.answer(async move {
            shutdown.begun().await;
            draining.cancel();
        });
        let result = answering.await;
        stop.cancel();
        while duties.join_next().await.is_some() {}
        result
    }

    /// Only the door, without the loops, until `until`.
    pub async fn answer(self, until: impl Future<Output = ()>) -> io::Result<()> {
        let Self {
            scheduler,
            acceptor,
            address,
            key,
        } = self;
        tracing::info!(%address, "the door is open");
        let endpoint = door::endpoint(scheduler, key);
        let server = Server::new_with_acceptor(acceptor);
        server
            .run_with_graceful_shutdown(endpoint, until, Some(CLOSE_LIMIT))
            .await
    }
}
