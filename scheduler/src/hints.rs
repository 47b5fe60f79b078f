//! The queue as the scheduler sees it: a place to leave hints, which may be lost, doubled or late.

use std::sync::Arc;

use futures::future::BoxFuture;
use platform::queue::Queue;

/// Where hints go. Implemented by the queue; tests put a lossy one in its place.
pub trait HintSink: Send + Sync + 'static {
    /// Whether workers can be reached this way at all. Without a broker they ask the door.
    fn has_broker(&self) -> bool;
    /// Leaves `body` in `queue`; `Ok` only once the broker has taken charge of it.
    fn publish<'a>(
        &'a self,
        queue: &'a str,
        body: &'a [u8],
    ) -> BoxFuture<'a, Result<(), HintError>>;
    /// Tells every worker that listens now.
    fn broadcast<'a>(&'a self, body: &'a [u8]) -> BoxFuture<'a, Result<(), HintError>>;
}

/// A hint did not get through; it is safe to leave it again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct HintError(pub String);

/// A shared [`HintSink`].
#[derive(Clone)]
pub struct Hints(Arc<dyn HintSink>);

impl Hints {
    pub fn new(sink: impl HintSink) -> Self {
        Self(Arc::new(sink))
    }
}

impl From<Queue> for Hints {
    fn from(queue: Queue) -> Self {
        Self::new(queue)
    }
}

impl std::ops::Deref for Hints {
    type Target = dyn HintSink;

    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}

impl std::fmt::Debug for Hints {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Hints {{ has_broker: {} }}", self.has_broker())
    }
}

impl HintSink for Queue {
    fn has_broker(&self) -> bool {
        Queue::has_broker(self)
    }

    fn publish<'a>(
        &'a self,
        queue: &'a str,
        body: &'a [u8],
    ) -> BoxFuture<'a, Result<(), HintError>> {
        Box::pin(async move { Queue::publish(self, queue, body).await.map_err(lost) })
    }

    fn broadcast<'a>(&'a self, body: &'a [u8]) -> BoxFuture<'a, Result<(), HintError>> {
        Box::pin(async move { Queue::broadcast(self, body).await.map_err(lost) })
    }
}

fn lost(error: impl std::fmt::Display) -> HintError {
    HintError(error.to_string())
}
