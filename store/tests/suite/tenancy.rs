//! What is another project's is as absent as what never was.

use std::collections::BTreeSet;
use std::path::Path;

use domain::id::KeyId;
use domain::job_event::JobEvent;
use domain::page::{Order, Page, PageRequest};
use domain::webhook::WebhookEventType;
use store::{AddedPart, ApplyError, BatchError, IdempotencyEntry, MetadataFilter, StoreError};

use crate::chat_completions;
use crate::harness::{Db, on_both};
use crate::rate_limits;
use crate::responses;
use crate::sample::{self, at};

on_both!(a_foreign_project_sees_and_changes_nothing);

/// Every function that takes a project; the next test holds the list against the source.
const WALKED: &[&str] = &[
    "api_keys::list",
    "api_keys::revoke",
    "batches::cancel",
    "batches::find",
    "batches::list",
    "chat_completions::delete",
    "chat_completions::find",
    "chat_completions::list",
    "chat_completions::messages",
    "chat_completions::set_metadata",
    "checkpoints::list_visible",
    "events::list",
    "events::list_after_seq",
    "files::delete",
    "files::find",
    "files::list",
    "files::total_size_bytes",
    "idempotency::find",
    "idempotency::find_retry",
    "jobs/apply::apply_in_project",
    "jobs::find",
    "jobs::list",
    "jobs::n_active",
    "models::delete",
    "models::find",
    "models::list",
    "projects::find",
    "rate_limits::draw",
    "rate_limits::list",
    "rate_limits::upsert",
    "responses::delete",
    "responses::find",
    "uploads::add_part",
    "uploads::cancel",
    "uploads::complete",
    "uploads::find",
    "uploads::parts",
    "usage::total_trained_tokens",
    "usage::trained_tokens",
    "webhooks/secrets::rotate_secret",
    "webhooks/secrets::secrets",
    "webhooks::count",
    "webhooks::delete",
    "webhooks::find",
    "webhooks::list",
    "webhooks::update",
];

