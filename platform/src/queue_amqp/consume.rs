//! Consumers that outlive their connection: a task takes messages from the broker and hands them on
//! one at a time; when the connection is gone it makes another, with backoff.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicQosOptions, BasicRejectOptions, QueueBindOptions,
    QueueDeclareOptions,
};
use lapin::types::FieldTable;
use tokio::sync::mpsc;

use super::{Broker, declare_control, failed, in_time};
use crate::queue::{Delivery, QueueError};

/// After the first failure; it doubles with each more.
const BACKOFF_MIN: Duration = Duration::from_millis(250);
/// A broker that is back is found within this and its half again.
const BACKOFF_MAX: Duration = Duration::from_secs(15);

/// What a consumer takes from, and how it is set up on a new connection.
enum Source {
    Queue { name: String, prefetch: u16 },
    Control,
}

/// Starts to consume the queue `name`; returns after the first attempt, whatever came of it.
pub(super) async fn deliveries(
    broker: Arc<Broker>,
    name: String,
    prefetch: u16,
) -> mpsc::Receiver<Delivery> {
    start(broker, Source::Queue { name, prefetch }, |mut delivery| {
        Delivery {
            body: Bytes::from(std::mem::take(&mut delivery.data)),
            redelivered: delivery.redelivered,
            acker: Acker(delivery),
        }
    })
    .await
}

/// As [`deliveries`], for broadcasts.
pub(super) async fn broadcasts(broker: Arc<Broker>) -> mpsc::Receiver<Bytes> {
    start(broker, Source::Control, |delivery| {
        Bytes::from(delivery.data)
    })
    .await
}

async fn start<T: Send + 'static>(
    broker: Arc<Broker>,
    source: Source,
    convert: fn(lapin::message::Delivery) -> T,
) -> mpsc::Receiver<T> {
    let (sender, receiver) = mpsc::channel(1);
    let first = broker.connect_source(&source).await;
    tokio::spawn(pass_on(broker, source, first, sender, convert));
    receiver
}

/// Runs until the receiver is dropped.
async fn pass_on<T>(
    broker: Arc<Broker>,
    source: Source,
    first: Result<lapin::Consumer, QueueError>,
    sender: mpsc::Sender<T>,
    convert: fn(lapin::message::Delivery) -> T,
) {
    let mut attempt = first;
    let mut n_failures = 0;
    loop {
        let lost = match attempt {
            Err(error) => {
                n_failures += 1;
                error
            }
            Ok(mut consumer) => {
                n_failures = 0;
                match drain(&mut consumer, &sender, convert).await {
                    Drained::ReceiverGone => return,
                    Drained::Lost(error) => error,
                }
            }
        };
        let wait = backoff(n_failures);
        tracing::warn!(source = source.name(), error = %lost, ?wait, "consumer lost its broker");
        tokio::select! {
            () = sender.closed() => return,
            () = tokio::time::sleep(wait) => {}
        }
        attempt = broker.connect_source(&source).await;
    }
}

enum Drained {
    ReceiverGone,
    Lost(QueueError),
}

async fn drain<T>(
    consumer: &mut lapin::Consumer,
    sender: &mpsc::Sender<T>,
    convert: fn(lapin::message::Delivery) -> T,
) -> Drained {
    loop {
        let delivery = tokio::select! {
            () = sender.closed() => return Drained::ReceiverGone,
            delivery = consumer.next() => delivery,
        };
        match delivery {
            Some(Ok(delivery)) => {
                if sender.send(convert(delivery)).await.is_err() {
                    return Drained::ReceiverGone;
                }
            }
            Some(Err(error)) => return Drained::Lost(failed("consume", &error)),
            None => {
                let reason = "the broker ended the consumer".to_owned();
                return Drained::Lost(QueueError::Unavailable {
                    operation: "consume",
                    reason,
                });
            }
        }
    }
}

/// Doubles from [`BACKOFF_MIN`] to [`BACKOFF_MAX`], then up to half of it more or less: many
/// workers must not return in the same moment.
fn backoff(n_failures: u32) -> Duration {
    let full = BACKOFF_MIN
        .saturating_mul(1 << n_failures.min(10))
        .min(BACKOFF_MAX);
    full.mul_f64(rand::random_range(0.5..1.5))
}

impl Source {
    fn name(&self) -> &str {
        match self {
            Self::Queue { name, .. } => name,
            Self::Control => "control",
        }
    }
}

impl Broker {
    async fn connect_source(&self, source: &Source) -> Result<lapin::Consumer, QueueError> {
        match source {
            Source::Queue { name, prefetch } => {
                in_time("consume", self.consume_queue(name, *prefetch)).await
            }
            Source::Control => in_time("subscribe", self.consume_control()).await,
        }
    }

    async fn consume_queue(
        &self,
        name: &str,
        prefetch: u16,
    ) -> Result<lapin::Consumer, QueueError> {
        let channel = self.consuming.channel().await?;
        self.declare(&channel, name).await?;
        let qos = channel
            .basic_qos(prefetch, BasicQosOptions::default())
            .await;
        qos.map_err(|error| failed("consume", &error))?;
        let options = BasicConsumeOptions::default();
        let consumer = channel
            .basic_consume(name.into(), "".into(), options, FieldTable::default())
            .await;
        consumer.map_err(|error| failed("consume", &error))
    }

    /// A queue of its own that goes with the connection: what is missed is missed.
    async fn consume_control(&self) -> Result<lapin::Consumer, QueueError> {
        let channel = self.consuming.channel().await?;
        let exchange = self.control_exchange();
        declare_control(&channel, &exchange).await?;
        let options = QueueDeclareOptions {
            exclusive: true,
            ..Default::default()
        };
        let queue = channel
            .queue_declare("".into(), options, FieldTable::default())
            .await;
        let queue = queue.map_err(|error| failed("subscribe", &error))?;
        let (options, arguments) = (QueueBindOptions::default(), FieldTable::default());
        let bound = channel.queue_bind(
            queue.name().clone(),
            exchange.into(),
            "".into(),
            options,
            arguments,
        );
        bound.await.map_err(|error| failed("subscribe", &error))?;
        let options = BasicConsumeOptions {
            no_ack: true,
            ..Default::default()
        };
        let consumer = channel
            .basic_consume(
                queue.name().clone(),
                "".into(),
                options,
                FieldTable::default(),
            )
            .await;
        consumer.map_err(|error| failed("subscribe", &error))
    }
}

/// Acknowledges one delivery on the channel that it came by; its body has been taken out.
#[derive(Debug)]
pub(crate) struct Acker(lapin::message::Delivery);

impl Acker {
    pub(crate) async fn ack(self) -> Result<bool, QueueError> {
        in_time("ack", async {
            let answer = self.0.acker.ack(BasicAckOptions::default()).await;
            answer.map_err(|error| failed("ack", &error))
        })
        .await
    }

    pub(crate) async fn reject(self) -> Result<bool, QueueError> {
        in_time("reject", async {
            let answer = self
                .0
                .acker
                .reject(BasicRejectOptions { requeue: false })
                .await;
            answer.map_err(|error| failed("reject", &error))
        })
        .await
    }
}
