//! One suite for every queue: RabbitMQ, and none. The broker is at `LUTHIER_TEST_AMQP_URL`, else on
//! this machine; without one the tests fail, and `tests/run` starts it.

use std::time::Duration;

use platform::config::{QueueConfig, Secret};
use platform::queue::{Consumer, Delivery, Queue, QueueError};
use tests::proxy::Proxy;
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

/// Far beyond what a busy machine needs; only a bug waits this long.
const PATIENCE: Duration = Duration::from_secs(30);
/// Long enough for a message to come that should not.
const QUIET: Duration = Duration::from_millis(300);

fn broker_url() -> String {
    std::env::var("LUTHIER_TEST_AMQP_URL")
        .unwrap_or_else(|_| "amqp://guest:guest@127.0.0.1:5672/%2f".to_owned())
}

/// A queue whose names no other test uses; what it made is removed at the end.
struct Scene {
    queue: Queue,
    prefix: String,
    proxy: Option<Proxy>,
}

impl Scene {
    async fn amqp() -> Self {
        Self::at(&broker_url(), None).await
    }

    /// With a network to the broker that can be cut.
    async fn amqp_behind_proxy() -> Self {
        let url = broker_url();
        let host = url
            .split(['@', '/'])
            .nth(3)
            .expect("amqp://user:password@host:port/vhost");
        let proxy = Proxy::start(host).await.unwrap();
        Self::at(&url.replace(host, &proxy.address.to_string()), Some(proxy)).await
    }

    async fn at(url: &str, proxy: Option<Proxy>) -> Self {
        let prefix = format!("luthier-test-{:016x}", rand::random::<u64>());
        let url = Secret::from(url);
        let queue = Queue::open(&QueueConfig {
            url,
            prefix: prefix.clone(),
        })
        .unwrap();
        if let Err(error) = queue.check().await {
            panic!("no RabbitMQ at LUTHIER_TEST_AMQP_URL ({error}); tests/run starts one");
        }
        Self {
            queue,
            prefix,
            proxy,
        }
    }

    fn none() -> Self {
        Self {
            queue: Queue::open(&QueueConfig::default()).unwrap(),
            prefix: String::new(),
            proxy: None,
        }
    }

    /// A second process on the same broker.
    fn another(&self) -> Queue {
        let url = Secret::from(broker_url());
        Queue::open(&QueueConfig {
            url,
            prefix: self.prefix.clone(),
        })
        .unwrap()
    }

    fn cut(&self) {
        self.proxy.as_ref().expect("a scene behind a proxy").cut();
    }

    async fn end(self) {
        for name in ["train", "other", "dead"] {
            self.queue.remove(name).await.unwrap();
        }
        if self.queue.has_broker() {
            let (_connection, channel) = raw_channel().await;
            let exchange = format!("{}.control", self.prefix);
            channel
                .exchange_delete(exchange.into(), Default::default())
                .await
                .unwrap();
        }
    }
}

async fn raw_channel() -> (lapin::Connection, lapin::Channel) {
    let connection = lapin::Connection::connect(&broker_url(), Default::default())
        .await
        .unwrap();
    let channel = connection.create_channel().await.unwrap();
    (connection, channel)
}

async fn receive(consumer: &mut Consumer) -> Delivery {
    timeout(PATIENCE, consumer.next())
        .await
        .expect("a message in time")
        .expect("a message")
}

/// Runs each test with a broker and without: what must hold in both.
macro_rules! suite {
    ($($name:ident)*) => {
        mod amqp {
            $(#[tokio::test]
            async fn $name() {
                let scene = super::Scene::amqp().await;
                super::$name(&scene.queue).await;
                scene.end().await;
            })*
        }
        mod none {
            $(#[tokio::test]
            async fn $name() {
                let scene = super::Scene::none();
                super::$name(&scene.queue).await;
                scene.end().await;
            })*
        }
    };
}

suite! {
    publishing_needs_no_consumer
    broadcasting_needs_no_listener
    a_consumer_of_an_empty_queue_waits
    removing_twice_is_removing
    names_that_no_broker_takes_are_refused
}

async fn publishing_needs_no_consumer(queue: &Queue) {
    queue.check().await.unwrap();
    queue.publish("train", b"hint").await.unwrap();
    queue.publish("other", b"").await.unwrap();
}

async fn broadcasting_needs_no_listener(queue: &Queue) {
    queue.broadcast(b"cancel").await.unwrap();
}

async fn a_consumer_of_an_empty_queue_waits(queue: &Queue) {
    let mut consumer = queue.consume("train", 1).await.unwrap();
    let mut subscription = queue.subscribe().await;
    assert!(timeout(QUIET, consumer.next()).await.is_err());
    assert!(timeout(QUIET, subscription.next()).await.is_err());
}

