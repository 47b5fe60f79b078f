//! Batches: whose they are, what counts of what a process says, and what is kept.

use std::collections::BTreeSet;

use domain::batch::{
    Batch, BatchEvent, BatchFile, BatchResult, BatchStatus, RequestCounts, WrongStatus,
};
use domain::file::{File, Purpose};
use domain::page::{Order, PageRequest};
use domain::usage::TokenUsage;
use domain::webhook::WebhookEventType;
use store::{BatchError, Lease, Store, StoreError};

use crate::harness::{Db, on_both};
use crate::sample::{self, at};

on_both!(
    a_stored_batch_reads_back_whole,
    a_batch_is_one_process_s_until_its_lease_is_over,
    a_stale_process_changes_nothing,
    an_outcome_counts_once,
    a_finished_batch_has_its_files,
    projects_take_turns,
    an_input_stays_while_its_batch_needs_it,
    a_client_may_cancel_until_the_files_are_written,
    a_deleted_input_makes_no_batch,
);

const USAGE: TokenUsage = TokenUsage {
    prompt_tokens: 5,
    cached_tokens: 2,
    completion_tokens: 3,
};

fn result(line: u32, file: BatchFile) -> BatchResult {
    BatchResult {
        line,
        file,
        body: format!("{{\"☃\": {line}}}"),
        usage: USAGE,
    }
}

async fn taken(store: &Store) -> (Lease, Batch) {
    let mut taken = store.batches().take(9, at(1), at(31)).await.unwrap();
    assert_eq!(taken.len(), 1);
    taken.remove(0)
}

/// A batch of `total` requests that runs.
async fn running(store: &Store, total: u64) -> (Lease, Batch) {
    let project = sample::project(store).await;
    sample::stored_batch(store, &project, at(0)).await;
    let (lease, _) = taken(store).await;
    let validated = BatchEvent::Validated {
        total,
        model: "m".into(),
    };
    let batch = store.batches().apply(&lease, validated, at(2)).await;
    (lease, batch.unwrap())
}

async fn a_stored_batch_reads_back_whole(db: Db) {
    let project = sample::project(&db.store).await;
    let batches = db.store.batches();
    let first = sample::stored_batch(&db.store, &project, at(1)).await;
    let second = sample::stored_batch(&db.store, &project, at(1)).await;
    assert_eq!(
        batches.find(&project.id, &first.id).await.unwrap(),
        Some(first.clone())
    );
    let page = |after: Option<String>| PageRequest {
        after,
        limit: 1,
        order: Order::NewestFirst,
    };
    let (mut seen, mut after) = (BTreeSet::new(), None);
    loop {
        let got = batches.list(&project.id, &page(after)).await.unwrap();
        after = got.items.last().map(|batch| batch.id.to_string());
        seen.extend(got.items.into_iter().map(|batch| batch.id));
        if !got.has_more {
            break;
        }
    }
    assert_eq!(seen, BTreeSet::from([first.id, second.id]));
    let unknown = batches
        .list(&project.id, &page(Some("batch_x".into())))
        .await;
    assert_eq!(unknown, Err(StoreError::UnknownAfter("batch_x".into())));
}

async fn a_batch_is_one_process_s_until_its_lease_is_over(db: Db) {
    let batches = db.store.batches();
    let project = sample::project(&db.store).await;
    let batch = sample::stored_batch(&db.store, &project, at(0)).await;
    let others = db.open_again().await;
    let both = tokio::join!(
        batches.take(9, at(1), at(31)),
        others.batches().take(9, at(1), at(31))
    );
    let mut taken = [both.0.unwrap(), both.1.unwrap()].concat();
    assert_eq!(taken.len(), 1);
    let (lease, read) = taken.remove(0);
    assert_eq!((lease.run, read), (1, batch.clone()));
    assert_eq!(batches.renew(&lease, at(50)).await.unwrap(), batch);
    assert_eq!(batches.take(9, at(50), at(80)).await.unwrap(), []);
    let next = batches.take(9, at(51), at(80)).await.unwrap();
    assert_eq!(next[0].0.run, 2);
    batches.release(&next[0].0).await.unwrap();
    let third = batches.take(9, at(51), at(80)).await.unwrap();
    assert_eq!(third[0].0.run, 3);
    assert_eq!(batches.void_leases().await.unwrap(), 1);
    assert_eq!(batches.take(9, at(51), at(80)).await.unwrap().len(), 1);
}

