//! The end of a process: the first signal asks for it, the second one forces it.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// What a shell reports for a process that SIGINT ended.
const FORCED_EXIT_CODE: i32 = 130;

/// Whether this process shall end. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    token: CancellationToken,
}

impl Shutdown {
    /// One that only [`Shutdown::begin`] starts.
    pub fn new() -> Self {
        Self::default()
    }

    /// One that SIGTERM and SIGINT start. A second signal ends the process at once, code 130.
    pub fn on_signals() -> io::Result<Self> {
        let shutdown = Self::new();
        let (mut term, mut int) = (
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
        );
        let begun = shutdown.clone();
        tokio::spawn(async move {
            let mut next = async || {
                tokio::select! {
                    _ = term.recv() => {}
                    _ = int.recv() => {}
                }
            };
            next().await;
            tracing::info!("draining; a second signal stops at once");
            begun.begin();
            next().await;
            std::process::exit(FORCED_EXIT_CODE);
        });
        Ok(shutdown)
    }

    /// Asks everyone who waits to finish.
    pub fn begin(&self) {
        self.token.cancel();
    }

    /// Whether the end has begun.
    pub fn has_begun(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Returns once the end has begun.
    pub async fn begun(&self) {
        self.token.cancelled().await;
    }

    /// For what takes a token; its children end with this.
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }
}
