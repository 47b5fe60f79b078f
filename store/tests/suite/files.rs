//! Files and their tombstones.

use domain::file::{File, Purpose};
use domain::job::JobSpec;
use domain::job_event::JobEvent;
use store::{InsertLimits, StoreError};

use crate::harness::{Db, on_both};
use crate::sample::{self, at};

on_both!(
    a_stored_file_reads_back_whole,
    a_deleted_file_is_gone_for_clients_only,
    a_file_stays_while_a_live_job_needs_it,
    a_file_whose_time_is_over_becomes_a_tombstone,
    a_file_whose_time_is_over_is_listed_no_more,
    sizes_are_summed_over_what_is_there,
    a_file_is_stored_while_its_project_has_room,
    a_name_with_nul_is_refused,
    the_same_id_twice_is_a_conflict,
);

async fn a_stored_file_reads_back_whole(db: Db) {
    let project = sample::project(&db.store).await;
    let file = File {
        filename: "'; DROP TABLE files; -- ☃ \u{1f984}".into(),
        purpose: Purpose::UserData,
        size_bytes: i64::MAX as u64,
        expires_at: Some(at(99)),
        ..sample::file(&project.id, at(1))
    };
    db.store.files().insert(&file, None).await.unwrap();
    assert_eq!(
        db.store.files().find(&project.id, &file.id).await.unwrap(),
        Some(file.clone())
    );
    assert_eq!(
        db.store.files().find_for_job(&file.id).await.unwrap(),
        Some(file)
    );
}

async fn a_deleted_file_is_gone_for_clients_only(db: Db) {
    let files = db.store.files();
    let project = sample::project(&db.store).await;
    let file = sample::file(&project.id, at(1));
    files.insert(&file, None).await.unwrap();
    assert!(!files.purge(&file.id).await.unwrap(), "it is no tombstone");
    assert_eq!(
        files.delete(&project.id, &file.id, at(2)).await.unwrap(),
        Some(file.clone())
    );
    assert_eq!(
        files.delete(&project.id, &file.id, at(3)).await.unwrap(),
        None
    );
    assert_eq!(files.find(&project.id, &file.id).await.unwrap(), None);
    assert_eq!(
        files.find_for_job(&file.id).await.unwrap(),
        Some(file.clone())
    );
    assert_eq!(
        files.deleted_unpinned(10).await.unwrap(),
        std::slice::from_ref(&file)
    );
    assert!(files.purge(&file.id).await.unwrap());
    assert!(!files.purge(&file.id).await.unwrap());
    assert_eq!(files.find_for_job(&file.id).await.unwrap(), None);
}

async fn a_file_whose_time_is_over_is_listed_no_more(db: Db) {
    let files = db.store.files();
    let project = sample::project(&db.store).await;
    let lasting = sample::file(&project.id, at(1));
    let brief = File {
        expires_at: Some(at(9)),
        ..sample::file(&project.id, at(2))
    };
    for file in [&lasting, &brief] {
        files.insert(file, None).await.unwrap();
    }
    let listed = async |now| {
        let page = sample::page();
        let page = files.list(&project.id, None, &page, now).await.unwrap();
        page.items
            .into_iter()
            .map(|file| file.id)
            .collect::<Vec<_>>()
    };
    assert_eq!(listed(at(8)).await, [brief.id, lasting.id.clone()]);
    assert_eq!(listed(at(9)).await, [lasting.id]);
}

async fn a_file_stays_while_a_live_job_needs_it(db: Db) {
    let store = &db.store;
    let project = sample::project(store).await;
    let (train, valid) = (
        sample::file(&project.id, at(1)),
        sample::file(&project.id, at(1)),
    );
    store.files().insert(&train, None).await.unwrap();
    store.files().insert(&valid, None).await.unwrap();
    let spec = JobSpec {
        validation_file: Some(valid.id.clone()),
        ..sample::spec(&train.id)
    };
    let (job, events) = sample::new_job(&project, spec, at(2));
    store
        .jobs()
        .insert(&job, events, &InsertLimits::default(), None)
        .await
        .unwrap();
    // Another job on them that is over pins nothing.
    let (over, events) = sample::new_job(&project, sample::spec(&train.id), at(2));
    store
        .jobs()
        .insert(&over, events, &InsertLimits::default(), None)
        .await
        .unwrap();
    store
        .jobs()
        .apply(&over.id, JobEvent::CancelRequested, at(3))
        .await
        .unwrap();
    for file in [&train, &valid] {
        store
            .files()
            .delete(&project.id, &file.id, at(4))
            .await
            .unwrap();
        assert!(!store.files().purge(&file.id).await.unwrap());
    }
    assert_eq!(store.files().deleted_unpinned(10).await.unwrap(), []);
    store
        .jobs()
        .apply(&job.id, JobEvent::CancelRequested, at(5))
        .await
        .unwrap();
    assert_eq!(store.files().deleted_unpinned(10).await.unwrap().len(), 2);
    assert_eq!(store.files().deleted_unpinned(1).await.unwrap().len(), 1);
    assert!(store.files().purge(&train.id).await.unwrap());
}

