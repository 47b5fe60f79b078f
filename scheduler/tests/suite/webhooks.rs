//! What projects asked to be told arrives: signed, as often as it takes, and never where it must not go.

use domain::id::{WebhookEndpointId, WebhookSecretId};
use domain::job_event::JobEvent;
use domain::webhook::{WebhookEndpoint, WebhookEventType};
use platform::webhook::SigningSecret;
use serde_json::{Value, json};
use store::SealedSecret;
use tests::receiver::{Answer, Receiver};

use crate::house::House;

async fn endpoint(house: &House, url: &str) -> WebhookEndpoint {
    let endpoint = WebhookEndpoint {
        id: WebhookEndpointId::mint(rand::random()),
        project_id: house.project.id.clone(),
        name: "hook".to_owned(),
        url: url.to_owned(),
        event_types: vec![WebhookEventType::FineTuningJobCancelled],
        secret_hint: String::new(),
        created_at: house.now(),
        updated_at: house.now(),
        disabled_at: None,
    };
    let sealed = sealed(house);
    house
        .store
        .webhooks()
        .insert(&endpoint, &sealed)
        .await
        .unwrap();
    endpoint
}

fn sealed(house: &House) -> SealedSecret {
    let id = WebhookSecretId::mint(rand::random());
    let sealed = SigningSecret::draw().seal(&house.config.vault().unwrap(), &id);
    SealedSecret { id, sealed }
}

/// A job that was cancelled just now; its id.
async fn cancel_one(house: &House) -> String {
    let id = house.create_queued_job().await;
    let cancel = JobEvent::CancelRequested;
    let jobs = house.store.jobs();
    jobs.apply(&id, cancel, house.now()).await.unwrap();
    id.to_string()
}

async fn passes(house: &House) -> usize {
    house.scheduler.webhook_pass().await.unwrap()
}

#[tokio::test]
async fn a_receiver_that_fails_at_first_is_told_again_under_the_same_id() {
    let house = House::new().await;
    let receiver = Receiver::start([
        Answer::Status(500),
        Answer::Status(302),
        Answer::Status(204),
    ]);
    let receiver = receiver.await.unwrap();
    endpoint(&house, &receiver.url()).await;
    let job = cancel_one(&house).await;
    let happened = house.now().unix_s();

    assert_eq!(passes(&house).await, 0, "it failed");
    assert_eq!(passes(&house).await, 0, "it is not time yet");
    assert_eq!(receiver.received().len(), 1);
    house.advance_s(6);
    assert_eq!(passes(&house).await, 0, "a redirection is no success");
    house.advance_s(6 * 60);
    assert_eq!(passes(&house).await, 1);
    house.advance_s(3_600);
    assert_eq!(passes(&house).await, 0);

    let received = receiver.received();
    assert_eq!(received.len(), 3);
    let (first, last) = (&received[0], &received[2]);
    assert!(first.header("webhook-id").starts_with("wh_"));
    assert_eq!(first.header("webhook-id"), last.header("webhook-id"));
    assert_eq!(first.body, last.body);
    assert_eq!(first.header("webhook-timestamp"), happened.to_string());
    let sent_last = last.header("webhook-timestamp").parse::<i64>().unwrap();
    assert_eq!(sent_last, happened + 6 + 360);
    assert_ne!(
        first.header("webhook-signature"),
        last.header("webhook-signature")
    );
    assert!(first.header("webhook-signature").starts_with("v1,"));
    let body: Value = serde_json::from_str(&first.body).unwrap();
    let expected = json!({
        "id": format!("evt_{}", job.strip_prefix("ftjob-").unwrap()),
        "object": "event",
        "type": "fine_tuning.job.cancelled",
        "created_at": happened,
        "data": {"id": job},
    });
    assert_eq!(body, expected);
}

#[tokio::test]
async fn two_secrets_sign_while_one_replaces_the_other() {
    let house = House::new().await;
    let receiver = Receiver::start([]).await.unwrap();
    let endpoint = endpoint(&house, &receiver.url()).await;
    let until = Some(house.now().plus_s(100));
    let new = sealed(&house);
    let webhooks = house.store.webhooks();
    webhooks
        .rotate_secret(
            &house.project.id,
            &endpoint.id,
            &new,
            "",
            until,
            house.now(),
        )
        .await
        .unwrap();
    cancel_one(&house).await;
    assert_eq!(passes(&house).await, 1);
    house.advance_s(101);
    cancel_one(&house).await;
    assert_eq!(passes(&house).await, 1);
    let n_signatures = |request: &tests::receiver::Received| {
        request.header("webhook-signature").split(' ').count()
    };
    let received = receiver.received();
    let counts: Vec<usize> = received.iter().map(n_signatures).collect();
    assert_eq!(counts, [2, 1]);
}

#[tokio::test]
async fn a_secret_from_another_row_signs_nothing() {
    let house = House::new().await;
    let receiver = Receiver::start([]).await.unwrap();
    let endpoint = endpoint(&house, &receiver.url()).await;
    let webhooks = house.store.webhooks();
    let own = webhooks.secrets(&house.project.id, &endpoint.id, house.now());
    let own = own.await.unwrap().remove(0);
    let foreign = sealed(&house).sealed;
    assert!(webhooks.reseal(&own, &foreign).await.unwrap());
    cancel_one(&house).await;
    assert_eq!(passes(&house).await, 0);
    assert_eq!(receiver.received(), []);
}

#[tokio::test]
async fn a_host_that_is_not_public_is_not_called_whatever_the_row_says() {
    let house = House::new().await;
    let receiver = Receiver::start([]).await.unwrap();
    let port = receiver.address.port();
    // Only 127.0.0.1 is allowed here.
    for host in ["localhost", "127.0.0.2", "[::1]"] {
        endpoint(&house, &format!("http://{host}:{port}/hook")).await;
    }
    cancel_one(&house).await;
    assert_eq!(passes(&house).await, 0);
    assert_eq!(receiver.received(), []);
}

#[tokio::test]
async fn after_five_days_without_success_an_endpoint_hears_nothing_more() {
    let house = House::new().await;
    let receiver = Receiver::start(std::iter::repeat_n(Answer::Status(503), 100));
    let receiver = receiver.await.unwrap();
    let endpoint = endpoint(&house, &receiver.url()).await;
    let find = || async {
        let found = house.store.webhooks().find(&house.project.id, &endpoint.id);
        found.await.unwrap().unwrap()
    };
    cancel_one(&house).await;
    for _ in 0..4 * 24 {
        passes(&house).await;
        house.advance_s(3_600);
    }
    assert_eq!(
        receiver.received().len(),
        10,
        "one event is tried ten times"
    );
    assert_eq!(find().await.disabled_at, None);
    house.advance_s(24 * 3_600);
    cancel_one(&house).await;
    assert_eq!(passes(&house).await, 0);
    assert_eq!(find().await.disabled_at, Some(house.now()));
    cancel_one(&house).await;
    house.advance_s(3_600);
    assert_eq!(passes(&house).await, 0);
    assert_eq!(receiver.received().len(), 11);
}

#[tokio::test]
async fn what_is_over_is_swept_two_weeks_later() {
    let house = House::new().await;
    let receiver = Receiver::start([]).await.unwrap();
    endpoint(&house, &receiver.url()).await;
    cancel_one(&house).await;
    assert_eq!(passes(&house).await, 1);
    house.advance_s(15 * 24 * 3_600);
    house.scheduler.sweep_pass().await.unwrap();
    let webhooks = house.store.webhooks();
    assert_eq!(webhooks.purge_deliveries(house.now(), 9).await, Ok(0));
}
