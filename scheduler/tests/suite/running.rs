//! The whole scheduler with its loops, on the real clock: started, at work, drained.

use domain::error::FailureClass;
use domain::job::JobState;
use domain::message::Desired;
use platform::shutdown::Shutdown;
use scheduler::{Clock, Hints, SchedulerOptions, bind};

use crate::house::House;

fn options(house: &House) -> SchedulerOptions {
    SchedulerOptions {
        config: house.config.clone(),
        store: house.store.clone(),
        objects: house.objects.clone(),
        queue: Hints::new(house.queue.clone()),
        clock: Clock::Database,
    }
}

#[tokio::test]
async fn a_running_scheduler_validates_hands_out_and_stops_by_itself() {
    let house = House::new().await;
    let server = bind(options(&house)).await.unwrap();
    let address = server.address();
    let worker = house.worker_at("a", address);
    let shutdown = Shutdown::new();
    let serving = tokio::spawn(server.serve(shutdown.clone()));
    let done = house.create_job().await;
    let a = worker.claim(None, 60).await.unwrap();
    assert_eq!(a.job_id, done);
    assert_eq!(worker.train(&a).await, Ok(Desired::GoOn));

    let handed_back = house.create_job().await;
    let a = worker.claim(None, 60).await.unwrap();
    assert_eq!(a.job_id, handed_back);
    assert_eq!(
        worker.fail(&a, FailureClass::Drain).await,
        Ok(Desired::GoOn)
    );
    assert_eq!(house.state(&handed_back).await, JobState::Queued);

    // One that has nothing to do waits at the door while it closes.
    let mut idle = house.worker_at("idle", address);
    idle.status.base_models = vec!["another".to_owned()];
    let started = std::time::Instant::now();
    let waiting = tokio::spawn(async move { idle.try_claim(60).await });
    for _ in 0..5 {
        worker.hello().await;
    }
    shutdown.begin();
    serving.await.unwrap().unwrap();
    // Refused if it came too late, else answered at once with nothing.
    assert!(matches!(waiting.await.unwrap(), None | Some(None)));
    assert!(started.elapsed().as_secs() < 30, "nobody was waited for");
}

#[tokio::test]
async fn a_door_that_is_taken_is_named() {
    let house = House::new().await;
    let mut options = options(&house);
    options.config.scheduler.door_listen = house.address;
    let error = bind(options).await.err().unwrap().to_string();
    assert!(error.contains(&house.address.to_string()), "{error}");
}
