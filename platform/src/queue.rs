//! The queue by which processes hear of work early: RabbitMQ, or none. A message is a hint that may
//! be lost, doubled, late or out of order; what is true stands in the database.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::config::QueueConfig;
use crate::queue_amqp::{Acker, Broker};

/// Queue names and the prefix share AMQP's 255 bytes. Bytes.
const MAX_NAME_BYTES: usize = 180;

/// An open queue; clones share it.
#[derive(Clone, Debug)]
pub struct Queue {
    backend: Backend,
}

#[derive(Clone, Debug)]
enum Backend {
    Amqp(Arc<Broker>),
    None,
}

/// Why a message was not handed over. The sender still has it and may try again.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The broker cannot be reached, or accepts nothing now.
    #[error("queue unavailable during {operation}: {reason}")]
    Unavailable {
        operation: &'static str,
        reason: String,
    },

    /// The broker did not answer in time; the message may or may not have arrived.
    #[error("queue did not answer {operation} within {timeout_s} s")]
    Timeout {
        operation: &'static str,
        timeout_s: u64,
    },

    /// The broker confirmed a message that no queue took, or refused it.
    #[error("queue {queue} did not take the message: {reason}")]
    NotTaken { queue: String, reason: &'static str },

    /// The caller asked for what cannot be.
    #[error("invalid queue request: {reason}")]
    Invalid { reason: String },
}

impl Queue {
    /// Opens the queue at `config.url`. The broker is not contacted before it is needed: a broker
    /// that is down at start is met like one that goes down later.
    pub fn open(config: &QueueConfig) -> Result<Self, QueueError> {
        let url = config.url.expose();
        let backend = if url.starts_with("memory:") {
            Backend::None
        } else {
            check_name("queue.prefix", &config.prefix)?;
            Backend::Amqp(Arc::new(Broker::new(url, &config.prefix)?))
        };
        Ok(Self { backend })
    }

    /// Whether there is a broker. Without one workers ask the door for work, which they also do
    /// while a broker is down.
    pub fn has_broker(&self) -> bool {
        matches!(self.backend, Backend::Amqp(_))
    }

    /// Answers whether the broker can be reached; for readiness. Without a broker it can.
    pub async fn check(&self) -> Result<(), QueueError> {
        match &self.backend {
            Backend::Amqp(broker) => broker.check().await,
            Backend::None => Ok(()),
        }
    }

    /// Hands `body` to `queue`, which is declared where it is absent. `Ok` means that the broker
    /// has written it and one queue holds it. Without a broker: nothing to do. At most 5 s.
    pub async fn publish(&self, queue: &str, body: &[u8]) -> Result<(), QueueError> {
        check_name("queue name", queue)?;
        match &self.backend {
            Backend::Amqp(broker) => broker.publish(queue, body).await,
            Backend::None => Ok(()),
        }
    }

    /// Starts to take messages from `queue`, which is declared where it is absent; at most
    /// `prefetch` of them are unacknowledged at a time. The consumer reconnects by itself, with
    /// backoff. Without a broker it waits for ever.
    pub async fn consume(&self, queue: &str, prefetch: u16) -> Result<Consumer, QueueError> {
        check_name("queue name", queue)?;
        let source = match &self.backend {
            Backend::Amqp(broker) => Some(broker.consume(queue, prefetch).await),
            Backend::None => None,
        };
        Ok(Consumer { source })
    }

    /// Tells `body` to everyone who is subscribed now; whoever is not never hears of it.
    pub async fn broadcast(&self, body: &[u8]) -> Result<(), QueueError> {
        match &self.backend {
            Backend::Amqp(broker) => broker.broadcast(body).await,
            Backend::None => Ok(()),
        }
    }

    /// Listens to broadcasts from now on; reconnects by itself. Without a broker it waits for ever.
    pub async fn subscribe(&self) -> Subscription {
        let source = match &self.backend {
            Backend::Amqp(broker) => Some(broker.subscribe().await),
            Backend::None => None,
        };
        Subscription { source }
    }

    /// Removes `queue` with the messages in it, such as when its base model was retired.
    pub async fn remove(&self, queue: &str) -> Result<(), QueueError> {
        check_name("queue name", queue)?;
        match &self.backend {
            Backend::Amqp(broker) => broker.remove(queue).await,
            Backend::None => Ok(()),
        }
    }
}

/// The messages of one queue. Dropping it gives unacknowledged messages back.
#[derive(Debug)]
pub struct Consumer {
    source: Option<mpsc::Receiver<Delivery>>,
}

impl Consumer {
    /// The next message; safe to drop and call again. `None` once the runtime shuts down.
    pub async fn next(&mut self) -> Option<Delivery> {
        match &mut self.source {
            Some(source) => source.recv().await,
            None => std::future::pending().await,
        }
    }
}

/// A message that the broker keeps until it is acknowledged. It is offered again if this process
/// dies first, or five times at most; then the broker puts it aside, in the queue `dead`.
#[derive(Debug)]
pub struct Delivery {
    pub body: Bytes,
    /// The broker has offered this message before.
    pub redelivered: bool,
    pub(crate) acker: Acker,
}

impl Delivery {
    /// Tells the broker to forget the message. `false`: too late, the broker has taken it back and
    /// will offer it again. `true` is no promise: the broker does not answer an acknowledgement, and
    /// one that is lost on the way also brings the message back. At most 5 s.
    pub async fn ack(self) -> Result<bool, QueueError> {
        self.acker.ack().await
    }

    /// Puts a message that nobody can read aside, in the queue `dead`. `false` as for `ack`.
    pub async fn reject(self) -> Result<bool, QueueError> {
        self.acker.reject().await
    }
}

/// The broadcasts since it was made.
#[derive(Debug)]
pub struct Subscription {
    source: Option<mpsc::Receiver<Bytes>>,
}

impl Subscription {
    /// The next broadcast; safe to drop and call again. `None` once the runtime shuts down.
    pub async fn next(&mut self) -> Option<Bytes> {
        match &mut self.source {
            Some(source) => source.recv().await,
            None => std::future::pending().await,
        }
    }
}

fn check_name(what: &str, name: &str) -> Result<(), QueueError> {
    let readable = |c: char| c.is_ascii_graphic();
    if (1..=MAX_NAME_BYTES / 2).contains(&name.len()) && name.chars().all(readable) {
        return Ok(());
    }
    let limit = MAX_NAME_BYTES / 2;
    let reason = format!("{what} {name:?} is not 1 to {limit} visible ASCII characters");
    Err(QueueError::Invalid { reason })
}
