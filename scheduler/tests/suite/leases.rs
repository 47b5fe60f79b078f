//! Workers that die, freeze or are cut off, and the reaper that must not be fooled by its own sleep.

use domain::error::FailureClass;
use domain::job::JobState;
use domain::message::{Desired, ResumePoint};

use crate::house::House;

#[tokio::test]
async fn a_job_whose_worker_died_goes_on_from_its_last_checkpoint() {
    let house = House::new().await;
    let id = house.create_queued_job().await;
    let (first, second) = (house.worker("first"), house.worker("second"));
    let a = first.claim(None, 0).await.unwrap();
    first.beat(&a, 1..=4).await.unwrap();
    let saved = first.put_checkpoint(&a, 3).await;
    first.ask_checkpoint(&a, &saved).await.unwrap();

    house.advance_reaping_s(29).await;
    assert_eq!(second.claim(None, 0).await, None, "the lease holds");
    house.advance_reaping_s(2).await;
    let b = second.claim(None, 0).await.unwrap();
    assert_eq!((b.job_id.clone(), b.attempt), (id.clone(), 2));
    assert_eq!(
        b.resume,
        Some(ResumePoint {
            step: 3,
            state: saved.state
        })
    );
    assert_ne!(b.object_prefix, a.object_prefix);
    assert_eq!(second.train(&b).await, Ok(Desired::GoOn));

    let messages = house.messages(&id).await;
    let story: Vec<&str> = messages.iter().map(String::as_str).skip(3).collect();
    assert_eq!(
        story[6],
        "The worker stopped responding, resuming from step 3"
    );
    assert_eq!(story[7], "Fine-tuning job resuming from step 3");
    assert_eq!(
        messages
            .iter()
            .filter(|m| m.starts_with("Step 4/6"))
            .count(),
        1,
        "{messages:?}"
    );
    let steps: Vec<u64> = house
        .store
        .metrics()
        .list(&id)
        .await
        .unwrap()
        .iter()
        .map(|m| m.step)
        .collect();
    assert_eq!(steps, [1, 2, 3, 4, 5, 6]);
}

#[tokio::test]
async fn a_frozen_worker_that_comes_back_is_refused_and_changes_nothing() {
    let house = House::new().await;
    let id = house.create_queued_job().await;
    let (frozen, second) = (house.worker("frozen"), house.worker("second"));
    let a = frozen.claim(None, 0).await.unwrap();
    frozen.beat(&a, 1..=2).await.unwrap();
    house.advance_reaping_s(31).await;
    assert_eq!(
        frozen.beat(&a, 3..=3).await,
        Err(409),
        "between two attempts"
    );
    let b = second.claim(None, 0).await.unwrap();
    second.beat(&b, 1..=1).await.unwrap();

    let before = (house.job(&id).await, house.events(&id).await);
    let metrics = house.store.metrics().list(&id).await.unwrap();
    assert_eq!(frozen.beat(&a, 3..=6).await, Err(409));
    assert_eq!(frozen.checkpoint(&a, 3).await, Err(409));
    assert_eq!(frozen.finalizing(&a).await, Err(409));
    assert_eq!(frozen.finish(&a).await, Err(409));
    assert_eq!(frozen.stopped(&a).await, Err(409));
    assert_eq!(frozen.fail(&a, FailureClass::User).await, Err(409));
    assert_eq!((house.job(&id).await, house.events(&id).await), before);
    assert_eq!(house.store.metrics().list(&id).await.unwrap(), metrics);

    assert_eq!(second.train(&b).await, Ok(Desired::GoOn));
    assert_eq!(
        frozen.finish(&a).await,
        Err(409),
        "of the attempts one finished, not this one"
    );
}

#[tokio::test]
async fn beats_keep_the_lease() {
    let house = House::new().await;
    let id = house.create_queued_job().await;
    let worker = house.worker("a");
    let a = worker.claim(None, 0).await.unwrap();
    for _ in 0..5 {
        house.advance_reaping_s(20).await;
        assert_eq!(worker.beat(&a, 1..=1).await, Ok(Desired::GoOn));
    }
    assert_eq!(
        (
            house.state(&id).await,
            house.job(&id).await.progress().attempt
        ),
        (JobState::Running, 1)
    );
}