async fn a_stale_process_changes_nothing(db: Db) {
    let batches = db.store.batches();
    let (stale, _) = running(&db.store, 1).await;
    let (lease, batch) = batches.take(9, at(40), at(70)).await.unwrap().remove(0);
    let stale_is = Err(BatchError::Stale);
    assert_eq!(batches.renew(&stale, at(90)).await, stale_is);
    assert_eq!(
        batches.apply(&stale, BatchEvent::Closed, at(41)).await,
        stale_is
    );
    let results = [result(1, BatchFile::Output)];
    assert_eq!(batches.record(&stale, &results, at(41)).await, stale_is);
    let file = sample::file(&batch.project_id, at(41));
    assert_eq!(
        batches.finish(&stale, Some(&file), None, at(41)).await,
        stale_is
    );
    batches.release(&stale).await.unwrap();
    assert_eq!(batches.take(9, at(41), at(70)).await.unwrap(), []);
    assert_eq!(batches.renew(&lease, at(70)).await, Ok(batch.clone()));
    assert!(batches.answered_lines(&batch.id).await.unwrap().is_empty());
}

async fn an_outcome_counts_once(db: Db) {
    let batches = db.store.batches();
    let (lease, batch) = running(&db.store, 3).await;
    let (good, bad) = (result(2, BatchFile::Output), result(1, BatchFile::Error));
    batches
        .record(&lease, &[good.clone(), bad.clone()], at(3))
        .await
        .unwrap();
    // The reply was lost, and one more is there.
    let last = result(3, BatchFile::Output);
    let again = [good.clone(), bad.clone(), last.clone()];
    let batch = {
        batches.record(&lease, &again, at(4)).await.unwrap();
        assert_eq!(
            batches.record(&lease, &again, at(4)).await.unwrap().id,
            batch.id
        );
        batches.renew(&lease, at(31)).await.unwrap()
    };
    let counts = RequestCounts {
        total: 3,
        completed: 2,
        failed: 1,
    };
    let mut usage = USAGE;
    usage += USAGE;
    usage += USAGE;
    assert_eq!(
        (batch.progress.counts, batch.progress.usage),
        (counts, usage)
    );
    let lines = batches.answered_lines(&batch.id).await.unwrap();
    assert_eq!(lines, [1, 2, 3].into());
    let read = async |file, after| batches.results(&batch.id, file, after, 1).await.unwrap();
    assert_eq!(read(BatchFile::Output, 0).await, [(2, good.body)]);
    assert_eq!(read(BatchFile::Output, 2).await, [(3, last.body)]);
    assert_eq!(read(BatchFile::Output, 3).await, []);
    assert_eq!(read(BatchFile::Error, 0).await, [(1, bad.body)]);
}