async fn removing_twice_is_removing(queue: &Queue) {
    queue.publish("train", b"hint").await.unwrap();
    queue.remove("train").await.unwrap();
    queue.remove("train").await.unwrap();
}

async fn names_that_no_broker_takes_are_refused(queue: &Queue) {
    for name in ["", "two words", "über", &"x".repeat(200)] {
        let refused = queue.publish(name, b"hint").await.unwrap_err();
        assert!(
            matches!(refused, QueueError::Invalid { .. }),
            "{name:?}: {refused}"
        );
        assert!(queue.consume(name, 1).await.is_err(), "{name:?}");
    }
}

#[test]
fn only_a_broker_is_a_broker() {
    assert!(!Scene::none().queue.has_broker());
    let url = Secret::from("amqp://user:hunter2@host:1/%2f?heartbeat=never");
    let refused = Queue::open(&QueueConfig {
        url,
        ..Default::default()
    })
    .unwrap_err()
    .to_string();
    assert!(
        refused.contains("queue.url") && !refused.contains("hunter2"),
        "{refused}"
    );
}

#[tokio::test]
async fn messages_come_once_in_order_and_are_gone_after_the_ack() {
    let scene = Scene::amqp().await;
    let body = |i: u32| format!("job {i}").into_bytes();
    for i in 0..20 {
        scene.queue.publish("train", &body(i)).await.unwrap();
    }
    let mut consumer = scene.another().consume("train", 4).await.unwrap();
    for i in 0..20 {
        let delivery = receive(&mut consumer).await;
        assert_eq!(
            (delivery.body.to_vec(), delivery.redelivered),
            (body(i), false)
        );
        assert!(delivery.ack().await.unwrap());
    }
    drop(consumer);
    let mut later = scene.queue.consume("train", 4).await.unwrap();
    assert!(
        timeout(QUIET, later.next()).await.is_err(),
        "all were acknowledged"
    );
    scene.end().await;
}

#[tokio::test]
async fn no_more_than_the_prefetch_is_out_at_a_time() {
    let scene = Scene::amqp().await;
    for i in 0..3_u8 {
        scene.queue.publish("train", &[i]).await.unwrap();
    }
    let mut consumer = scene.queue.consume("train", 2).await.unwrap();
    let (first, _second) = (receive(&mut consumer).await, receive(&mut consumer).await);
    assert!(
        timeout(QUIET, consumer.next()).await.is_err(),
        "two are out already"
    );
    assert!(first.ack().await.unwrap());
    assert_eq!(receive(&mut consumer).await.body.to_vec(), [2]);
    scene.end().await;
}

#[tokio::test]
async fn a_worker_that_dies_gives_its_message_to_another() {
    let scene = Scene::amqp().await;
    scene.queue.publish("train", b"job").await.unwrap();
    let mut dying = scene.another().consume("train", 1).await.unwrap();
    let held = receive(&mut dying).await;
    drop((held, dying));
    let mut other = scene.queue.consume("train", 1).await.unwrap();
    let delivery = receive(&mut other).await;
    assert_eq!((&*delivery.body, delivery.redelivered), (&b"job"[..], true));
    assert!(delivery.ack().await.unwrap());
    scene.end().await;
}

#[tokio::test]
async fn a_message_that_kills_its_readers_is_put_aside() {
    let scene = Scene::amqp().await;
    scene.queue.publish("train", b"poison").await.unwrap();
    let mut n_deliveries = 0;
    let mut dead = scene.queue.consume("dead", 1).await.unwrap();
    let found = loop {
        let mut reader = scene.queue.consume("train", 1).await.unwrap();
        tokio::select! {
            found = receive(&mut dead) => break found,
            _ = receive(&mut reader) => n_deliveries += 1,
        }
        assert!(n_deliveries <= 6, "it is offered for ever");
    };
    assert_eq!(&*found.body, b"poison");
    assert_eq!(n_deliveries, 6, "the first and five more");
    assert!(found.ack().await.unwrap());
    scene.end().await;
}

#[tokio::test]
async fn a_rejected_message_is_put_aside_at_once() {
    let scene = Scene::amqp().await;
    scene.queue.publish("train", b"gibberish").await.unwrap();
    let mut consumer = scene.queue.consume("train", 1).await.unwrap();
    assert!(receive(&mut consumer).await.reject().await.unwrap());
    let mut dead = scene.queue.consume("dead", 1).await.unwrap();
    assert_eq!(&*receive(&mut dead).await.body, b"gibberish");
    scene.end().await;
}

#[tokio::test]
async fn an_ack_that_comes_too_late_says_so() {
    let scene = Scene::amqp_behind_proxy().await;
    scene.queue.publish("train", b"job").await.unwrap();
    let mut consumer = scene.queue.consume("train", 1).await.unwrap();
    let held = receive(&mut consumer).await;
    scene.cut();
    let again = receive(&mut consumer).await;
    assert!(!held.ack().await.unwrap(), "the broker has taken it back");
    assert!(again.redelivered);
    assert!(again.ack().await.unwrap());
    scene.end().await;
}

