//! How a worker comes by its jobs where there is a broker: RabbitMQ at `LUTHIER_TEST_AMQP_URL`, else on this machine.

use std::time::{Duration, Instant};

use domain::id::DispatchId;
use domain::message::{Assignment, ControlMessage, Desired, OfferMessage, train_queue};
use platform::config::{QueueConfig, Secret};
use platform::queue::Queue;

use crate::house::House;

/// Far beyond what a busy machine needs, and far below the beat interval of these tests.
const SOON: Duration = Duration::from_secs(20);
const BEAT_INTERVAL_S: u64 = 300;

/// A broker's queues under a prefix of our own.
fn broker() -> QueueConfig {
    let url = std::env::var("LUTHIER_TEST_AMQP_URL")
        .unwrap_or_else(|_| "amqp://guest:guest@127.0.0.1:5672/%2f".to_owned());
    QueueConfig {
        url: Secret::from(url.as_str()),
        prefix: format!("luthier-test-{:016x}", rand::random::<u64>()),
    }
}

fn offer_of(assignment: &Assignment) -> OfferMessage {
    OfferMessage {
        version: 1,
        job_id: assignment.job_id.clone(),
        dispatch_id: DispatchId::parse("disp_test").unwrap(),
    }
}

/// Publishes as the scheduler's relay does: again, until the broker takes it (a new quorum queue has no leader yet).
async fn publish(scheduler: &Queue, name: &str, body: &[u8]) {
    let published = async {
        while let Err(error) = scheduler.publish(name, body).await {
            eprintln!("not taken yet: {error}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(SOON, published)
        .await
        .expect("the broker takes an offer");
}

#[tokio::test]
async fn an_offer_is_claimed_by_name_and_acknowledged_and_a_broadcast_is_heard_at_once() {
    let house = House {
        queue: broker(),
        ..House::new().await
    };
    let scheduler = Queue::open(&house.queue).unwrap();
    scheduler
        .check()
        .await
        .expect("RabbitMQ at LUTHIER_TEST_AMQP_URL; tests/run starts one");
    // The worker beats once at the start of an attempt, then not before the test is long over.
    let worker = house
        .worker("a", |config| config.beat_interval_s = BEAT_INTERVAL_S)
        .await;
    let assignment = Assignment {
        lease_ttl_s: 900,
        ..house.long_assignment().await
    };
    let (name, offer) = (train_queue("tiny"), offer_of(&assignment));
    house.give(&assignment);
    publish(&scheduler, &name, &serde_json::to_vec(&offer).unwrap()).await;
    house
        .door
        .until("the attempt's first beat", |script| script.n_beats > 0)
        .await;
    house.door.with(|script| {
        let won = script.claims.iter().find(|claim| claim.offer.is_some());
        assert_eq!(
            won.and_then(|claim| claim.offer.clone()),
            Some(offer.clone())
        );
    });

    house
        .door
        .with(|script| script.desired = Some(Desired::Cancel));
    let asked_at = Instant::now();
    let news = ControlMessage {
        version: 1,
        job_id: assignment.job_id.clone(),
    };
    scheduler
        .broadcast(&serde_json::to_vec(&news).unwrap())
        .await
        .unwrap();
    house
        .door
        .until("stopped", |script| {
            script.calls.contains(&"stopped".to_owned())
        })
        .await;
    assert!(asked_at.elapsed() < SOON, "after {:?}", asked_at.elapsed());
    worker.stop().await.unwrap();

    let mut consumer = scheduler.consume(&name, 1).await;
    let again = consumer.as_mut().unwrap().next();
    assert!(
        tokio::time::timeout(Duration::from_secs(1), again)
            .await
            .is_err(),
        "the offer was acknowledged"
    );
    drop(consumer);
    scheduler.remove(&name).await.unwrap();
}

#[tokio::test]
async fn an_offer_that_came_while_a_job_ran_waits_in_the_queue_for_anyone() {
    let house = House {
        queue: broker(),
        ..House::new().await
    };
    let scheduler = Queue::open(&house.queue).unwrap();
    scheduler
        .check()
        .await
        .expect("RabbitMQ at LUTHIER_TEST_AMQP_URL; tests/run starts one");
    let worker = house.worker("a", |_| {}).await;
    let assignment = house.long_assignment().await;
    let (name, offer) = (
        train_queue("tiny"),
        serde_json::to_vec(&offer_of(&assignment)).unwrap(),
    );
    house.give(&assignment);
    publish(&scheduler, &name, &offer).await;
    house
        .door
        .until("the first step", |script| script.last_step() > 0)
        .await;
    publish(&scheduler, &name, &offer).await;
    // Held by the busy worker, it would come to nobody else.
    let mut other = scheduler.consume(&name, 1).await.unwrap();
    let delivery = tokio::time::timeout(SOON, other.next())
        .await
        .expect("delivered to another")
        .unwrap();
    assert!(delivery.ack().await.unwrap());
    house
        .door
        .with(|script| script.desired = Some(Desired::Cancel));
    worker.stop().await.unwrap();
    drop(other);
    scheduler.remove(&name).await.unwrap();
}

#[tokio::test]
async fn while_the_broker_is_down_the_door_gives_jobs() {
    let url = Secret::from("amqp://guest:guest@127.0.0.1:1/%2f");
    let house = House {
        queue: QueueConfig {
            url,
            ..QueueConfig::default()
        },
        ..House::new().await
    };
    let worker = house.worker("a", |_| {}).await;
    house.give(&house.assignment(1).await);
    house
        .door
        .until("finish", |script| {
            script.finish.is_some() || script.fail.is_some()
        })
        .await;
    house.door.with(|script| {
        assert_eq!(script.fail, None);
        assert!(script.claims.iter().all(|claim| claim.offer.is_none()));
    });
    worker.stop().await.unwrap();
}