async fn a_file_whose_time_is_over_becomes_a_tombstone(db: Db) {
    let files = db.store.files();
    let project = sample::project(&db.store).await;
    let lasting = sample::file(&project.id, at(1));
    let passing = File {
        expires_at: Some(at(50)),
        ..sample::file(&project.id, at(1))
    };
    files.insert(&lasting, None).await.unwrap();
    files.insert(&passing, None).await.unwrap();
    assert_eq!(files.expire(at(49)).await.unwrap(), 0);
    assert_eq!(files.expire(at(50)).await.unwrap(), 1);
    assert_eq!(files.expire(at(51)).await.unwrap(), 0);
    assert_eq!(files.find(&project.id, &passing.id).await.unwrap(), None);
    assert!(
        files
            .find(&project.id, &lasting.id)
            .await
            .unwrap()
            .is_some()
    );
    assert_eq!(files.deleted_unpinned(10).await.unwrap(), [passing]);
}

async fn sizes_are_summed_over_what_is_there(db: Db) {
    let files = db.store.files();
    let project = sample::project(&db.store).await;
    assert_eq!(files.stored_bytes(&project.id, at(3)).await.unwrap(), 0);
    let (a, b) = (
        sample::file(&project.id, at(1)),
        sample::file(&project.id, at(1)),
    );
    for file in [&a, &b] {
        files.insert(file, None).await.unwrap();
    }
    assert_eq!(
        files.stored_bytes(&project.id, at(3)).await.unwrap(),
        a.size_bytes + b.size_bytes
    );
    files.delete(&project.id, &a.id, at(2)).await.unwrap();
    assert_eq!(
        files.stored_bytes(&project.id, at(3)).await.unwrap(),
        b.size_bytes
    );
}

async fn a_file_is_stored_while_its_project_has_room(db: Db) {
    let files = db.store.files();
    let project = sample::project(&db.store).await;
    let other = sample::file(&sample::project(&db.store).await.id, at(1));
    files.insert(&other, None).await.unwrap();
    let of = || sample::file(&project.id, at(1));
    let [first, second, third] = [of(), of(), of()];
    let limit = 2 * first.size_bytes;
    files.insert_within(&first, None, limit).await.unwrap();
    let refused = files.insert_within(&second, None, limit - 1).await;
    let stored = first.size_bytes;
    let too_much = StoreError::StorageLimit {
        limit: limit - 1,
        stored,
    };
    assert_eq!(refused, Err(too_much));
    assert_eq!(files.find(&project.id, &second.id).await, Ok(None));
    // Two at once, and room for one.
    let (a, b) = tokio::join!(
        files.insert_within(&second, None, limit),
        files.insert_within(&third, None, limit)
    );
    let refused = if a.is_ok() { b } else { a };
    let stored = limit;
    assert_eq!(refused, Err(StoreError::StorageLimit { limit, stored }));
    assert_eq!(files.stored_bytes(&project.id, at(2)).await, Ok(limit));
    // What is deleted makes room at once, although its bytes go later.
    files.delete(&project.id, &first.id, at(2)).await.unwrap();
    files.insert_within(&of(), None, limit).await.unwrap();
}

async fn a_name_with_nul_is_refused(db: Db) {
    let project = sample::project(&db.store).await;
    let file = File {
        filename: "a\0b".into(),
        ..sample::file(&project.id, at(1))
    };
    let refused = db.store.files().insert(&file, None).await.unwrap_err();
    assert_eq!(
        refused,
        StoreError::Invalid("filename contains a NUL character".into())
    );
}

async fn the_same_id_twice_is_a_conflict(db: Db) {
    let project = sample::project(&db.store).await;
    let file = sample::file(&project.id, at(1));
    db.store.files().insert(&file, None).await.unwrap();
    let refused = db.store.files().insert(&file, None).await;
    assert!(
        matches!(refused, Err(StoreError::Conflict(_))),
        "{refused:?}"
    );
}
