//! One request, one answer, where what it makes does not remember it.

use domain::id::{KeyId, ProjectId};
use domain::time::Timestamp;
use store::{Claim, KeptRequest, Memory};

use crate::harness::{Db, on_both};
use crate::sample::{self, at};

on_both!(
    an_answer_is_told_again,
    of_requests_with_one_key_at_once_one_is_first,
    what_made_nothing_is_forgotten,
    a_request_without_a_key_is_new_unless_it_says_that_it_is_not,
    what_lost_its_process_may_be_tried_again,
    replies_are_forgotten,
);

/// An administrator's, or one of a project.
pub fn request(project: Option<&ProjectId>, key: Option<&str>) -> KeptRequest {
    KeptRequest {
        project_id: project.cloned(),
        api_key_id: KeyId::parse("key_1").unwrap(),
        endpoint: "/v1/webhook_endpoints".into(),
        key: key.map(str::to_owned),
        fingerprint: "f1".into(),
        is_repetition: false,
    }
}

pub fn memory(now: Timestamp) -> Memory {
    Memory {
        now,
        repeated_since: now.plus_s(-1_800),
        under_way_since: now.plus_s(-120),
        expires_at: now.plus_s(86_400),
    }
}

async fn claim(db: &Db, request: &KeptRequest, second: i64) -> Claim {
    let replies = db.store.kept_replies();
    replies.claim(request, &memory(at(second))).await.unwrap()
}

/// The row of a first one.
fn row(claim: &Claim) -> i64 {
    match claim {
        Claim::First { row } => *row,
        other => panic!("{other:?}"),
    }
}

async fn an_answer_is_told_again(db: Db) {
    let project = sample::project(&db.store).await;
    for project in [None, Some(&project.id)] {
        let asked = request(project, Some("k"));
        let first = row(&claim(&db, &asked, 0).await);
        assert_eq!(claim(&db, &asked, 1).await, Claim::UnderWay);
        let replies = db.store.kept_replies();
        replies.keep(project, first, "sealed").await.unwrap();
        let told = Claim::Answered {
            row: first,
            reply: "sealed".into(),
        };
        assert_eq!(claim(&db, &asked, 2).await, told);
        // The key is for this request, this path and this API key alone.
        let mut other = asked.clone();
        other.fingerprint = "f2".into();
        assert_eq!(claim(&db, &other, 2).await, Claim::OtherRequest);
        let mut other = asked.clone();
        other.endpoint = "/v1/x/model_aliases".into();
        row(&claim(&db, &other, 2).await);
        let mut other = asked.clone();
        other.api_key_id = KeyId::parse("key_2").unwrap();
        row(&claim(&db, &other, 2).await);
        db.store.kept_replies().purge(at(200_000)).await.unwrap();
    }
}

async fn of_requests_with_one_key_at_once_one_is_first(db: Db) {
    let project = sample::project(&db.store).await;
    let tries: Vec<_> = (0..6)
        .map(|_| {
            let (db, project) = (db.clone(), project.id.clone());
            tokio::spawn(async move { claim(&db, &request(Some(&project), Some("k")), 0).await })
        })
        .collect();
    let mut n_first = 0;
    for t in tries {
        match t.await.unwrap() {
            Claim::First { .. } => n_first += 1,
            other => assert_eq!(other, Claim::UnderWay),
        }
    }
    assert_eq!(n_first, 1);
}

async fn what_made_nothing_is_forgotten(db: Db) {
    let asked = request(None, Some("k"));
    let first = row(&claim(&db, &asked, 0).await);
    db.store.kept_replies().release(None, first).await.unwrap();
    assert_ne!(row(&claim(&db, &asked, 1).await), first);
}

async fn a_request_without_a_key_is_new_unless_it_says_that_it_is_not(db: Db) {
    let asked = request(None, None);
    let repeated = KeptRequest {
        is_repetition: true,
        ..asked.clone()
    };
    let first = row(&claim(&db, &asked, 0).await);
    assert_eq!(claim(&db, &repeated, 1).await, Claim::UnderWay);
    let replies = db.store.kept_replies();
    replies.keep(None, first, "one").await.unwrap();
    let second = row(&claim(&db, &asked, 2).await);
    replies.keep(None, second, "two").await.unwrap();
    let told = Claim::Answered {
        row: second,
        reply: "two".into(),
    };
    assert_eq!(claim(&db, &repeated, 3).await, told);
    // Another body, and one that is too long ago.
    let mut other = repeated.clone();
    other.fingerprint = "f2".into();
    row(&claim(&db, &other, 3).await);
    row(&claim(&db, &repeated, 1_803).await);
}

async fn what_lost_its_process_may_be_tried_again(db: Db) {
    for key in [None, Some("k")] {
        let asked = KeptRequest {
            is_repetition: true,
            ..request(None, key)
        };
        let first = row(&claim(&db, &asked, 0).await);
        assert_eq!(claim(&db, &asked, 120).await, Claim::UnderWay);
        let second = row(&claim(&db, &asked, 121).await);
        // Whoever was held up for so long keeps nothing.
        let replies = db.store.kept_replies();
        replies.keep(None, first, "late").await.unwrap();
        assert_eq!(claim(&db, &asked, 122).await, Claim::UnderWay);
        replies.release(None, second).await.unwrap();
    }
}

async fn replies_are_forgotten(db: Db) {
    let asked = request(None, Some("k"));
    let first = row(&claim(&db, &asked, 0).await);
    let replies = db.store.kept_replies();
    replies.keep(None, first, "sealed").await.unwrap();
    row(&claim(&db, &asked, 86_400).await);
    assert_eq!(replies.purge(at(2 * 86_400 - 1)).await.unwrap(), 0);
    assert_eq!(replies.purge(at(2 * 86_400)).await.unwrap(), 1);
}
