//! Uploads: parts while they are pending, and one end.

use domain::file::File;
use domain::id::PartId;
use domain::upload::{LIFETIME_S, Upload, UploadPart, UploadState};
use store::{AddedPart, IdempotencyEntry, PartLimits, StoreError};

use crate::harness::{Db, on_both};
use crate::sample::{self, at};

on_both!(
    an_upload_and_its_parts_read_back_whole,
    the_same_request_makes_one_upload,
    parts_are_taken_while_the_upload_is_pending_and_has_room,
    parts_take_what_room_their_project_has_while_they_are_pending,
    of_two_that_complete_an_upload_one_makes_the_file,
    a_completion_that_is_sent_again_is_not_another_one,
    an_upload_that_is_over_cannot_be_cancelled,
    parts_are_left_over_once_their_upload_is,
);

async fn pending(db: &Db) -> Upload {
    let project = sample::project(&db.store).await;
    let upload = sample::upload(&project.id, at(0));
    let request = sample::request("POST /uploads", upload.id.as_str());
    db.store.uploads().insert(&upload, &request).await.unwrap();
    upload
}

async fn with_part(db: &Db) -> (Upload, UploadPart) {
    let upload = pending(db).await;
    let part = sample::part(&upload, at(1));
    let added = db
        .store
        .uploads()
        .add_part(&upload.project_id, &part, sample::up_to(12));
    assert_eq!(added.await, Ok(AddedPart::Added));
    (upload, part)
}

/// Whether it made the file.
async fn complete(db: &Db, upload: &Upload, file: &File) -> bool {
    let request = sample::request("POST complete", file.id.as_str());
    let uploads = db.store.uploads();
    let completed = uploads.complete(&upload.project_id, &upload.id, file, &request);
    completed.await.unwrap()
}

async fn an_upload_and_its_parts_read_back_whole(db: Db) {
    let project = sample::project(&db.store).await;
    let upload = Upload {
        size_bytes: i64::MAX as u64,
        file_lifetime_s: Some(3_600),
        ..sample::upload(&project.id, at(0))
    };
    let (uploads, request) = (db.store.uploads(), sample::request("POST /uploads", "k"));
    uploads.insert(&upload, &request).await.unwrap();
    let found = uploads.find(&project.id, &upload.id).await;
    assert_eq!(found, Ok(Some(upload.clone())));
    let mut parts = vec![sample::part(&upload, at(1)), sample::part(&upload, at(2))];
    for part in &parts {
        let added = uploads.add_part(&project.id, part, sample::up_to(12)).await;
        assert_eq!(added, Ok(AddedPart::Added));
        assert_eq!(uploads.has_part(&part.id).await, Ok(true));
    }
    assert_eq!(uploads.has_part(&PartId::mint([9; 24])).await, Ok(false));
    let mut found = uploads.parts(&project.id, &upload.id).await.unwrap();
    found.sort_by(|a, b| a.id.cmp(&b.id));
    parts.sort_by(|a, b| a.id.cmp(&b.id));
    assert_eq!(found, parts);
}

async fn the_same_request_makes_one_upload(db: Db) {
    let project = sample::project(&db.store).await;
    let request = sample::request("POST /uploads", "k");
    let (first, second) = (
        sample::upload(&project.id, at(0)),
        sample::upload(&project.id, at(0)),
    );
    let uploads = db.store.uploads();
    uploads.insert(&first, &request).await.unwrap();
    let refused = uploads.insert(&second, &request).await;
    let repeated = StoreError::Repeated {
        object_id: first.id.to_string(),
    };
    assert_eq!(refused, Err(repeated));
    assert_eq!(uploads.find(&project.id, &second.id).await, Ok(None));
}

async fn parts_are_taken_while_the_upload_is_pending_and_has_room(db: Db) {
    let (upload, first) = with_part(&db).await;
    let (uploads, project) = (db.store.uploads(), &upload.project_id);
    let add = async |part: &UploadPart, max| {
        let added = uploads.add_part(project, part, sample::up_to(max)).await;
        added.unwrap()
    };
    let part = sample::part(&upload, at(1));
    assert_eq!(add(&part, 7).await, AddedPart::Full);
    let late = sample::part(&upload, at(LIFETIME_S));
    assert_eq!(add(&late, 100).await, AddedPart::NotPending);
    uploads.cancel(project, &upload.id).await.unwrap();
    assert_eq!(add(&part, 100).await, AddedPart::NotPending);
    assert_eq!(uploads.parts(project, &upload.id).await, Ok(vec![first]));
}