#[tokio::test]
async fn a_scheduler_that_slept_gives_every_worker_its_time_again() {
    let house = House::new().await;
    let id = house.create_queued_job().await;
    let worker = house.worker("a");
    let a = worker.claim(None, 0).await.unwrap();
    house.scheduler.reap_pass().await.unwrap();
    // Nobody could renew a lease while the database or this host was away.
    house.advance_s(300);
    house.scheduler.reap_pass().await.unwrap();
    assert_eq!(house.state(&id).await, JobState::Running);
    assert_eq!(worker.beat(&a, 1..=1).await, Ok(Desired::GoOn));
    // A worker that did not come back either is given up one lease later.
    house.advance_reaping_s(31).await;
    assert_eq!(house.state(&id).await, JobState::Queued);
}

#[tokio::test]
async fn three_deaths_without_a_checkpoint_fail_the_job_and_progress_forgives_them() {
    let house = House::new().await;
    let id = house.create_queued_job().await;
    let worker = house.worker("a");
    let die = async || {
        house.advance_s(8);
        let a = worker.claim(None, 0).await.unwrap();
        house.advance_reaping_s(31).await;
        a
    };
    die().await;
    die().await;
    assert_eq!(house.state(&id).await, JobState::Queued);
    house.advance_reaping_s(60).await;
    let a = worker.claim(None, 0).await.unwrap();
    worker.beat(&a, 1..=3).await.unwrap();
    worker.checkpoint(&a, 3).await.unwrap();
    house.advance_reaping_s(31).await;
    for n_deaths in 1..3 {
        assert_eq!(
            house.state(&id).await,
            JobState::Queued,
            "{n_deaths} since the checkpoint"
        );
        house.advance_reaping_s(60).await;
        die().await;
    }
    let job = house.job(&id).await;
    assert_eq!(job.state(), JobState::Failed);
    assert_eq!(
        job.progress().error.as_ref().unwrap().code,
        "worker_crash_loop"
    );
}

#[tokio::test]
async fn failures_of_the_surroundings_are_retried_later_and_the_users_are_not() {
    let house = House::new().await;
    let id = house.create_queued_job().await;
    let worker = house.worker("a");
    for wait_s in [0, 5, 10, 20] {
        let a = worker.claim(None, 0).await.unwrap();
        assert_eq!(
            worker.fail(&a, FailureClass::Infra).await,
            Ok(Desired::GoOn)
        );
        if wait_s > 0 {
            house.advance_s(wait_s - 1);
            assert_eq!(worker.claim(None, 0).await, None, "waits {wait_s} s");
            house.advance_s(1);
        }
    }
    let a = worker.claim(None, 0).await.unwrap();
    assert_eq!(a.attempt, 5);
    assert_eq!(worker.fail(&a, FailureClass::User).await, Ok(Desired::GoOn));
    assert_eq!(house.state(&id).await, JobState::Failed);
    assert_eq!(worker.fail(&a, FailureClass::User).await, Err(409));
}

#[tokio::test]
async fn a_worker_that_drains_hands_its_job_back_at_once() {
    let house = House::new().await;
    let id = house.create_queued_job().await;
    let (leaving, next) = (house.worker("leaving"), house.worker("next"));
    let a = leaving.claim(None, 0).await.unwrap();
    leaving.beat(&a, 1..=3).await.unwrap();
    leaving.checkpoint(&a, 3).await.unwrap();
    assert_eq!(
        leaving.fail(&a, FailureClass::Drain).await,
        Ok(Desired::GoOn)
    );
    let b = next.claim(None, 0).await.unwrap();
    assert_eq!((b.attempt, b.resume.unwrap().step), (2, 3));
    assert_eq!(house.job(&id).await.progress().crashes_without_progress, 0);
}

#[tokio::test]
async fn an_attempt_that_resumes_at_the_last_step_only_hands_over() {
    let house = House::new().await;
    let id = house.create_queued_job().await;
    let (first, second) = (house.worker("first"), house.worker("second"));
    let a = first.claim(None, 0).await.unwrap();
    for step in [3, 6] {
        first.beat(&a, step - 2..=step).await.unwrap();
        first.checkpoint(&a, step).await.unwrap();
    }
    first.finalizing(&a).await.unwrap();
    house.advance_reaping_s(31).await;
    let b = second.claim(None, 0).await.unwrap();
    assert_eq!(b.resume.as_ref().unwrap().step, 6);
    assert_eq!(second.train(&b).await, Ok(Desired::GoOn));
    let models = house.store.models().list(&house.project.id).await.unwrap();
    let name = house.job(&id).await.tuned_model_name();
    let model = models.iter().find(|model| model.name == name).unwrap();
    // The row's adapter is served; the second attempt's copy of it is swept one day.
    assert!(model.adapter.object_prefix.starts_with(&a.object_prefix));
}
