//! Who may come in, and what the door does not believe.

use domain::message::Desired;
use domain::model::AdapterRef;
use serde_json::json;

use crate::house::{House, token, token_of};

async fn knock(house: &House, authorization: Option<String>) -> u16 {
    let url = format!("http://{}/door/v1/claim", house.address);
    let body = json!({ "worker_id": "worker_x", "base_models": [], "offer": null });
    let request = reqwest::Client::new().post(url).json(&body);
    let request = match authorization {
        Some(value) => request.header("authorization", value),
        None => request,
    };
    request.send().await.unwrap().status().as_u16()
}

#[tokio::test]
async fn only_a_token_for_this_door_opens_it() {
    let house = House::new().await;
    assert_eq!(
        knock(&house, Some(format!("Bearer {}", token("door")))).await,
        200
    );
    let foreign = token_of("another key of at least thirty-two bytes!", "door");
    for refused in [
        None,
        Some("Bearer".to_owned()),
        Some(format!("Bearer {}", token("worker"))),
        Some(format!("Bearer {foreign}")),
        Some(format!("Basic {}", token("door"))),
    ] {
        assert_eq!(knock(&house, refused.clone()).await, 401, "{refused:?}");
    }
    let health = format!("http://{}/healthz", house.address);
    assert_eq!(reqwest::get(health).await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_worker_can_name_only_objects_of_its_own_that_are_there() {
    let house = House::new().await;
    let id = house.create_queued_job().await;
    let worker = house.worker("a");
    let a = worker.claim(None, 0).await.unwrap();
    worker.beat(&a, 1..=3).await.unwrap();
    let good = worker.put_checkpoint(&a, 3).await;
    let foreign = format!("projects/{}/files/file-x", house.project.id);

    let mut wrong = vec![];
    let mut change = |f: fn(&mut domain::message::CheckpointRequest, &str)| {
        let mut request = good.clone();
        f(&mut request, &foreign);
        wrong.push(request);
    };
    change(|r, foreign| r.state.object_key = foreign.to_owned());
    change(|r, foreign| r.adapter.object_prefix = foreign.to_owned());
    change(|r, _| r.state.size_bytes += 1);
    change(|r, _| r.adapter.size_bytes -= 1);
    change(|r, _| r.metrics.step = 2);
    change(|r, _| r.epoch = Some(3));
    change(|r, _| {
        r.step = 4;
        r.metrics.step = 4;
    });
    change(|r, _| r.step = 7);
    for request in &wrong {
        assert_eq!(
            worker.ask_checkpoint(&a, request).await,
            Err(400),
            "{request:?}"
        );
    }
    let AdapterRef { object_prefix, .. } = &good.adapter;
    let config = format!("{object_prefix}/adapter_config.json");
    house.objects.delete(&config).await.unwrap();
    assert_eq!(
        worker.ask_checkpoint(&a, &good).await,
        Err(400),
        "half an adapter is none"
    );
    assert!(house.store.checkpoints().all(&id).await.unwrap().is_empty());
    assert_eq!(worker.checkpoint(&a, 3).await, Ok(Desired::GoOn));
}

#[tokio::test]
async fn while_the_object_store_is_away_a_worker_is_told_to_try_again() {
    let house = House::new().await;
    let id = house.create_queued_job().await;
    let worker = house.worker("a");
    let a = worker.claim(None, 0).await.unwrap();
    worker.beat(&a, 1..=3).await.unwrap();
    let request = worker.put_checkpoint(&a, 3).await;
    let elsewhere = house.worker_at("a", house.door_without_objects().await);
    assert_eq!(elsewhere.ask_checkpoint(&a, &request).await, Err(503));
    assert!(house.store.checkpoints().all(&id).await.unwrap().is_empty());
    assert_eq!(worker.ask_checkpoint(&a, &request).await, Ok(Desired::GoOn));
}

#[tokio::test]
async fn a_job_that_never_was_is_not_found() {
    let house = House::new().await;
    house.create_queued_job().await;
    let worker = house.worker("a");
    let mut a = worker.claim(None, 0).await.unwrap();
    a.job_id = domain::id::JobId::parse("ftjob-nobody").unwrap();
    assert_eq!(worker.beat(&a, 1..=1).await, Err(404));
    assert_eq!(worker.checkpoint(&a, 3).await, Err(404));
    assert_eq!(worker.finish(&a).await, Err(404));
}

#[tokio::test]
async fn a_body_that_cannot_be_read_is_the_callers_fault() {
    let house = House::new().await;
    let url = format!("http://{}/door/v1/claim", house.address);
    let request = reqwest::Client::new().post(url).bearer_auth(token("door"));
    let response = request
        .json(&json!({ "base_models": 3 }))
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 400);
}

#[tokio::test]
async fn a_worker_is_given_only_jobs_on_a_base_it_has() {
    let house = House::new().await;
    house.create_queued_job().await;
    let mut worker = house.worker("a");
    worker.status.base_models = vec!["another".to_owned()];
    assert_eq!(worker.claim(None, 0).await, None);
    worker.status.base_models = vec![];
    assert_eq!(worker.claim(None, 0).await, None);
}

#[tokio::test]
async fn a_claim_that_waits_is_answered_when_a_job_is_queued() {
    let house = House::new().await;
    let id = house.create_job().await;
    let worker = house.worker("a");
    let started = std::time::Instant::now();
    let (assignment, _) = tokio::join!(worker.claim(None, 60), async {
        house.scheduler.validate_pass().await.unwrap()
    });
    assert_eq!(assignment.unwrap().job_id, id);
    assert!(started.elapsed().as_secs() < 30, "woken, not timed out");
}
