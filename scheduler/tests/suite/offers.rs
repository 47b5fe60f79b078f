//! Offers over a queue that loses, doubles and reorders them, or is away altogether.

use domain::error::FailureClass;
use domain::id::JobId;
use domain::job::JobState;
use domain::message::Desired;

use crate::house::House;
use crate::lossy_queue::LossyQueue;

async fn all_passes(house: &House) {
    house.scheduler.dispatch_pass().await.unwrap();
    house.scheduler.relay_pass().await.unwrap();
    house.scheduler.reap_pass().await.unwrap();
}

#[tokio::test]
async fn every_job_ends_once_over_a_queue_that_loses_doubles_and_reorders() {
    for seed in [1, 2, 3] {
        let house = House::with_queue(LossyQueue::lossy(seed)).await;
        let workers = [house.worker("a"), house.worker("b"), house.worker("c")];
        let mut ids = Vec::new();
        for _ in 0..8 {
            ids.push(house.create_queued_job().await);
        }
        let mut n_lost_claims = 0;
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
            assert!(
                n_rounds < 200,
                "seed {seed}: the jobs do not come to an end"
            );
            for worker in &workers {
                worker.hello().await;
            }
            all_passes(&house).await;
            for (i, worker) in workers.iter().enumerate() {
                let Some(offer) = house.queue.next() else {
                    continue;
                };
                let Some(a) = worker.claim(Some(offer), 0).await else {
                    n_lost_claims += 1;
                    continue;
                };
                // Now and then a worker gives up first.
                if n_rounds % 5 == i {
                    worker.fail(&a, FailureClass::Infra).await.unwrap();
                } else {
                    assert_eq!(worker.train(&a).await, Ok(Desired::GoOn));
                }
            }
            house.advance_s(9);
        }
        assert!(
            n_lost_claims > 0,
            "seed {seed}: no duplicate came, so nothing was proven"
        );
        for id in &ids {
            check_ended_once(&house, id).await;
        }
        assert_eq!(house.store.outbox().n_unsent().await.unwrap(), 0);
        let models = house.store.models().list(&house.project.id).await.unwrap();
        assert_eq!(models.len(), 2 * ids.len());
    }
}

/// One success, and attempts without a gap, each over before the next began.
async fn check_ended_once(house: &House, id: &JobId) {
    assert_eq!(house.state(id).await, JobState::Succeeded);
    let transitions = house.store.jobs().transitions(id).await.unwrap();
    let n_ends = transitions
        .iter()
        .filter(|t| t.to == JobState::Succeeded)
        .count();
    assert_eq!(n_ends, 1, "{transitions:?}");
    let attempts = house.store.jobs().attempts(id).await.unwrap();
    let numbers: Vec<u32> = attempts.iter().map(|a| a.number).collect();
    assert_eq!(numbers, (1..=attempts.len() as u32).collect::<Vec<_>>());
    assert!(
        attempts
            .windows(2)
            .all(|w| w[0].ended_at.unwrap() <= w[1].claimed_at)
    );
}

#[tokio::test]
async fn offers_are_made_for_free_workers_and_two_more() {
    let house = House::with_queue(LossyQueue::lossy(1)).await;
    for _ in 0..6 {
        house.create_queued_job().await;
    }
    assert_eq!(
        house.scheduler.dispatch_pass().await.unwrap(),
        0,
        "there is no worker"
    );
    let worker = house.worker("a");
    worker.hello().await;
    assert_eq!(
        house.scheduler.dispatch_pass().await.unwrap(),
        3,
        "one worker and the buffer"
    );
    assert_eq!(
        house.scheduler.dispatch_pass().await.unwrap(),
        0,
        "these are still open"
    );
    let offered = house
        .store
        .jobs()
        .offers_older_than(house.now().plus_s(1), 9)
        .await
        .unwrap();
    let offer = domain::message::OfferMessage {
        version: 1,
        job_id: offered[0].id.clone(),
        dispatch_id: offered[0].progress().dispatch_id.clone().unwrap(),
    };
    assert!(worker.claim(Some(offer.clone()), 0).await.is_some());
    assert_eq!(
        worker.claim(Some(offer), 0).await,
        None,
        "an offer is good once"
    );
    assert_eq!(
        house.scheduler.dispatch_pass().await.unwrap(),
        0,
        "the worker is busy now"
    );
    house.advance_s(31);
    assert_eq!(
        house.scheduler.dispatch_pass().await.unwrap(),
        0,
        "and silent since"
    );
}

