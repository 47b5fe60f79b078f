//! Cursor pages: each row once, whatever happens meanwhile.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use domain::file::Purpose;
use domain::id::FileId;
use domain::page::{Order, PageRequest};
use store::{MetadataFilter, Store, StoreError};

use crate::harness::{Db, on_both};
use crate::sample::{self, at};

on_both!(
    pages_of_files_show_each_once_while_others_are_uploaded,
    pages_of_jobs_show_each_once,
    pages_of_events_show_each_once_while_the_job_speaks,
    a_page_goes_on_after_a_file_that_was_deleted,
    a_cursor_that_names_nothing_here_is_refused,
);

fn page(after: Option<String>, limit: u64, order: Order) -> PageRequest {
    PageRequest {
        after,
        limit,
        order,
    }
}

const BOTH_ORDERS: [Order; 2] = [Order::NewestFirst, Order::OldestFirst];

async fn pages_of_files_show_each_once_while_others_are_uploaded(db: Db) {
    let store = &db.store;
    let project = sample::project(store).await;
    let mut before = BTreeSet::new();
    for n in 0..40 {
        // Many share an instant.
        let file = sample::file(&project.id, at(n / 9));
        store.files().insert(&file, None).await.unwrap();
        before.insert(file.id);
    }
    for order in BOTH_ORDERS {
        let stop = Arc::new(AtomicBool::new(false));
        let uploads = tokio::spawn(upload_until(
            store.clone(),
            project.id.clone(),
            stop.clone(),
        ));
        let mut seen: Vec<FileId> = Vec::new();
        loop {
            let after = seen.last().map(ToString::to_string);
            let purpose = Some(Purpose::FineTune);
            let got = store
                .files()
                .list(&project.id, purpose, &page(after, 7, order), at(9))
                .await
                .unwrap();
            assert!(got.items.len() <= 7);
            seen.extend(got.items.into_iter().map(|file| file.id));
            if !got.has_more || seen.len() > 100 {
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
        uploads.await.unwrap();
        let distinct: BTreeSet<FileId> = seen.iter().cloned().collect();
        assert_eq!(distinct.len(), seen.len(), "none is shown twice");
        assert!(distinct.is_superset(&before), "none is left out");
    }
}

async fn upload_until(store: Store, project: domain::id::ProjectId, stop: Arc<AtomicBool>) {
    let mut n = 0;
    while !stop.load(Ordering::Relaxed) && n < 30 {
        n += 1;
        store
            .files()
            .insert(&sample::file(&project, at(100 + n)), None)
            .await
            .unwrap();
    }
}

async fn pages_of_jobs_show_each_once(db: Db) {
    let store = &db.store;
    let project = sample::project(store).await;
    let mut made = Vec::new();
    for n in 0..11 {
        made.push(sample::job(store, &project, at(n / 4)).await.id);
    }
    for order in BOTH_ORDERS {
        let mut seen = Vec::new();
        loop {
            let after = seen.last().map(ToString::to_string);
            let request = page(after, 4, order);
            let got = store
                .jobs()
                .list(&project.id, &MetadataFilter::Any, &request)
                .await
                .unwrap();
            seen.extend(got.items.into_iter().map(|job| job.id));
            if !got.has_more {
                break;
            }
        }
        if order == Order::NewestFirst {
            seen.reverse();
        }
        assert_eq!(seen, made);
    }
}

async fn pages_of_events_show_each_once_while_the_job_speaks(db: Db) {
    let store = &db.store;
    let project = sample::project(store).await;
    let job = sample::running_job(store, &project, at(0)).await;
    for n in 1..=10 {
        store
            .jobs()
            .apply(&job.id, sample::beat(&job, at(60), &[n]), at(1))
            .await
            .unwrap();
    }
    for order in BOTH_ORDERS {
        let mut seen = Vec::new();
        let mut after = None;
        loop {
            let got = store
                .events()
                .list(&project.id, &job.id, &page(after, 3, order))
                .await
                .unwrap();
            after = got.items.last().map(|event| event.id.to_string());
            seen.extend(got.items.into_iter().map(|event| event.seq));
            if !got.has_more || seen.len() > 100 {
                break;
            }
            if order == Order::NewestFirst {
                let n = 100 + seen.len() as u64;
                let beat = sample::beat(&job, at(60), &[n]);
                store.jobs().apply(&job.id, beat, at(2)).await.unwrap();
            }
        }
        match order {
            Order::NewestFirst => assert_eq!(seen, (1..=14).rev().collect::<Vec<_>>()),
            Order::OldestFirst => assert_eq!(seen, (1..=seen.len() as u64).collect::<Vec<_>>()),
        }
    }
}

async fn a_page_goes_on_after_a_file_that_was_deleted(db: Db) {
    let store = &db.store;
    let project = sample::project(store).await;
    let mut files = Vec::new();
    for n in 0..4 {
        let file = sample::file(&project.id, at(n));
        store.files().insert(&file, None).await.unwrap();
        files.push(file);
    }
    store
        .files()
        .delete(&project.id, &files[1].id, at(9))
        .await
        .unwrap();
    let request = page(Some(files[1].id.to_string()), 10, Order::OldestFirst);
    let rest = store
        .files()
        .list(&project.id, None, &request, at(9))
        .await
        .unwrap();
    assert_eq!(rest.items, files[2..]);
    let none = store
        .files()
        .list(&project.id, Some(Purpose::Batch), &request, at(9))
        .await
        .unwrap();
    assert_eq!(none.items, []);
}

async fn a_cursor_that_names_nothing_here_is_refused(db: Db) {
    let store = &db.store;
    let (mine, theirs) = (sample::project(store).await, sample::project(store).await);
    let my_job = sample::job(store, &mine, at(0)).await;
    let their_job = sample::job(store, &theirs, at(0)).await;
    let their_file = their_job.spec.training_file.to_string();
    let events = store
        .events()
        .list_after_seq(&theirs.id, &their_job.id, 0, 1)
        .await
        .unwrap();
    for after in [their_file, "file-no".into(), "".into(), "\0".into()] {
        let request = page(Some(after.clone()), 10, Order::NewestFirst);
        let refused = store
            .files()
            .list(&mine.id, None, &request, at(9))
            .await
            .unwrap_err();
        assert_eq!(refused, StoreError::UnknownAfter(after));
    }
    for after in [their_job.id.to_string(), "ftjob-no".into(), "\0".into()] {
        let request = page(Some(after.clone()), 10, Order::NewestFirst);
        let refused = store
            .jobs()
            .list(&mine.id, &MetadataFilter::Any, &request)
            .await
            .unwrap_err();
        assert_eq!(refused, StoreError::UnknownAfter(after));
    }
    for after in [events[0].id.to_string(), "ftevent-no".into(), "\0".into()] {
        let request = page(Some(after.clone()), 10, Order::NewestFirst);
        let refused = store
            .events()
            .list(&mine.id, &my_job.id, &request)
            .await
            .unwrap_err();
        assert_eq!(refused, StoreError::UnknownAfter(after));
    }
}