async fn parts_take_what_room_their_project_has_while_they_are_pending(db: Db) {
    let (upload, _first) = with_part(&db).await;
    let (uploads, files, project) = (db.store.uploads(), db.store.files(), &upload.project_id);
    let stored = async |second| files.stored_bytes(project, at(second)).await.unwrap();
    assert_eq!(stored(2).await, 4);
    let limits = |stored_bytes| PartLimits {
        upload_bytes: 100,
        stored_bytes,
    };
    let part = sample::part(&upload, at(1));
    let refused = uploads.add_part(project, &part, limits(7)).await;
    let too_much = StoreError::StorageLimit {
        limit: 7,
        stored: 4,
    };
    assert_eq!(refused, Err(too_much));
    let added = uploads.add_part(project, &part, limits(8)).await;
    assert_eq!((added, stored(2).await), (Ok(AddedPart::Added), 8));
    // They go with their upload's time, and become its file.
    assert_eq!(stored(LIFETIME_S).await, 0);
    let file = sample::file(project, at(2));
    assert!(complete(&db, &upload, &file).await);
    assert_eq!(stored(2).await, file.size_bytes);
}

async fn of_two_that_complete_an_upload_one_makes_the_file(db: Db) {
    let (upload, _part) = with_part(&db).await;
    let project = &upload.project_id;
    let files = [sample::file(project, at(2)), sample::file(project, at(2))];
    let (first, second) = tokio::join!(
        complete(&db, &upload, &files[0]),
        complete(&db, &upload, &files[1])
    );
    assert!(first != second, "both or none made a file");
    let made = if first { &files[0] } else { &files[1] };
    for file in &files {
        let found = db.store.files().find(project, &file.id).await.unwrap();
        assert_eq!(found.is_some(), file.id == made.id);
    }
    let found = db.store.uploads().find(project, &upload.id).await.unwrap();
    let state = UploadState::Completed(made.id.clone());
    assert_eq!(found, Some(Upload { state, ..upload }));
}

async fn an_upload_that_is_over_cannot_be_cancelled(db: Db) {
    let (upload, _part) = with_part(&db).await;
    let (uploads, project) = (db.store.uploads(), upload.project_id.clone());
    assert_eq!(uploads.cancel(&project, &upload.id).await, Ok(true));
    assert_eq!(uploads.cancel(&project, &upload.id).await, Ok(false));
    let file = sample::file(&project, at(2));
    assert!(!complete(&db, &upload, &file).await);
    assert_eq!(db.store.files().find(&project, &file.id).await, Ok(None));
    let found = uploads.find(&project, &upload.id).await.unwrap().unwrap();
    assert_eq!(found.state, UploadState::Cancelled);
}

async fn parts_are_left_over_once_their_upload_is(db: Db) {
    let (live, kept) = with_part(&db).await;
    let (cancelled, dropped) = with_part(&db).await;
    let uploads = db.store.uploads();
    let me = &cancelled.project_id;
    uploads.cancel(me, &cancelled.id).await.unwrap();
    assert_eq!(
        uploads.leftover_parts(at(100), 10).await,
        Ok(vec![dropped.clone()])
    );
    // A row with parts stays, whatever its age.
    assert_eq!(uploads.purge(at(LIFETIME_S)).await, Ok(0));
    uploads.remove_part(&dropped.id).await.unwrap();
    assert_eq!(
        uploads.leftover_parts(at(LIFETIME_S - 1), 10).await,
        Ok(vec![])
    );
    assert_eq!(
        uploads.leftover_parts(at(LIFETIME_S), 10).await,
        Ok(vec![kept.clone()])
    );
    assert_eq!(uploads.purge(at(LIFETIME_S - 1)).await, Ok(0));
    assert_eq!(uploads.purge(at(LIFETIME_S)).await, Ok(1));
    assert_eq!(uploads.find(me, &cancelled.id).await, Ok(None));
    let (completed, _part) = with_part(&db).await;
    let file = sample::file(&completed.project_id, at(2));
    assert!(complete(&db, &completed, &file).await);
    assert_eq!(uploads.leftover_parts(at(100), 10).await.unwrap().len(), 1);
    assert_eq!(
        uploads.parts(&live.project_id, &live.id).await,
        Ok(vec![kept])
    );
}

async fn a_completion_that_is_sent_again_is_not_another_one(db: Db) {
    let (first, again) = ((at(1), None), (at(2), Some(at(0))));
    for [one, other] in [[first, again], [again, first]] {
        let upload = pending(&db).await;
        let complete = async |fingerprint: &str, (began_at, repeats_since)| {
            let request = IdempotencyEntry {
                key: None,
                fingerprint: fingerprint.into(),
                began_at,
                repeats_since,
                ..sample::request("POST complete", "")
            };
            let (uploads, project) = (db.store.uploads(), &upload.project_id);
            let file = sample::file(project, at(3));
            uploads.complete(project, &upload.id, &file, &request).await
        };
        assert_eq!(complete("f1", one).await, Ok(true));
        let repeated = StoreError::Repeated {
            object_id: upload.id.to_string(),
        };
        assert_eq!(complete("f1", other).await, Err(repeated));
        assert_eq!(complete("f2", other).await, Ok(false));
    }
}