#[tokio::test]
async fn publisher_and_consumer_survive_a_cut_connection() {
    let scene = Scene::amqp_behind_proxy().await;
    let mut consumer = scene.queue.consume("train", 1).await.unwrap();
    let mut subscription = scene.queue.subscribe().await;
    scene.queue.publish("train", b"before").await.unwrap();
    assert!(receive(&mut consumer).await.ack().await.unwrap());
    scene.cut();
    publish_until_taken(&scene.queue, "train", b"after").await;
    let mut next = receive(&mut consumer).await;
    if &*next.body == b"before" {
        // Its ack was on the way when the connection was cut: it comes once more, and says so.
        assert!(next.redelivered);
        assert!(next.ack().await.unwrap());
        next = receive(&mut consumer).await;
    }
    assert_eq!(&*next.body, b"after");
    // A subscription hears what is said after it is back; how soon that is, nobody promises.
    let heard = async {
        loop {
            // A refusal here is a cut connection that is noticed only now.
            let _ = scene.queue.broadcast(b"cancel").await;
            if let Ok(Some(body)) = timeout(QUIET, subscription.next()).await {
                break body;
            }
        }
    };
    assert_eq!(&*timeout(PATIENCE, heard).await.unwrap(), b"cancel");
    scene.end().await;
}

#[tokio::test]
async fn a_queue_that_was_deleted_is_made_again() {
    let scene = Scene::amqp().await;
    scene.queue.publish("train", b"lost").await.unwrap();
    let (_connection, channel) = raw_channel().await;
    let name = format!("{}.train", scene.prefix);
    channel
        .queue_delete(name.into(), Default::default())
        .await
        .unwrap();
    let refused = scene
        .queue
        .publish("train", b"unroutable")
        .await
        .unwrap_err();
    assert!(
        matches!(
            &refused,
            QueueError::NotTaken {
                reason: "no queue of this name",
                ..
            }
        ),
        "a confirm alone is not enough: {refused}"
    );
    scene.queue.publish("train", b"found").await.unwrap();
    let mut consumer = scene.queue.consume("train", 1).await.unwrap();
    assert_eq!(&*receive(&mut consumer).await.body, b"found");
    scene.end().await;
}

#[tokio::test]
async fn a_broadcast_reaches_everyone_who_listens() {
    let scene = Scene::amqp().await;
    let (mut here, mut there) = (
        scene.queue.subscribe().await,
        scene.another().subscribe().await,
    );
    scene.queue.broadcast(b"cancel ftjob-1").await.unwrap();
    for subscription in [&mut here, &mut there] {
        let body = timeout(PATIENCE, subscription.next())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(&*body, b"cancel ftjob-1");
    }
    scene.end().await;
}

#[tokio::test]
async fn a_broker_that_refuses_or_says_nothing_costs_little_time() {
    let refusing = tokio::net::TcpListener::bind(("127.0.0.1", 0))
        .await
        .unwrap();
    let port = refusing.local_addr().unwrap().port();
    drop(refusing);
    let queue = queue_at(port);
    let error = timeout(PATIENCE, queue.publish("train", b"x"))
        .await
        .unwrap()
        .unwrap_err();
    assert!(matches!(error, QueueError::Unavailable { .. }), "{error}");

    let silent = tokio::net::TcpListener::bind(("127.0.0.1", 0))
        .await
        .unwrap();
    let port = silent.local_addr().unwrap().port();
    tokio::spawn(async move {
        let mut sockets = Vec::new();
        while let Ok((mut socket, _)) = silent.accept().await {
            let mut hello = [0; 8];
            let _ = socket.read_exact(&mut hello).await;
            sockets.push(socket);
        }
    });
    let queue = queue_at(port);
    let error = timeout(PATIENCE, queue.publish("train", b"x"))
        .await
        .unwrap()
        .unwrap_err();
    assert!(
        matches!(error, QueueError::Timeout { timeout_s: 5, .. }),
        "{error}"
    );
    // A worker starts all the same.
    let mut consumer = timeout(PATIENCE, queue.consume("train", 1))
        .await
        .unwrap()
        .unwrap();
    assert!(timeout(QUIET, consumer.next()).await.is_err());
}

fn queue_at(port: u16) -> Queue {
    let url = Secret::from(format!("amqp://guest:guest@127.0.0.1:{port}/%2f"));
    Queue::open(&QueueConfig {
        url,
        ..Default::default()
    })
    .unwrap()
}

async fn publish_until_taken(queue: &Queue, name: &str, body: &[u8]) {
    let published = async {
        while queue.publish(name, body).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, published).await.unwrap();
}
