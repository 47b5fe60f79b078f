//! Two schedulers at once are wasteful, never wrong.

use domain::job::JobState;
use domain::message::Desired;

use crate::house::House;
use crate::lossy_queue::LossyQueue;

#[tokio::test]
async fn two_schedulers_on_one_database_decide_everything_once() {
    let house = House::with_queue(LossyQueue::lossy(4)).await;
    let (second, second_door) = house.second_scheduler().await;
    let mut ids = Vec::new();
    for _ in 0..6 {
        ids.push(house.create_job().await);
    }
    let (a, b) = tokio::join!(house.scheduler.validate_pass(), second.validate_pass());
    assert!(a.unwrap() + b.unwrap() >= 6);
    for id in &ids {
        assert_eq!(house.state(id).await, JobState::Queued);
        let said = house
            .messages(id)
            .await
            .iter()
            .filter(|m| m.starts_with("Files valid"))
            .count();
        assert_eq!(said, 1);
    }
    let workers = [house.worker("a"), house.worker_at("b", second_door)];
    let mut n_rounds = 0;
    while house
        .store
        .jobs()
        .n_active(&house.project.id)
        .await
        .unwrap()
        > 0
    {
        n_rounds += 1;
        assert!(n_rounds < 100, "the jobs do not come to an end");
        workers[0].hello().await;
        workers[1].hello().await;
        let (x, y) = tokio::join!(house.scheduler.dispatch_pass(), second.dispatch_pass());
        assert!(x.is_ok() && y.is_ok(), "{x:?} {y:?}");
        let (x, y) = tokio::join!(house.scheduler.relay_pass(), second.relay_pass());
        assert!(x.is_ok() && y.is_ok(), "{x:?} {y:?}");
        let (x, y) = tokio::join!(house.scheduler.reap_pass(), second.reap_pass());
        assert!(x.is_ok() && y.is_ok(), "{x:?} {y:?}");
        // Both ask for whatever is next, and both may hold the same hint.
        let offer = house.queue.next();
        let (x, y) = tokio::join!(
            workers[0].claim(offer.clone(), 0),
            workers[1].claim(offer, 0),
        );
        if let (Some(x), Some(y)) = (&x, &y) {
            assert_ne!(x.job_id, y.job_id, "one job, two workers");
        }
        for (worker, assignment) in workers.iter().zip([x, y]) {
            if let Some(assignment) = assignment {
                assert_eq!(worker.train(&assignment).await, Ok(Desired::GoOn));
            }
        }
        house.advance_s(9);
    }
    for id in &ids {
        assert_eq!(house.state(id).await, JobState::Succeeded);
        assert_eq!(house.store.jobs().attempts(id).await.unwrap().len(), 1);
    }
}

#[tokio::test]
async fn an_attempt_claimed_at_one_door_goes_on_at_the_other() {
    let house = House::new().await;
    let (_, second_door) = house.second_scheduler().await;
    let id = house.create_queued_job().await;
    let a = house.worker("a").claim(None, 0).await.unwrap();
    assert_eq!(
        house.worker_at("a", second_door).train(&a).await,
        Ok(Desired::GoOn)
    );
    assert_eq!(house.state(&id).await, JobState::Succeeded);
}
