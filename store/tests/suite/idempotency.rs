//! One request, one object, however often it is sent.

use domain::id::KeyId;
use store::{IdempotencyEntry, InsertLimits, Replay, StoreError};

use crate::harness::{Db, on_both};
use crate::sample::{self, at};

on_both!(
    a_repeated_key_makes_no_second_job,
    of_requests_with_one_key_at_once_one_makes_the_job,
    a_key_belongs_to_its_project_and_endpoint,
    a_forgotten_key_may_be_used_again,
    a_retry_without_a_key_is_found_by_its_fingerprint,
    an_upload_is_remembered_too,
);

const ENDPOINT: &str = "POST /fine_tuning/jobs";

fn entry(key: Option<&str>) -> IdempotencyEntry {
    IdempotencyEntry {
        endpoint: ENDPOINT.into(),
        key: key.map(str::to_owned),
        api_key_id: KeyId::parse("key_1").unwrap(),
        fingerprint: "f1".into(),
        expires_at: at(86_400),
    }
}

async fn make(
    db: &Db,
    project: &domain::project::Project,
    request: &IdempotencyEntry,
    now: i64,
) -> (domain::id::JobId, Result<(), StoreError>) {
    let file = sample::file(&project.id, at(now));
    db.store.files().insert(&file, None).await.unwrap();
    let (job, events) = sample::new_job(project, sample::spec(&file.id), at(now));
    let limits = InsertLimits::default();
    let made = db
        .store
        .jobs()
        .insert(&job, events, &limits, Some(request))
        .await;
    (job.id, made)
}

async fn a_repeated_key_makes_no_second_job(db: Db) {
    let project = sample::project(&db.store).await;
    let (first, made) = make(&db, &project, &entry(Some("k")), 0).await;
    made.unwrap();
    let (second, made) = make(&db, &project, &entry(Some("k")), 1).await;
    assert!(matches!(made, Err(StoreError::Conflict(_))), "{made:?}");
    assert_eq!(db.store.jobs().get_internal(&second).await.unwrap(), None);
    assert_eq!(db.store.jobs().n_active(&project.id).await.unwrap(), 1);
    let found = db
        .store
        .idempotency()
        .find(&project.id, ENDPOINT, "k", at(2))
        .await
        .unwrap();
    let expected = Replay {
        fingerprint: "f1".into(),
        object_id: first.to_string(),
    };
    assert_eq!(found, Some(expected));
}

async fn of_requests_with_one_key_at_once_one_makes_the_job(db: Db) {
    let project = sample::project(&db.store).await;
    let tries: Vec<_> = (0..6)
        .map(|_| {
            let (db, project) = (db.clone(), project.clone());
            tokio::spawn(async move { make(&db, &project, &entry(Some("k")), 0).await.1 })
        })
        .collect();
    let mut n_made = 0;
    for t in tries {
        match t.await.unwrap() {
            Ok(()) => n_made += 1,
            Err(refused) => assert!(matches!(refused, StoreError::Conflict(_)), "{refused}"),
        }
    }
    assert_eq!(n_made, 1);
    assert_eq!(db.store.jobs().n_active(&project.id).await.unwrap(), 1);
}

async fn a_key_belongs_to_its_project_and_endpoint(db: Db) {
    let (mine, theirs) = (
        sample::project(&db.store).await,
        sample::project(&db.store).await,
    );
    make(&db, &mine, &entry(Some("k")), 0).await.1.unwrap();
    make(&db, &theirs, &entry(Some("k")), 0).await.1.unwrap();
    let elsewhere = IdempotencyEntry {
        endpoint: "POST /files".into(),
        ..entry(Some("k"))
    };
    make(&db, &mine, &elsewhere, 0).await.1.unwrap();
    let find = db
        .store
        .idempotency()
        .find(&mine.id, "POST /uploads", "k", at(1))
        .await
        .unwrap();
    assert_eq!(find, None);
}

async fn a_forgotten_key_may_be_used_again(db: Db) {
    let project = sample::project(&db.store).await;
    let store = &db.store;
    make(&db, &project, &entry(Some("k")), 0).await.1.unwrap();
    let late = 86_400;
    assert_eq!(
        store
            .idempotency()
            .find(&project.id, ENDPOINT, "k", at(late))
            .await
            .unwrap(),
        None
    );
    let again = IdempotencyEntry {
        expires_at: at(2 * late),
        ..entry(Some("k"))
    };
    let (second, made) = make(&db, &project, &again, late).await;
    made.unwrap();
    let found = store
        .idempotency()
        .find(&project.id, ENDPOINT, "k", at(late + 1))
        .await
        .unwrap();
    assert_eq!(found.unwrap().object_id, second.to_string());
    assert_eq!(
        store.idempotency().purge(at(2 * late - 1)).await.unwrap(),
        0
    );
    assert_eq!(store.idempotency().purge(at(2 * late)).await.unwrap(), 1);
}

async fn a_retry_without_a_key_is_found_by_its_fingerprint(db: Db) {
    let project = sample::project(&db.store).await;
    let (_, made) = make(&db, &project, &entry(None), 0).await;
    made.unwrap();
    let (second, made) = make(&db, &project, &entry(None), 5).await;
    made.unwrap();
    let (key, other) = (
        KeyId::parse("key_1").unwrap(),
        KeyId::parse("key_2").unwrap(),
    );
    let find = |key: KeyId, fingerprint: &'static str, since: i64| {
        let (db, project) = (db.clone(), project.id.clone());
        async move {
            let rows = db.store.idempotency();
            rows.find_retry(&project, ENDPOINT, &key, fingerprint, at(since))
                .await
                .unwrap()
        }
    };
    let newest = find(key.clone(), "f1", 0).await.unwrap();
    assert_eq!(newest.object_id, second.to_string());
    assert_eq!(find(key.clone(), "f1", 6).await, None);
    assert_eq!(find(key, "f2", 0).await, None);
    assert_eq!(find(other, "f1", 0).await, None);
}

async fn an_upload_is_remembered_too(db: Db) {
    let project = sample::project(&db.store).await;
    let request = IdempotencyEntry {
        endpoint: "POST /files".into(),
        ..entry(Some("k"))
    };
    let (first, second) = (
        sample::file(&project.id, at(0)),
        sample::file(&project.id, at(1)),
    );
    db.store
        .files()
        .insert(&first, Some(&request))
        .await
        .unwrap();
    let refused = db.store.files().insert(&second, Some(&request)).await;
    assert!(
        matches!(refused, Err(StoreError::Conflict(_))),
        "{refused:?}"
    );
    assert_eq!(
        db.store
            .files()
            .find(&project.id, &second.id)
            .await
            .unwrap(),
        None
    );
    let found = db
        .store
        .idempotency()
        .find(&project.id, "POST /files", "k", at(2))
        .await
        .unwrap();
    assert_eq!(found.unwrap().object_id, first.id.to_string());
}
