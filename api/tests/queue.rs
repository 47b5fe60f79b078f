//! Jobs that wait: how many go before them, and when they start.

use domain::id::JobId;
use domain::job_event::JobEvent;
use domain::time::Timestamp;
use serde_json::{Value, json};

use crate::support::{App, now};

const JOBS: &str = "/v1/fine_tuning/jobs";

/// Position and start of the project's jobs, oldest first.
async fn standings(app: &App) -> Vec<(Value, Value)> {
    let list = app.get(JOBS).await.json();
    let jobs = list["data"].as_array().unwrap().iter().rev();
    let told = |job: &Value| {
        (
            job["x_queue_position"].clone(),
            job["x_estimated_start"].clone(),
        )
    };
    jobs.map(told).collect()
}

/// Looks until the standings are these: one look at the queue is good for a second.
async fn until(app: &App, expected: &[(Value, Value)]) {
    let mut told = Vec::new();
    for _ in 0..100 {
        told = standings(app).await;
        if told == expected {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    panic!("expected {expected:?}, told {told:?}");
}

async fn queued(app: &App) -> JobId {
    let id = JobId::parse(&app.new_job(json!({})).await).unwrap();
    app.validate(&id).await;
    id
}

async fn beat(app: &App, id: &JobId, estimated_finish: Timestamp) {
    let beat = JobEvent::Beat {
        attempt: 1,
        lease_until: now().plus_s(30),
        metrics: Vec::new(),
        estimated_finish: Some(estimated_finish),
    };
    app.apply(id, beat).await;
}

#[tokio::test]
async fn who_waits_is_told_a_place_and_the_first_one_when_a_worker_is_free() {
    let app = App::start().await;
    let before = now().unix_s();
    let first = queued(&app).await;
    let second = queued(&app).await;
    app.new_job(json!({})).await;
    let told = standings(&app).await;
    let start = told[0].1.as_i64().unwrap();
    // The worker does nothing yet.
    assert!(before <= start && start <= now().unix_s(), "{told:?}");
    let nothing = (json!(null), json!(null));
    let waits = |n_before: u64, start: Value| (json!(n_before), start);
    assert_eq!(told[1..], [waits(1, json!(null)), nothing.clone()]);
    let shown = app.get(&format!("{JOBS}/{second}")).await.json();
    assert_eq!(shown["x_queue_position"], json!(1));

    app.claim(&first).await;
    until(
        &app,
        &[nothing.clone(), waits(0, json!(null)), nothing.clone()],
    )
    .await;
    let finish = now().plus_s(600);
    beat(&app, &first, finish).await;
    let known = waits(0, json!(finish.unix_s()));
    until(&app, &[nothing.clone(), known, nothing.clone()]).await;
    let running = app.get(&format!("{JOBS}/{first}")).await.json();
    assert_eq!(running["estimated_finish"], json!(finish.unix_s()));

    // A worker that is late is not free in the past.
    beat(&app, &first, now().plus_s(-600)).await;
    let mut start = finish.unix_s();
    for _ in 0..100 {
        if start != finish.unix_s() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        start = standings(&app).await[1].1.as_i64().unwrap();
    }
    assert!((0..60).contains(&(now().unix_s() - start)), "{start}");
}

#[tokio::test]
async fn what_a_client_does_to_its_job_is_answered_with_the_place_it_has_then() {
    let app = App::start().await;
    queued(&app).await;
    let second = queued(&app).await;
    let act = async |action: &str| {
        let path = format!("{JOBS}/{second}/{action}");
        app.post(&path, json!({})).await.json()["x_queue_position"].clone()
    };
    assert_eq!(act("pause").await, json!(null));
    assert_eq!(act("resume").await, json!(1));
    assert_eq!(act("cancel").await, json!(null));
}