#[tokio::test]
async fn an_offer_nobody_took_is_made_again_and_the_old_one_is_void() {
    let house = House::with_queue(LossyQueue::lossy(1)).await;
    let id = house.create_queued_job().await;
    let worker = house.worker("a");
    worker.hello().await;
    house.scheduler.dispatch_pass().await.unwrap();
    let first = house.job(&id).await.progress().dispatch_id.clone().unwrap();
    house.advance_reaping_s(31).await;
    assert_eq!(house.state(&id).await, JobState::Queued);
    worker.hello().await;
    house.scheduler.dispatch_pass().await.unwrap();
    let offer = |dispatch_id| domain::message::OfferMessage {
        version: 1,
        job_id: id.clone(),
        dispatch_id,
    };
    assert_eq!(worker.claim(Some(offer(first)), 0).await, None);
    let second = house.job(&id).await.progress().dispatch_id.clone().unwrap();
    assert_eq!(
        worker.claim(Some(offer(second)), 0).await.unwrap().attempt,
        1
    );
}

#[tokio::test]
async fn while_the_broker_is_away_the_door_hands_out_the_jobs() {
    let house = House::with_queue(LossyQueue::lossy(1)).await;
    let offered = house.create_queued_job().await;
    let worker = house.worker("a");
    worker.hello().await;
    assert_eq!(house.scheduler.dispatch_pass().await.unwrap(), 1);
    house.queue.set_down(true);
    assert!(house.scheduler.relay_pass().await.is_err());
    assert_eq!(
        house.store.outbox().n_unsent().await.unwrap(),
        1,
        "kept for later"
    );
    let queued = house.create_queued_job().await;
    assert_eq!(
        house.scheduler.dispatch_pass().await.unwrap(),
        0,
        "nobody would hear of it"
    );

    let a = worker.claim(None, 0).await.unwrap();
    assert_eq!(a.job_id, queued);
    assert_eq!(worker.train(&a).await, Ok(Desired::GoOn));
    assert_eq!(
        worker.claim(None, 0).await,
        None,
        "a fresh offer may still be on its way"
    );
    house.advance_s(6);
    let a = worker.claim(None, 0).await.unwrap();
    assert_eq!(a.job_id, offered);

    house.queue.set_down(false);
    house.scheduler.relay_pass().await.unwrap();
    assert_eq!(house.store.outbox().n_unsent().await.unwrap(), 0);
    assert_eq!(house.queue.n_published(), 0, "the offer was void by then");
    assert_eq!(worker.train(&a).await, Ok(Desired::GoOn));
}

#[tokio::test]
async fn a_cancel_is_broadcast_so_that_workers_need_not_wait_for_their_beat() {
    let house = House::with_queue(LossyQueue::lossy(1)).await;
    let id = house.create_queued_job().await;
    house.worker("a").claim(None, 0).await.unwrap();
    let event = domain::job_event::JobEvent::CancelRequested;
    house
        .store
        .jobs()
        .apply_in_project(&house.project.id, &id, event, house.now())
        .await
        .unwrap();
    house.scheduler.relay_pass().await.unwrap();
    assert_eq!(house.queue.n_broadcast(), 1);
}

#[tokio::test]
async fn jobs_beyond_what_a_project_may_run_are_not_handed_out() {
    let house = House::with(LossyQueue::none(), |config| config.limits.running_jobs = 1).await;
    let first = house.create_queued_job().await;
    house.advance_s(1);
    let second = house.create_queued_job().await;
    let [a, b] = ["a", "b"].map(|name| house.worker(name));
    let assignment = a.claim(None, 0).await.unwrap();
    assert_eq!(assignment.job_id, first);
    assert!(b.claim(None, 0).await.is_none());
    assert_eq!(house.state(&second).await, JobState::Queued);
    a.train(&assignment).await.unwrap();
    assert_eq!(b.claim(None, 0).await.unwrap().job_id, second);
}

#[tokio::test]
async fn jobs_beyond_what_a_project_may_run_are_not_offered() {
    let house = House::with(LossyQueue::lossy(1), |config| {
        config.limits.running_jobs = 2
    })
    .await;
    for name in ["a", "b", "c"] {
        house.worker(name).hello().await;
    }
    for _ in 0..4 {
        house.create_queued_job().await;
    }
    assert_eq!(house.scheduler.dispatch_pass().await.unwrap(), 2);
    assert_eq!(house.scheduler.dispatch_pass().await.unwrap(), 0);
}
