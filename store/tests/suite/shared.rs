//! What the processes share: workers and leadership.

use domain::id::WorkerId;
use domain::worker::{Worker, WorkerStatus};

use crate::harness::{Db, on_both};
use crate::sample::{self, at};

on_both!(
    a_worker_is_alive_while_it_was_seen_lately,
    one_leads_until_its_time_is_over,
    of_many_that_would_lead_one_does,
);

fn status(n_live: u32) -> WorkerStatus {
    WorkerStatus {
        worker_id: WorkerId::mint(sample::entropy()),
        address: "http://127.0.0.1:9000".into(),
        base_models: vec![sample::BASE.into()],
        adapters: vec!["aa".into()],
        n_live,
        max_live: 8,
        device: "cpu, 2 threads".into(),
    }
}

async fn a_worker_is_alive_while_it_was_seen_lately(db: Db) {
    let workers = db.store.workers();
    let (a, b) = (status(0), status(1));
    workers.upsert(&a, at(10)).await.unwrap();
    workers.upsert(&b, at(12)).await.unwrap();
    let busier = WorkerStatus {
        n_live: 5,
        ..a.clone()
    };
    workers.upsert(&busier, at(14)).await.unwrap();
    let seen = |status: &WorkerStatus, s| Worker {
        status: status.clone(),
        seen_at: at(s),
    };
    assert_eq!(
        workers.alive(at(12)).await.unwrap(),
        [seen(&busier, 14), seen(&b, 12)]
    );
    assert_eq!(workers.alive(at(13)).await.unwrap(), [seen(&busier, 14)]);
    assert_eq!(workers.remove_older(at(13)).await.unwrap(), 1);
    workers.remove(&busier.worker_id).await.unwrap();
    workers.remove(&busier.worker_id).await.unwrap();
    assert_eq!(workers.alive(at(0)).await.unwrap(), []);
}

async fn one_leads_until_its_time_is_over(db: Db) {
    let leader = db.store.leader();
    let acquire = |holder: &'static str, now: i64| {
        let store = db.store.clone();
        async move {
            store
                .leader()
                .try_acquire("sweep", holder, 5, at(now))
                .await
                .unwrap()
        }
    };
    assert_eq!(acquire("a", 0).await, Some(1));
    assert_eq!(acquire("b", 1).await, None);
    assert_eq!(acquire("a", 4).await, Some(1), "renewing keeps the term");
    assert_eq!(acquire("b", 9).await, None);
    assert_eq!(acquire("b", 10).await, Some(2));
    assert_eq!(acquire("a", 11).await, None);
    leader.release("sweep", "a").await.unwrap();
    assert_eq!(acquire("a", 11).await, None, "only the holder can stop");
    leader.release("sweep", "b").await.unwrap();
    assert_eq!(acquire("a", 11).await, Some(3));
    assert_eq!(
        acquire("a", 99).await,
        Some(4),
        "a leader that paused too long begins a new term"
    );
    assert_eq!(
        leader.try_acquire("other", "b", 5, at(0)).await.unwrap(),
        Some(1)
    );
}

async fn of_many_that_would_lead_one_does(db: Db) {
    for term in 1..=4 {
        let rivals: Vec<_> = (0..6)
            .map(|n| {
                let store = db.store.clone();
                let now = at(term as i64 * 100);
                tokio::spawn(async move {
                    store
                        .leader()
                        .try_acquire("sweep", &format!("r{n}"), 5, now)
                        .await
                        .unwrap()
                })
            })
            .collect();
        let mut won = Vec::new();
        for rival in rivals {
            won.extend(rival.await.unwrap());
        }
        assert_eq!(won, [term]);
    }
}
