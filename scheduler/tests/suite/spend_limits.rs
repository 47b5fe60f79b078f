//! Jobs whose projects may not spend what they cost.

use domain::audit::{AuditEntry, AuditEvent, AuditKind};
use domain::id::{AuditLogId, JobId};
use domain::job::JobState;
use domain::job_event::JobEvent;
use domain::message::Desired;

use crate::house::{BASE, House};

/// A million dollars per million tokens.
async fn house() -> House {
    House::with_prices(&[&format!("{BASE} trained=1000000")]).await
}

async fn limit(house: &House, dollars: u64) {
    let project = &house.project;
    let entry = AuditEntry {
        id: AuditLogId::mint(rand::random()),
        organization_id: project.organization_id.clone(),
        effective_at: house.now(),
        actor: None,
        project: None,
        event: AuditEvent {
            kind: AuditKind::ProjectUpdated,
            resource_id: project.id.to_string(),
            details: serde_json::json!({}),
        },
    };
    let projects = house.store.projects();
    let set = projects.set_spend_limit(&project.id, Some(dollars * 100), &entry);
    assert_eq!(set.await, Ok(true));
}

async fn validated(house: &House) -> JobId {
    let id = house.create_job().await;
    house.scheduler.validate_pass().await.unwrap();
    id
}

/// What the jobs of [`House::create_job`] cost. US dollars.
async fn price(house: &House) -> u64 {
    let id = validated(house).await;
    let tokens = house.job(&id).await.progress().planned_tokens.unwrap();
    cancel(house, &id).await;
    tokens
}

async fn cancel(house: &House, id: &JobId) {
    let jobs = house.store.jobs();
    let cancelled = jobs.apply(id, JobEvent::CancelRequested, house.now());
    assert_eq!(cancelled.await.unwrap().state(), JobState::Cancelled);
}

#[tokio::test]
async fn a_job_that_costs_more_than_is_left_fails_before_it_begins() {
    let house = house().await;
    let price = price(&house).await;
    limit(&house, 2 * price).await;
    let [first, second] = [validated(&house).await, validated(&house).await];
    let third = validated(&house).await;
    assert_eq!(house.state(&first).await, JobState::Queued);
    assert_eq!(house.state(&second).await, JobState::Queued, "to the cent");
    assert_eq!(house.state(&third).await, JobState::Failed);
    let job = house.job(&third).await;
    let error = job.progress().error.clone().unwrap();
    assert_eq!(
        (error.code.as_str(), error.param),
        ("insufficient_quota", None)
    );
    let begin = format!(
        "This job would cost ${price}.00 ({price} tokens to train on), but of the ${}.00 that its project may spend this month \
         $0.00 is left for it",
        2 * price
    );
    assert!(error.message.starts_with(&begin), "{}", error.message);
    let messages = house.messages(&third).await;
    assert!(
        messages.iter().any(|m| m.contains("would cost")),
        "{messages:?}"
    );
    // One that is given up leaves its share to the next.
    cancel(&house, &first).await;
    assert_eq!(
        house.state(&validated(&house).await).await,
        JobState::Queued
    );
}

#[tokio::test]
async fn of_jobs_that_are_judged_at_once_only_those_pass_that_fit_together() {
    let house = house().await;
    let price = price(&house).await;
    limit(&house, 2 * price + price / 2).await;
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.push(house.create_job().await);
    }
    house.scheduler.validate_pass().await.unwrap();
    let mut n_queued = 0;
    for id in &ids {
        n_queued += u32::from(house.state(id).await == JobState::Queued);
    }
    assert_eq!(n_queued, 2);
}

#[tokio::test]
async fn a_job_that_runs_is_not_stopped_by_a_lower_limit() {
    let house = house().await;
    let id = validated(&house).await;
    limit(&house, 0).await;
    let worker = house.worker("w");
    worker.hello().await;
    let assignment = worker.claim(None, 0).await.unwrap();
    assert_eq!(worker.beat(&assignment, 1..=2).await, Ok(Desired::GoOn));
    assert_eq!(house.state(&id).await, JobState::Running);
}

#[tokio::test]
async fn what_costs_nothing_is_not_refused() {
    let house = House::new().await;
    limit(&house, 0).await;
    assert_eq!(
        house.state(&validated(&house).await).await,
        JobState::Queued
    );
}
