//! One connection to the broker, made when it is needed and made again when it is gone.

use std::sync::Arc;

use lapin::uri::AMQPUri;
use lapin::{Channel, Connection, ConnectionProperties};
use tokio::sync::Mutex;

use super::failed;
use crate::queue::QueueError;

/// A peer that is silent this long is gone; the broker answers within half of it. Seconds.
const HEARTBEAT_S: u16 = 10;

pub(super) struct Link {
    uri: AMQPUri,
    /// What the broker's management page shows.
    name: &'static str,
    connection: Mutex<Option<Arc<Connection>>>,
}

impl Link {
    pub(super) fn new(url: &str, name: &'static str) -> Result<Self, QueueError> {
        // The parser's error may quote the URL, password and all.
        let mut uri: AMQPUri = url.parse().map_err(|_| QueueError::Invalid {
            reason: "queue.url is not amqp://user:password@host:port/vhost".to_owned(),
        })?;
        uri.query.heartbeat.get_or_insert(HEARTBEAT_S);
        Ok(Self {
            uri,
            name,
            connection: Mutex::new(None),
        })
    }

    /// A connection that was alive a moment ago. It waits for another caller's attempt to connect,
    /// so callers need a timeout of their own.
    pub(super) async fn connection(&self) -> Result<Arc<Connection>, QueueError> {
        let mut slot = self.connection.lock().await;
        if let Some(connection) = slot.as_ref().filter(|c| c.status().connected()) {
            return Ok(connection.clone());
        }
        *slot = None;
        let properties =
            ConnectionProperties::default().with_connection_name(self.name.to_owned().into());
        let connection = Connection::connect_uri(self.uri.clone(), properties)
            .await
            .map_err(|error| failed("connect", &error))?;
        let connection = Arc::new(connection);
        *slot = Some(connection.clone());
        Ok(connection)
    }

    /// A new channel on the connection.
    pub(super) async fn channel(&self) -> Result<Channel, QueueError> {
        let connection = self.connection().await?;
        let channel = connection.create_channel().await;
        channel.map_err(|error| failed("open a channel", &error))
    }

    /// Whether the broker has said that it reads no messages from this connection for now.
    pub(super) async fn is_blocked(&self) -> bool {
        self.connection
            .lock()
            .await
            .as_ref()
            .is_some_and(|c| c.status().blocked())
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The URI holds the password.
        f.debug_struct("Link")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}
