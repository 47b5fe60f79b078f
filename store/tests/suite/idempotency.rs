//! One request, one object, however often it is sent.

use domain::id::{JobId, KeyId};
use domain::model::TunedModel;
use domain::project::Project;
use store::{IdempotencyEntry, InsertLimits, Replay, StoreError};

use crate::harness::{Db, on_both};
use crate::models::brought;
use crate::sample::{self, at};

on_both!(
    a_repeated_key_makes_no_second_job,
    of_requests_with_one_key_at_once_one_makes_the_job,
    a_key_belongs_to_its_project_and_endpoint,
    a_forgotten_key_may_be_used_again,
    a_retry_without_a_key_is_found_by_its_fingerprint,
    an_upload_is_remembered_too,
    a_key_of_another_request_makes_nothing,
    a_repetition_asks_for_what_its_first_sending_made,
    a_first_sending_that_was_overtaken_asks_for_what_its_repetition_made,
    of_a_request_and_its_repetition_at_once_one_makes_the_job,
    what_is_gone_is_made_anew,
);

const ENDPOINT: &str = "POST /fine_tuning/jobs";

fn entry(key: Option<&str>) -> IdempotencyEntry {
    IdempotencyEntry {
        endpoint: ENDPOINT.into(),
        key: key.map(str::to_owned),
        api_key_id: KeyId::parse("key_1").unwrap(),
        fingerprint: "f1".into(),
        began_at: at(0),
        repeats_since: None,
        expires_at: at(86_400),
    }
}

/// How a request without a key is sent.
#[derive(Debug, Clone, Copy)]
struct Sent {
    began: i64,
    repeats_since: Option<i64>,
}

/// For the first time.
const fn first(began: i64) -> Sent {
    Sent {
        began,
        repeats_since: None,
    }
}

/// After another time.
const fn again(began: i64) -> Sent {
    Sent {
        began,
        repeats_since: Some(0),
    }
}

fn as_sent(endpoint: &str, sent: Sent) -> IdempotencyEntry {
    IdempotencyEntry {
        endpoint: endpoint.into(),
        began_at: at(sent.began),
        repeats_since: sent.repeats_since.map(at),
        ..entry(None)
    }
}

fn repeated<T>(object_id: &impl ToString) -> Result<T, StoreError> {
    let object_id = object_id.to_string();
    Err(StoreError::Repeated { object_id })
}