async fn a_finished_batch_has_its_files(db: Db) {
    let batches = db.store.batches();
    let (lease, batch) = running(&db.store, 1).await;
    let project = db.store.projects().find(&batch.project_id).await.unwrap();
    sample::endpoint(
        &db.store,
        &project.unwrap(),
        &[WebhookEventType::BatchCompleted],
    )
    .await;
    let results = [result(1, BatchFile::Output)];
    batches.record(&lease, &results, at(3)).await.unwrap();
    assert_eq!(batches.purge_results(9).await.unwrap(), 0, "it is not over");
    batches
        .apply(&lease, BatchEvent::Closed, at(4))
        .await
        .unwrap();
    let output = File {
        purpose: Purpose::BatchOutput,
        ..sample::file(&batch.project_id, at(5))
    };
    let over = batches
        .finish(&lease, Some(&output), None, at(5))
        .await
        .unwrap();
    assert_eq!(over.status(), BatchStatus::Completed);
    let told = db
        .store
        .webhooks()
        .claim_due(at(6), 9, at(66))
        .await
        .unwrap();
    assert_eq!(told.len(), 1, "the endpoint hears of the end alone");
    assert!(told[0].body.contains("batch.completed") && told[0].body.contains(batch.id.as_str()));
    assert_eq!(over.progress.output_file, Some(output.id.clone()));
    let files = db.store.files();
    assert_eq!(
        files.find(&batch.project_id, &output.id).await.unwrap(),
        Some(output.clone())
    );
    // The reply was lost: said again, it is told where the batch stands.
    let again = batches.finish(&lease, Some(&output), None, at(6)).await;
    assert_eq!(again, Err(WrongStatus(BatchStatus::Completed).into()));
    assert_eq!(batches.take(9, at(99), at(120)).await.unwrap(), []);
    assert_eq!(batches.purge_results(9).await.unwrap(), 1);
    assert_eq!(batches.purge_results(9).await.unwrap(), 0);
}

async fn projects_take_turns(db: Db) {
    let store = &db.store;
    let (busy, quiet) = (sample::project(store).await, sample::project(store).await);
    for n in 0..6 {
        sample::stored_batch(store, &busy, at(n)).await;
    }
    let late = sample::stored_batch(store, &quiet, at(9)).await;
    let first = store.batches().take(2, at(10), at(40)).await.unwrap();
    let projects: Vec<_> = first.iter().map(|(_, batch)| &batch.project_id).collect();
    assert_eq!(projects, [&busy.id, &quiet.id]);
    assert_eq!(first[1].1.id, late.id);
    // No more than four of a project run at once, however much room there is.
    let rest = store.batches().take(9, at(10), at(40)).await.unwrap();
    assert_eq!(rest.len(), 3);
    assert_eq!(store.batches().take(9, at(10), at(40)).await.unwrap(), []);
}

async fn an_input_stays_while_its_batch_needs_it(db: Db) {
    let store = &db.store;
    let (lease, batch) = running(store, 1).await;
    let (files, input) = (store.files(), &batch.spec.input_file);
    files.delete(&batch.project_id, input, at(3)).await.unwrap();
    assert!(!files.purge(input).await.unwrap());
    assert_eq!(files.deleted_unpinned(9).await.unwrap(), []);
    let batches = store.batches();
    batches
        .apply(&lease, BatchEvent::Closed, at(4))
        .await
        .unwrap();
    let expired = batches.finish(&lease, None, None, at(5)).await.unwrap();
    assert_eq!(expired.status(), BatchStatus::Expired);
    assert!(files.purge(input).await.unwrap());
}

async fn a_client_may_cancel_until_the_files_are_written(db: Db) {
    let batches = db.store.batches();
    let (lease, batch) = running(&db.store, 1).await;
    let cancel = async |now| batches.cancel(&batch.project_id, &batch.id, at(now)).await;
    let cancelling = cancel(3).await.unwrap();
    assert_eq!(cancelling.status(), BatchStatus::Cancelling);
    assert_eq!(
        cancel(4).await,
        Ok(cancelling.clone()),
        "it may be repeated"
    );
    assert_eq!(batches.renew(&lease, at(31)).await, Ok(cancelling));
    let cancelled = batches.finish(&lease, None, None, at(5)).await.unwrap();
    assert_eq!(cancelled.status(), BatchStatus::Cancelled);
    let refused = Err(WrongStatus(BatchStatus::Cancelled).into());
    assert_eq!(cancel(6).await, refused);
}

async fn a_deleted_input_makes_no_batch(db: Db) {
    let project = sample::project(&db.store).await;
    let batch = sample::stored_batch(&db.store, &project, at(0)).await;
    let (files, input) = (db.store.files(), &batch.spec.input_file);
    files.delete(&project.id, input, at(1)).await.unwrap();
    let mut next = batch.clone();
    next.id = domain::id::BatchId::mint(sample::entropy());
    let refused = db.store.batches().insert(&next, None).await;
    assert_eq!(refused, Err(StoreError::NotFound));
}
