//! The outbox: messages may be doubled, never lost.

use std::collections::BTreeSet;

use domain::job_event::JobEvent;
use domain::message::{ControlMessage, OfferMessage};
use store::OutboxMessage;

use crate::harness::{Db, on_both, run_on_postgres};
use crate::sample::{self, at};

on_both!(
    an_offer_and_a_request_to_stop_leave_their_messages,
    a_claimed_message_comes_back_until_it_is_sent,
    relays_at_once_share_the_messages,
    a_refused_change_leaves_no_message,
);

async fn messages(db: &Db, now: i64) -> Vec<OutboxMessage> {
    db.store
        .outbox()
        .claim_unsent(at(now), 100, at(now + 15))
        .await
        .unwrap()
}

fn ids(messages: &[OutboxMessage]) -> Vec<i64> {
    messages.iter().map(|m| m.id).collect()
}

async fn an_offer_and_a_request_to_stop_leave_their_messages(db: Db) {
    let store = &db.store;
    let project = sample::project(store).await;
    let job = sample::queued_job(store, &project, at(0)).await;
    let offer = sample::offered();
    let JobEvent::Offered { dispatch_id } = offer.clone() else {
        unreachable!()
    };
    store.jobs().apply(&job.id, offer, at(1)).await.unwrap();
    store
        .jobs()
        .apply(&job.id, sample::claimed(at(60)), at(2))
        .await
        .unwrap();
    store
        .jobs()
        .apply(&job.id, JobEvent::CancelRequested, at(3))
        .await
        .unwrap();
    let sent = messages(&db, 4).await;
    let queues: Vec<_> = sent.iter().map(|m| m.queue.as_str()).collect();
    assert_eq!(queues, ["train.tiny-base", "control"]);
    let offer: OfferMessage = serde_json::from_value(sent[0].body.clone()).unwrap();
    assert_eq!(
        offer,
        OfferMessage {
            version: 1,
            job_id: job.id.clone(),
            dispatch_id
        }
    );
    let control: ControlMessage = serde_json::from_value(sent[1].body.clone()).unwrap();
    assert_eq!(
        control,
        ControlMessage {
            version: 1,
            job_id: job.id
        }
    );
}

async fn a_claimed_message_comes_back_until_it_is_sent(db: Db) {
    let store = &db.store;
    let project = sample::project(store).await;
    for _ in 0..3 {
        let job = sample::queued_job(store, &project, at(0)).await;
        store
            .jobs()
            .apply(&job.id, sample::offered(), at(1))
            .await
            .unwrap();
    }
    let outbox = store.outbox();
    let first = outbox.claim_unsent(at(10), 2, at(25)).await.unwrap();
    let second = outbox.claim_unsent(at(10), 2, at(25)).await.unwrap();
    assert_eq!(
        (first.len(), second.len()),
        (2, 1),
        "those that are claimed are passed over"
    );
    outbox.mark_sent(&[first[0].id], at(11)).await.unwrap();
    outbox.release(&[first[1].id]).await.unwrap();
    let again = outbox.claim_unsent(at(11), 9, at(26)).await.unwrap();
    assert_eq!(again, first[1..], "released: at once");
    assert_eq!(outbox.claim_unsent(at(24), 9, at(39)).await.unwrap(), []);
    let late = outbox.claim_unsent(at(26), 9, at(41)).await.unwrap();
    let both = BTreeSet::from([first[1].id, second[0].id]);
    assert_eq!(
        ids(&late).into_iter().collect::<BTreeSet<_>>(),
        both,
        "the relay died"
    );
    assert_eq!(outbox.n_unsent().await.unwrap(), 2);
    outbox.mark_sent(&ids(&late), at(27)).await.unwrap();
    outbox.release(&ids(&late)).await.unwrap();
    assert_eq!(
        outbox.claim_unsent(at(999), 9, at(1_000)).await.unwrap(),
        []
    );
    assert_eq!(outbox.n_unsent().await.unwrap(), 0);
    assert_eq!(outbox.purge_sent(at(27)).await.unwrap(), 1);
    assert_eq!(outbox.purge_sent(at(28)).await.unwrap(), 2);
}

async fn relays_at_once_share_the_messages(db: Db) {
    let store = &db.store;
    let project = sample::project(store).await;
    for _ in 0..20 {
        let job = sample::queued_job(store, &project, at(0)).await;
        store
            .jobs()
            .apply(&job.id, sample::offered(), at(1))
            .await
            .unwrap();
    }
    let relays: Vec<_> = (0..4)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut taken = Vec::new();
                // 20 messages by three: more rounds mean that claimed ones come back.
                for _ in 0..20 {
                    let some = store
                        .outbox()
                        .claim_unsent(at(10), 3, at(25))
                        .await
                        .unwrap();
                    taken.extend(ids(&some));
                }
                taken
            })
        })
        .collect();
    let mut taken = Vec::new();
    for relay in relays {
        taken.extend(relay.await.unwrap());
    }
    let distinct: BTreeSet<i64> = taken.iter().copied().collect();
    assert_eq!((taken.len(), distinct.len()), (20, 20));
}

async fn a_refused_change_leaves_no_message(db: Db) {
    let store = &db.store;
    let project = sample::project(store).await;
    let job = sample::job(store, &project, at(0)).await;
    store
        .jobs()
        .apply(&job.id, sample::offered(), at(1))
        .await
        .unwrap_err();
    assert_eq!(messages(&db, 2).await, []);
}

/// PostgreSQL gives out ids before the rows that bear them can be seen.
#[tokio::test]
async fn a_message_that_becomes_visible_after_a_later_one_is_not_skipped() {
    run_on_postgres(|db| async move {
        let mut slow = db.other_program().await;
        slow.execute("BEGIN").await;
        slow.execute("INSERT INTO outbox (queue, body, created_at) VALUES ('slow', '1', 0)")
            .await;
        let mut fast = db.other_program().await;
        fast.execute("INSERT INTO outbox (queue, body, created_at) VALUES ('fast', '2', 0)")
            .await;
        let first = messages(&db, 1).await;
        db.store
            .outbox()
            .mark_sent(&ids(&first), at(2))
            .await
            .unwrap();
        slow.execute("COMMIT").await;
        let second = messages(&db, 3).await;
        assert_eq!(
            (first[0].queue.as_str(), second[0].queue.as_str()),
            ("fast", "slow")
        );
        assert!(second[0].id < first[0].id);
    })
    .await;
}
