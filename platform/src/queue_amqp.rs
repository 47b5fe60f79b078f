//! The queue on RabbitMQ. Every wait has an end, every publish is confirmed, and no delivery is held
//! longer than the caller takes to acknowledge it.

mod consume;
mod link;

use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lapin::options::{
    BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions, QueueDeclareOptions,
    QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, ExchangeKind};
use tokio::sync::{Mutex, mpsc};

use crate::queue::{Delivery, QueueError};

pub(crate) use consume::Acker;
use link::Link;

/// For one exchange with the broker, connecting included.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Deliveries of one message before it is put aside: a message that kills its reader must not kill
/// all of them.
const DELIVERY_LIMIT: i32 = 5;
/// A tripwire: the scheduler offers only what workers can take, so a queue this long is a bug.
const MAX_LENGTH: i32 = 10_000;
/// AMQP's code for a message that survives a restart of the broker.
const PERSISTENT: u8 = 2;

/// A broker. Publishing and consuming have a connection each: a broker that is short of disk stops
/// reading from connections that publish, and acknowledgements must still get through.
#[derive(Debug)]
pub(crate) struct Broker {
    prefix: String,
    publishing: Link,
    consuming: Link,
    publisher: Mutex<Option<Publisher>>,
}

/// A channel in confirm mode and what has been declared on it.
#[derive(Clone, Debug)]
struct Publisher {
    channel: Channel,
    declared: Arc<std::sync::Mutex<HashSet<String>>>,
}

impl Broker {
    pub(crate) fn new(url: &str, prefix: &str) -> Result<Self, QueueError> {
        Ok(Self {
            prefix: prefix.to_owned(),
            publishing: Link::new(url, "luthier publishes")?,
            consuming: Link::new(url, "luthier consumes")?,
            publisher: Mutex::new(None),
        })
    }

    fn queue_name(&self, queue: &str) -> String {
        format!("{}.{queue}", self.prefix)
    }

    fn control_exchange(&self) -> String {
        format!("{}.control", self.prefix)
    }

    pub(crate) async fn check(&self) -> Result<(), QueueError> {
        in_time("check", async {
            self.publishing.connection().await.map(drop)
        })
        .await
    }

    pub(crate) async fn publish(&self, queue: &str, body: &[u8]) -> Result<(), QueueError> {
        let name = self.queue_name(queue);
        let published = in_time("publish", async {
            let publisher = self.publisher().await?;
            self.declare_once(&publisher, &name).await?;
            // Unroutable messages are confirmed too; only `mandatory` tells them apart.
            let options = BasicPublishOptions {
                mandatory: true,
                ..Default::default()
            };
            let confirmation = send(&publisher, "", &name, options, body).await?;
            if confirmation == Confirmation::Ack(None) {
                return Ok(());
            }
            publisher.declared().remove(&name);
            let reason = match confirmation {
                Confirmation::Ack(_) => "no queue of this name",
                _ => "the queue is full",
            };
            Err(QueueError::NotTaken {
                queue: name,
                reason,
            })
        });
        self.renew_after(published.await).await
    }

    pub(crate) async fn broadcast(&self, body: &[u8]) -> Result<(), QueueError> {
        let exchange = self.control_exchange();
        let published = in_time("broadcast", async {
            let publisher = self.publisher().await?;
            if !publisher.declared().contains(&exchange) {
                declare_control(&publisher.channel, &exchange).await?;
                publisher.declared().insert(exchange.clone());
            }
            let options = BasicPublishOptions::default();
            match send(&publisher, &exchange, "", options, body).await? {
                Confirmation::Ack(_) => Ok(()),
                _ => Err(QueueError::NotTaken {
                    queue: exchange,
                    reason: "it was refused",
                }),
            }
        });
        self.renew_after(published.await).await
    }

    pub(crate) async fn remove(&self, queue: &str) -> Result<(), QueueError> {
        let name = self.queue_name(queue);
        let removed = in_time("remove", async {
            let publisher = self.publisher().await?;
            publisher.declared().remove(&name);
            let options = QueueDeleteOptions::default();
            let removed = publisher
                .channel
                .queue_delete(name.as_str().into(), options)
                .await;
            removed.map(drop).map_err(|error| failed("remove", &error))
        });
        self.renew_after(removed.await).await
    }

    pub(crate) async fn consume(
        self: &Arc<Self>,
        queue: &str,
        prefetch: u16,
    ) -> mpsc::Receiver<Delivery> {
        consume::deliveries(self.clone(), self.queue_name(queue), prefetch).await
    }

    pub(crate) async fn subscribe(self: &Arc<Self>) -> mpsc::Receiver<Bytes> {
        consume::broadcasts(self.clone()).await
    }