async fn make(
    db: &Db,
    project: &Project,
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
    assert_eq!(made, repeated(&first));
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
            Err(refused) => assert!(matches!(refused, StoreError::Repeated { .. }), "{refused}"),
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
    assert_eq!(refused, repeated(&first.id));
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

async fn a_key_of_another_request_makes_nothing(db: Db) {
    let project = sample::project(&db.store).await;
    make(&db, &project, &entry(Some("k")), 0).await.1.unwrap();
    let other = IdempotencyEntry {
        fingerprint: "f2".into(),
        ..entry(Some("k"))
    };
    let (_, made) = make(&db, &project, &other, 1).await;
    assert_eq!(made, Err(StoreError::KeyReused));
}

/// Makes a job, a file, a batch, an upload, an upload's file and a model, unless the request did so before: what of each the
/// request has made.
async fn make_each(db: &Db, project: &Project, sent: Sent, now: i64) -> Vec<String> {
    let (store, now) = (&db.store, at(now));
    let outcome = |made: Result<(), StoreError>, id: String| match made {
        Ok(()) => id,
        Err(StoreError::Repeated { object_id }) => object_id,
        Err(error) => panic!("{error}"),
    };
    let mut ids = Vec::new();

    let training_file = sample::file(&project.id, now);
    store.files().insert(&training_file, None).await.unwrap();
    let (job, events) = sample::new_job(project, sample::spec(&training_file.id), now);
    let (jobs, limits) = (store.jobs(), InsertLimits::default());
    let request = as_sent("POST /fine_tuning/jobs", sent);
    let made = jobs.insert(&job, events, &limits, Some(&request)).await;
    ids.push(outcome(made, job.id.to_string()));

    let file = sample::file(&project.id, now);
    let request = as_sent("POST /files", sent);
    let made = store.files().insert(&file, Some(&request)).await;
    ids.push(outcome(made, file.id.to_string()));

    let batch = sample::batch(store, project, now).await;
    let request = as_sent("POST /batches", sent);
    let made = store.batches().insert(&batch, Some(&request)).await;
    ids.push(outcome(made, batch.id.to_string()));

    let upload = sample::upload(&project.id, now);
    let request = as_sent("POST /uploads", sent);
    let made = store.uploads().insert(&upload, &request).await;
    ids.push(outcome(made, upload.id.to_string()));

    let nonce = JobId::mint(sample::entropy());
    let model = TunedModel {
        created_at: now,
        ..brought(project, nonce.as_str())
    };
    let request = as_sent("POST /x/adapters", sent);
    let made = store.models().insert(&model, Some(&request)).await;
    ids.push(outcome(made, model.name));
    ids
}

async fn a_repetition_asks_for_what_its_first_sending_made(db: Db) {
    let project = sample::project(&db.store).await;
    let made = make_each(&db, &project, first(1), 1).await;
    assert_eq!(make_each(&db, &project, again(2), 2).await, made);
    assert_eq!(make_each(&db, &project, again(3), 3).await, made);
    // Of one that is too long ago it knows nothing.
    let late = Sent {
        repeats_since: Some(2),
        ..again(3)
    };
    let later = make_each(&db, &project, late, 3).await;
    assert!(later.iter().all(|id| !made.contains(id)));
}

async fn a_first_sending_that_was_overtaken_asks_for_what_its_repetition_made(db: Db) {
    let project = sample::project(&db.store).await;
    let made = make_each(&db, &project, again(2), 4).await;
    let are_new = |ids: &[String]| ids.iter().all(|id| !made.contains(id));
    // The repetition was sent before this request, so it is none of it.
    assert!(are_new(&make_each(&db, &project, first(3), 5).await));
    assert_eq!(make_each(&db, &project, first(1), 6).await, made);
    // What one request has asked for is not another one's: whoever posts twice on purpose makes two.
    let second = make_each(&db, &project, first(1), 7).await;
    assert!(are_new(&second));
    // Objects of first sendings stand for themselves.
    let third = make_each(&db, &project, first(1), 8).await;
    assert!(third.iter().all(|id| !second.contains(id)));
}

/// Each waits for the other before it has written anything that could be read.
async fn of_a_request_and_its_repetition_at_once_one_makes_the_job(db: Db) {
    for (one, other) in [
        (first(1), again(2)),
        (again(2), first(1)),
        (again(2), again(3)),
    ] {
        let project = sample::project(&db.store).await;
        let mut beside = db.other_program().await;
        beside.hold("jobs").await;
        let send = |sent| {
            let (db, project) = (db.clone(), project.clone());
            let request = as_sent(ENDPOINT, sent);
            tokio::spawn(async move { make(&db, &project, &request, 4).await })
        };
        let sent = [send(one), send(other)];
        beside.let_go().await;
        let mut ids = Vec::new();
        for sent in sent {
            let (id, made) = sent.await.unwrap();
            match made {
                Ok(()) => ids.push(id.to_string()),
                Err(StoreError::Repeated { object_id }) => ids.push(object_id),
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(ids[0], ids[1], "{one:?} {other:?}");
        assert_eq!(db.store.jobs().n_active(&project.id).await, Ok(1));
    }
}

async fn what_is_gone_is_made_anew(db: Db) {
    let project = sample::project(&db.store).await;
    let request = as_sent("POST /files", again(1));
    let insert = async |file: &domain::file::File| {
        let files = db.store.files();
        files.insert(file, Some(&request)).await
    };
    let (first, second) = (
        sample::file(&project.id, at(1)),
        sample::file(&project.id, at(2)),
    );
    insert(&first).await.unwrap();
    assert_eq!(insert(&second).await, repeated(&first.id));
    let (rows, files) = (db.store.idempotency(), db.store.files());
    files.delete(&project.id, &first.id, at(2)).await.unwrap();
    let id = first.id.as_str();
    rows.forget(&project.id, &request, id).await.unwrap();
    insert(&second).await.unwrap();
    let third = sample::file(&project.id, at(3));
    assert_eq!(insert(&third).await, repeated(&second.id));
}
