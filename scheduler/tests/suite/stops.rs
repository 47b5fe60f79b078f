//! Cancel and pause, as the API asks for them and as workers learn of them.

use domain::id::JobId;
use domain::job::JobState;
use domain::job_event::JobEvent;
use domain::message::Desired;

use crate::house::House;

async fn ask(house: &House, id: &JobId, event: JobEvent) -> JobState {
    let jobs = house.store.jobs();
    jobs.apply_in_project(&house.project.id, id, event, house.now())
        .await
        .unwrap()
        .state()
}

#[tokio::test]
async fn a_cancel_reaches_the_worker_with_whatever_it_says_next() {
    let house = House::new().await;
    let id = house.create_queued_job().await;
    let worker = house.worker("a");
    let a = worker.claim(None, 0).await.unwrap();
    worker.beat(&a, 1..=3).await.unwrap();
    assert_eq!(
        ask(&house, &id, JobEvent::CancelRequested).await,
        JobState::Cancelling
    );
    assert_eq!(worker.beat(&a, 4..=4).await, Ok(Desired::Cancel));
    assert_eq!(worker.checkpoint(&a, 3).await, Ok(Desired::Cancel));
    assert_eq!(worker.finalizing(&a).await, Ok(Desired::Cancel));
    assert_eq!(worker.finish(&a).await, Ok(Desired::Cancel));
    assert_eq!(worker.stopped(&a).await, Ok(Desired::GoOn));
    assert_eq!(house.state(&id).await, JobState::Cancelled);
    assert_eq!(worker.stopped(&a).await, Err(409));
    assert!(
        house
            .store
            .models()
            .list(&house.project.id)
            .await
            .unwrap()
            .is_empty()
    );
}

#[tokio::test]
async fn a_cancelled_job_whose_worker_died_is_cancelled_not_resumed() {
    let house = House::new().await;
    let id = house.create_queued_job().await;
    let worker = house.worker("a");
    worker.claim(None, 0).await.unwrap();
    ask(&house, &id, JobEvent::CancelRequested).await;
    house.advance_reaping_s(31).await;
    assert_eq!(house.state(&id).await, JobState::Cancelled);
    assert_eq!(worker.claim(None, 0).await, None);
}

#[tokio::test]
async fn a_paused_job_waits_and_goes_on_from_its_checkpoint() {
    let house = House::new().await;
    let id = house.create_queued_job().await;
    let worker = house.worker("a");
    let a = worker.claim(None, 0).await.unwrap();
    worker.beat(&a, 1..=4).await.unwrap();
    assert_eq!(
        ask(&house, &id, JobEvent::PauseRequested).await,
        JobState::Pausing
    );
    assert_eq!(worker.beat(&a, 5..=5).await, Ok(Desired::Pause));
    assert_eq!(worker.checkpoint(&a, 5).await, Ok(Desired::Pause));
    assert_eq!(worker.stopped(&a).await, Ok(Desired::GoOn));
    assert_eq!(house.state(&id).await, JobState::Paused);
    assert_eq!(worker.claim(None, 0).await, None);
    house.advance_reaping_s(3_600).await;
    assert_eq!(house.state(&id).await, JobState::Paused);

    assert_eq!(
        ask(&house, &id, JobEvent::ResumeRequested).await,
        JobState::Queued
    );
    let b = worker.claim(None, 0).await.unwrap();
    assert_eq!((b.attempt, b.resume.as_ref().unwrap().step), (2, 5));
    assert_eq!(worker.train(&b).await, Ok(Desired::GoOn));
    assert_eq!(house.state(&id).await, JobState::Succeeded);
}

#[tokio::test]
async fn a_job_cancelled_before_its_verdict_stays_cancelled() {
    let house = House::new().await;
    let id = house.create_job().await;
    ask(&house, &id, JobEvent::CancelRequested).await;
    house.scheduler.validate_pass().await.unwrap();
    assert_eq!(house.state(&id).await, JobState::Cancelled);
}