async fn a_foreign_project_sees_and_changes_nothing(db: Db) {
    let store = &db.store;
    let (owner, stranger) = (sample::project(store).await, sample::project(store).await);
    let job = sample::succeeded_job(store, &owner, at(0)).await;
    let live = sample::running_job(store, &owner, at(1)).await;
    let key = sample::api_key(&owner.id);
    store.api_keys().insert(&key).await.unwrap();
    let request = IdempotencyEntry {
        endpoint: "POST /files".into(),
        key: Some("k".into()),
        api_key_id: KeyId::parse("key_1").unwrap(),
        fingerprint: "f".into(),
        expires_at: at(999),
    };
    let file = sample::file(&owner.id, at(0));
    store.files().insert(&file, Some(&request)).await.unwrap();
    let batch = sample::stored_batch(store, &owner, at(0)).await;
    let stored = chat_completions::stored(&owner.id, 0, &[("k", "v")]);
    store.chat_completions().insert(&stored, &[]).await.unwrap();
    let endpoint = sample::endpoint(store, &owner, &WebhookEventType::ALL).await;
    let turn = responses::stored(&owner.id, 0);
    store.responses().insert(&turn).await.unwrap();
    let model = job.tuned_model_name();
    let (rates, limited) = (store.rate_limits(), rate_limits::of_model("tiny"));
    rates.upsert(&owner.id, &limited, at(0)).await.unwrap();
    let upload = sample::upload(&owner.id, at(0));
    let upload_request = sample::request("POST /uploads", "u");
    store
        .uploads()
        .insert(&upload, &upload_request)
        .await
        .unwrap();
    let part = sample::part(&upload, at(1));
    let added = store.uploads().add_part(&owner.id, &part, 100).await;
    assert_eq!(added, Ok(AddedPart::Added));
    let me = &stranger.id;
    let page = PageRequest {
        after: None,
        limit: 100,
        order: Order::NewestFirst,
    };

    assert_eq!(store.api_keys().list(me).await.unwrap(), []);
    assert!(!store.api_keys().revoke(me, &key.id, at(2)).await.unwrap());
    let cancelled = store.batches().cancel(me, &batch.id, at(2)).await;
    assert_eq!(cancelled, Err(BatchError::Store(StoreError::NotFound)));
    assert_eq!(store.batches().find(me, &batch.id).await, Ok(None));
    let batches = store.batches().list(me, &page).await.unwrap();
    assert_eq!(batches.items, []);
    let (completions, id) = (store.chat_completions(), &stored.completion.id);
    assert_eq!(completions.delete(me, id).await, Ok(false));
    assert_eq!(completions.find(me, id).await, Ok(None));
    assert_eq!(completions.messages(me, id).await, Ok(None));
    assert_eq!(completions.set_metadata(me, id, None).await, Ok(None));
    let listed = completions.list(me, &Default::default(), &page).await;
    assert_eq!(listed.unwrap().items, []);
    let (responses, id) = (store.responses(), &turn.response.id);
    assert_eq!(responses.delete(me, id).await, Ok(false));
    assert_eq!(responses.find(me, id).await, Ok(None));
    let visible = store.checkpoints().list_visible(me, &job.id, &page).await;
    assert_eq!(visible, Err(StoreError::NotFound));
    assert_eq!(
        store.events().list(me, &job.id, &page).await,
        Err(StoreError::NotFound)
    );
    let events = store.events().list_after_seq(me, &job.id, 0, 9).await;
    assert_eq!(events, Err(StoreError::NotFound));
    assert_eq!(store.files().delete(me, &file.id, at(2)).await, Ok(None));
    assert_eq!(store.files().find(me, &file.id).await, Ok(None));
    let none = || Page {
        items: Vec::new(),
        has_more: false,
    };
    assert_eq!(store.files().list(me, None, &page).await, Ok(none()));
    assert_eq!(store.files().total_size_bytes(me).await, Ok(0));
    let idempotency = store.idempotency();
    assert_eq!(
        idempotency.find(me, "POST /files", "k", at(2)).await,
        Ok(None)
    );
    let retry = idempotency
        .find_retry(me, "POST /files", &request.api_key_id, "f", at(0))
        .await;
    assert_eq!(retry, Ok(None));
    for event in [
        JobEvent::CancelRequested,
        JobEvent::PauseRequested,
        JobEvent::ResumeRequested,
    ] {
        let refused = store
            .jobs()
            .apply_in_project(me, &live.id, event, at(2))
            .await;
        assert_eq!(refused, Err(ApplyError::NotFound));
    }
    assert_eq!(store.jobs().find(me, &job.id).await, Ok(None));
    let jobs = store
        .jobs()
        .list(me, &MetadataFilter::Any, &page)
        .await
        .unwrap();
    assert_eq!(jobs.items, []);
    assert_eq!(store.jobs().n_active(me).await, Ok(0));
    assert_eq!(store.models().delete(me, &model, at(2)).await, Ok(false));
    assert_eq!(store.models().find(me, &model).await, Ok(None));
    assert_eq!(store.models().list(me).await, Ok(Vec::new()));
    assert_eq!(rates.list(me).await, Ok(Vec::new()));
    let drawn = rate_limits::draw_all(store, me, "tiny").await;
    assert_eq!(drawn.limit, rate_limits::DEFAULT);
    let theirs = rate_limits::of_model("small");
    rates.upsert(me, &theirs, at(1)).await.unwrap();
    assert_eq!(store.uploads().find(me, &upload.id).await, Ok(None));
    assert_eq!(store.uploads().parts(me, &upload.id).await, Ok(Vec::new()));
    let more = sample::part(&upload, at(1));
    assert_eq!(
        store.uploads().add_part(me, &more, 100).await,
        Ok(AddedPart::NotPending)
    );
    let stolen = sample::file(me, at(2));
    let completed = store
        .uploads()
        .complete(me, &upload.id, &stolen, &upload_request)
        .await;
    assert_eq!(completed, Ok(false));
    assert_eq!(store.uploads().cancel(me, &upload.id).await, Ok(false));
    assert_eq!(store.usage().total_trained_tokens(me).await, Ok(0));
    assert_eq!(store.usage().trained_tokens(me, &job.id).await, Ok(None));
    let (webhooks, id) = (store.webhooks(), &endpoint.id);
    assert_eq!(webhooks.count(me).await, Ok(0));
    assert_eq!(webhooks.find(me, id).await, Ok(None));
    assert_eq!(webhooks.list(me, &page).await.unwrap().items, []);
    let change = sample::change(&endpoint);
    assert_eq!(webhooks.update(me, id, &change).await, Ok(false));
    let new = sample::sealed();
    let rotated = webhooks.rotate_secret(me, id, &new, "h", None, at(2));
    assert_eq!(rotated.await, Ok(false));
    assert_eq!(webhooks.secrets(me, id, at(2)).await, Ok(Vec::new()));
    assert_eq!(webhooks.delete(me, id).await, Ok(false));

    // The owner has everything still.
    let me = &owner.id;
    assert_eq!(
        rates.list(me).await.unwrap(),
        std::slice::from_ref(&limited)
    );
    let drawn = rate_limits::draw_all(store, me, "tiny").await;
    assert_eq!(drawn.given, limited.limit.per_minute());
    assert_eq!(store.api_keys().list(me).await.unwrap(), [key]);
    let batches = store.batches();
    assert_eq!(batches.find(me, &batch.id).await, Ok(Some(batch)));
    assert_eq!(
        store
            .checkpoints()
            .list_visible(me, &job.id, &page)
            .await
            .unwrap()
            .items
            .len(),
        3
    );
    assert_eq!(
        store
            .events()
            .list(me, &job.id, &page)
            .await
            .unwrap()
            .items
            .len(),
        15
    );
    assert_eq!(responses.find(me, id).await, Ok(Some(turn.clone())));
    let kept = completions.find(me, &stored.completion.id).await;
    assert_eq!(kept, Ok(Some(stored.clone())));
    assert_eq!(store.files().find(me, &file.id).await, Ok(Some(file)));
    assert_eq!(store.uploads().parts(me, &upload.id).await, Ok(vec![part]));
    assert_eq!(store.uploads().find(me, &upload.id).await, Ok(Some(upload)));
    assert_eq!(store.jobs().find(me, &live.id).await, Ok(Some(live)));
    assert!(
        idempotency
            .find(me, "POST /files", "k", at(2))
            .await
            .unwrap()
            .is_some()
    );
    assert!(store.models().find(me, &model).await.unwrap().is_some());
    assert_eq!(
        store.usage().trained_tokens(me, &job.id).await,
        Ok(Some(5_070))
    );
    let webhooks = store.webhooks();
    assert_eq!(
        webhooks
            .secrets(me, &endpoint.id, at(2))
            .await
            .unwrap()
            .len(),
        1
    );
    assert_eq!(webhooks.find(me, &endpoint.id).await, Ok(Some(endpoint)));
}

#[test]
fn the_walk_leaves_out_no_function_that_takes_a_project() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = BTreeSet::new();
    for folder in [src.clone(), src.join("jobs"), src.join("webhooks")] {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|e| e == "rs") {
                let module = path.strip_prefix(&src).unwrap().with_extension("");
                let module = module.display();
                let text = std::fs::read_to_string(&path).unwrap();
                found.extend(taking_a_project(&text).map(|name| format!("{module}::{name}")));
            }
        }
    }
    let walked = WALKED.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(found, walked);
}

/// Names of the public functions of `text` with a `&ProjectId` among their arguments.
fn taking_a_project(text: &str) -> impl Iterator<Item = &str> {
    text.split("pub async fn ").skip(1).filter_map(|rest| {
        let signature = rest.split("->").next()?;
        let name = signature.split('(').next()?;
        signature.contains("&ProjectId").then_some(name)
    })
}