    /// The channel to publish on, opened where there is none.
    async fn publisher(&self) -> Result<Publisher, QueueError> {
        let mut slot = self.publisher.lock().await;
        if let Some(publisher) = slot.as_ref().filter(|p| p.channel.status().connected()) {
            if self.publishing.is_blocked().await {
                let reason = "the broker takes no messages now (an alarm is on)".to_owned();
                return Err(QueueError::Unavailable {
                    operation: "publish",
                    reason,
                });
            }
            return Ok(publisher.clone());
        }
        let channel = self.publishing.channel().await?;
        let confirm = channel
            .confirm_select(ConfirmSelectOptions::default())
            .await;
        confirm.map_err(|error| failed("publish", &error))?;
        let publisher = Publisher {
            channel,
            declared: Arc::default(),
        };
        *slot = Some(publisher.clone());
        Ok(publisher)
    }

    async fn declare_once(&self, publisher: &Publisher, name: &str) -> Result<(), QueueError> {
        if publisher.declared().contains(name) {
            return Ok(());
        }
        self.declare(&publisher.channel, name).await?;
        publisher.declared().insert(name.to_owned());
        Ok(())
    }

    /// A queue that is replicated where there are several nodes, and the queue `dead` for what is
    /// put aside. Every argument is given, since the defaults differ between RabbitMQ versions.
    async fn declare(&self, channel: &Channel, name: &str) -> Result<(), QueueError> {
        let dead = self.queue_name("dead");
        let options = QueueDeclareOptions {
            durable: true,
            ..Default::default()
        };
        let mut arguments = FieldTable::default();
        arguments.insert(
            "x-queue-type".into(),
            AMQPValue::LongString("quorum".into()),
        );
        let declared = channel.queue_declare(dead.as_str().into(), options, arguments.clone());
        declared.await.map_err(|error| failed("declare", &error))?;
        if name == dead {
            return Ok(());
        }
        let text = |text: &str| AMQPValue::LongString(text.into());
        arguments.insert(
            "x-delivery-limit".into(),
            AMQPValue::LongInt(DELIVERY_LIMIT),
        );
        arguments.insert("x-dead-letter-exchange".into(), text(""));
        arguments.insert("x-dead-letter-routing-key".into(), text(&dead));
        arguments.insert("x-max-length".into(), AMQPValue::LongInt(MAX_LENGTH));
        arguments.insert("x-overflow".into(), text("reject-publish"));
        let declared = channel.queue_declare(name.into(), options, arguments).await;
        declared
            .map(drop)
            .map_err(|error| failed("declare", &error))
    }

    /// After a failure the next caller gets a fresh channel: the old one may be closed, or wait for
    /// an answer that never comes.
    async fn renew_after(&self, result: Result<(), QueueError>) -> Result<(), QueueError> {
        if matches!(
            result,
            Err(QueueError::Unavailable { .. } | QueueError::Timeout { .. })
        ) {
            // A caller that holds the slot replaces the channel itself.
            if let Ok(mut slot) = self.publisher.try_lock() {
                *slot = None;
            }
        }
        result
    }
}

impl Publisher {
    fn declared(&self) -> std::sync::MutexGuard<'_, HashSet<String>> {
        self.declared
            .lock()
            .expect("no panic while it is held — a bug in queue_amqp")
    }
}

async fn send(
    publisher: &Publisher,
    exchange: &str,
    routing_key: &str,
    options: BasicPublishOptions,
    body: &[u8],
) -> Result<Confirmation, QueueError> {
    let properties = BasicProperties::default().with_delivery_mode(PERSISTENT);
    let publish = publisher.channel.basic_publish(
        exchange.into(),
        routing_key.into(),
        options,
        body,
        properties,
    );
    let confirm = publish.await.map_err(|error| failed("publish", &error))?;
    confirm.await.map_err(|error| failed("publish", &error))
}

async fn declare_control(channel: &Channel, exchange: &str) -> Result<(), QueueError> {
    let options = ExchangeDeclareOptions {
        durable: true,
        ..Default::default()
    };
    let arguments = FieldTable::default();
    let declared =
        channel.exchange_declare(exchange.into(), ExchangeKind::Fanout, options, arguments);
    declared.await.map_err(|error| failed("declare", &error))
}

/// lapin's own waits may never end: a peer that is silent, a broker that is short of disk.
async fn in_time<T>(
    operation: &'static str,
    work: impl Future<Output = Result<T, QueueError>>,
) -> Result<T, QueueError> {
    let timeout_s = ANSWER_TIMEOUT.as_secs();
    let outcome = tokio::time::timeout(ANSWER_TIMEOUT, work).await;
    outcome.unwrap_or(Err(QueueError::Timeout {
        operation,
        timeout_s,
    }))
}

fn failed(operation: &'static str, error: &lapin::Error) -> QueueError {
    QueueError::Unavailable {
        operation,
        reason: error.to_string(),
    }
}
