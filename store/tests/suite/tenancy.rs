//! What is another project's is as absent as what never was.

use std::collections::BTreeSet;
use std::path::Path;

use domain::audit::AuditKind;
use domain::dry_run::DryRun;
use domain::id::DryRunId;
use domain::job_event::JobEvent;
use domain::page::{Order, Page, PageRequest};
use domain::project::Project;
use domain::project_user::{ProjectRole, ProjectUser};
use domain::service_account::ServiceAccount;
use domain::user::OrganizationRole;
use domain::webhook::WebhookEventType;
use store::{
    AccessFilter, AddedPart, ApplyError, BatchError, Claim, IdempotencyEntry, MetadataFilter,
    ProjectChange, ServiceAccountChange, Store, StoreError,
};

use crate::chat_completions;
use crate::harness::{Db, on_both};
use crate::kept_replies;
use crate::rate_limits;
use crate::responses;
use crate::sample::{self, at};

on_both!(
    a_foreign_project_sees_and_changes_nothing,
    a_foreign_project_sees_no_answer_that_is_kept,
    a_foreign_project_sees_no_upload_and_no_dry_run,
    a_foreign_project_sees_no_limit,
    a_foreign_project_sees_no_webhook,
    a_foreign_project_changes_no_reply_that_is_kept,
    a_foreign_project_sees_no_alias,
    a_foreign_project_sees_nothing_of_what_administrators_made,
);

/// Every function that takes a project; the next test holds the list against the source.
pub const WALKED: &[&str] = &[
    "api_keys::find",
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
    "checkpoint_permissions::list",
    "checkpoints::list_visible",
    "dry_runs::find",
    "events::list",
    "events::list_after_seq",
    "files::delete",
    "files::find",
    "files::list",
    "files::stored_bytes",
    "idempotency::find",
    "idempotency::find_retry",
    "idempotency::forget",
    "jobs/apply::apply_in_project",
    "jobs::find",
    "jobs::list",
    "jobs::n_active",
    "kept_replies::keep",
    "kept_replies::release",
    "model_aliases::delete",
    "model_aliases::find",
    "model_aliases::list",
    "models::delete",
    "models::find",
    "models::list",
    "project_users::delete",
    "project_users::find",
    "project_users::list",
    "project_users::set_role",
    "projects::archive",
    "projects::find",
    "projects::find_in",
    "projects::modify",
    "projects::set_model_permissions",
    "projects::set_spend_limit",
    "rate_limits::draw",
    "rate_limits::list",
    "rate_limits::modify",
    "responses::delete",
    "responses::find",
    "service_accounts::delete",
    "service_accounts::find",
    "service_accounts::list",
    "service_accounts::modify",
    "uploads::add_part",
    "uploads::cancel",
    "uploads::complete",
    "uploads::find",
    "uploads::parts",
    "usage/spending::spending",
    "usage::total_trained_tokens",
    "usage::trained_tokens",
    "webhooks/secrets::rotate_secret",
    "webhooks/secrets::secrets",
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
    sample::insert_key(store, &owner, &key).await;
    let request = IdempotencyEntry {
        key: None,
        ..sample::request("POST /files", "")
    };
    let file = sample::file(&owner.id, at(0));
    store.files().insert(&file, Some(&request)).await.unwrap();
    let (upload, keyed) = (
        sample::upload(&owner.id, at(0)),
        sample::request("POST /uploads", "k"),
    );
    store.uploads().insert(&upload, &keyed).await.unwrap();
    let batch = sample::stored_batch(store, &owner, at(0)).await;
    let model = job.tuned_model_name();
    let me = &stranger.id;
    let page = PageRequest {
        after: None,
        limit: 100,
        order: Order::NewestFirst,
    };

    let keys = store.api_keys();
    let listed = keys.list(me, AccessFilter::Any, &page).await.unwrap();
    assert_eq!(listed.items, []);
    assert_eq!(keys.find(me, &key.id).await, Ok(None));
    let deleted = sample::entry(&owner.organization_id, AuditKind::ApiKeyDeleted, "key");
    assert_eq!(keys.revoke(me, &key.id, &deleted).await, Ok(false));
    let cancelled = store.batches().cancel(me, &batch.id, at(2)).await;
    assert_eq!(cancelled, Err(BatchError::Store(StoreError::NotFound)));
    assert_eq!(store.batches().find(me, &batch.id).await, Ok(None));
    let batches = store.batches().list(me, &page).await.unwrap();
    assert_eq!(batches.items, []);
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
    assert_eq!(store.files().list(me, None, &page, at(0)).await, Ok(none()));
    assert_eq!(store.files().stored_bytes(me, at(0)).await, Ok(0));
    let idempotency = store.idempotency();
    assert_eq!(
        idempotency.find(me, "POST /uploads", "k", at(2)).await,
        Ok(None)
    );
    let retry = idempotency
        .find_retry(me, "POST /files", &request.api_key_id, "f", at(0))
        .await;
    assert_eq!(retry, Ok(None));
    let forgotten = idempotency.forget(me, &request, file.id.as_str());
    assert_eq!(forgotten.await, Ok(()));
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
    assert_eq!(store.usage().total_trained_tokens(me).await, Ok(0));
    let month = at(0).month();
    let spending = store.usage().spending(me, month).await;
    assert_eq!(spending, Ok(domain::price::Spending::default()));
    assert_eq!(store.usage().trained_tokens(me, &job.id).await, Ok(None));

    // The owner has everything still.
    let me = &owner.id;
    let retry = idempotency.find_retry(me, "POST /files", &request.api_key_id, "f", at(0));
    assert_eq!(retry.await.unwrap().unwrap().object_id, file.id.as_str());
    let listed = store.api_keys().list(me, AccessFilter::Any, &page).await;
    assert_eq!(listed.unwrap().items.len(), 1);
    assert!(store.api_keys().find(me, &key.id).await.unwrap().is_some());
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
    assert_eq!(store.files().find(me, &file.id).await, Ok(Some(file)));
    assert_eq!(store.jobs().find(me, &live.id).await, Ok(Some(live)));
    assert!(
        idempotency
            .find(me, "POST /uploads", "k", at(2))
            .await
            .unwrap()
            .is_some()
    );
    assert!(store.models().find(me, &model).await.unwrap().is_some());
    assert_eq!(
        store.usage().trained_tokens(me, &job.id).await,
        Ok(Some(5_070))
    );
}

async fn a_foreign_project_changes_no_reply_that_is_kept(db: Db) {
    let (owner, stranger) = (
        sample::project(&db.store).await,
        sample::project(&db.store).await,
    );
    let replies = db.store.kept_replies();
    let (asked, memory) = (
        kept_replies::request(Some(&owner.id), Some("k")),
        kept_replies::memory(at(0)),
    );
    let claimed = replies.claim(&asked, &memory).await.unwrap();
    let Claim::First { row } = claimed else {
        panic!("{claimed:?}")
    };
    for other in [Some(&stranger.id), None] {
        replies.keep(other, row, "theirs").await.unwrap();
        replies.release(other, row).await.unwrap();
        let again = replies.claim(&asked, &memory).await.unwrap();
        assert_eq!(again, Claim::UnderWay);
    }
}

async fn a_foreign_project_sees_no_answer_that_is_kept(db: Db) {
    let store = &db.store;
    let (owner, stranger) = (sample::project(store).await, sample::project(store).await);
    let (completions, responses) = (store.chat_completions(), store.responses());
    let stored = chat_completions::stored(&owner.id, 0, &[("k", "v")]);
    completions.insert(&stored, &[]).await.unwrap();
    let turn = responses::stored(&owner.id, 0);
    responses.insert(&turn).await.unwrap();
    let (me, completion, response) = (&stranger.id, &stored.completion.id, &turn.response.id);
    let page = PageRequest {
        after: None,
        limit: 100,
        order: Order::NewestFirst,
    };

    assert_eq!(completions.delete(me, completion).await, Ok(false));
    assert_eq!(completions.find(me, completion).await, Ok(None));
    assert_eq!(completions.messages(me, completion).await, Ok(None));
    let changed = completions.set_metadata(me, completion, None).await;
    assert_eq!(changed, Ok(None));
    let listed = completions.list(me, &Default::default(), &page).await;
    assert_eq!(listed.unwrap().items, []);
    assert_eq!(responses.delete(me, response).await, Ok(false));
    assert_eq!(responses.find(me, response).await, Ok(None));

    let found = completions.find(&owner.id, completion).await;
    assert_eq!(found, Ok(Some(stored.clone())));
    let found = responses.find(&owner.id, response).await;
    assert_eq!(found, Ok(Some(turn.clone())));
}

async fn a_foreign_project_sees_no_upload_and_no_dry_run(db: Db) {
    let store = &db.store;
    let (owner, stranger) = (sample::project(store).await, sample::project(store).await);
    let upload = sample::upload(&owner.id, at(0));
    let upload_request = sample::request("POST /uploads", "u");
    store
        .uploads()
        .insert(&upload, &upload_request)
        .await
        .unwrap();
    let part = sample::part(&upload, at(1));
    let limits = sample::up_to(100);
    let added = store.uploads().add_part(&owner.id, &part, limits).await;
    assert_eq!(added, Ok(AddedPart::Added));
    let file = sample::file(&owner.id, at(0));
    store.files().insert(&file, None).await.unwrap();
    let dry_run = DryRun {
        id: DryRunId::mint(sample::entropy()),
        project_id: owner.id.clone(),
        spec: sample::spec(&file.id),
        created_at: at(1),
        report: None,
    };
    assert_eq!(store.dry_runs().insert(&dry_run).await, Ok(true));
    let me = &stranger.id;
    assert_eq!(store.dry_runs().find(me, &dry_run.id).await, Ok(None));
    assert_eq!(store.uploads().find(me, &upload.id).await, Ok(None));
    assert_eq!(store.uploads().parts(me, &upload.id).await, Ok(Vec::new()));
    let more = sample::part(&upload, at(1));
    assert_eq!(
        store.uploads().add_part(me, &more, limits).await,
        Ok(AddedPart::NotPending)
    );
    let stolen = sample::file(me, at(2));
    let completed = store
        .uploads()
        .complete(me, &upload.id, &stolen, &upload_request)
        .await;
    assert_eq!(completed, Ok(false));
    assert_eq!(store.uploads().cancel(me, &upload.id).await, Ok(false));

    let me = &owner.id;
    assert_eq!(store.uploads().parts(me, &upload.id).await, Ok(vec![part]));
    assert_eq!(store.uploads().find(me, &upload.id).await, Ok(Some(upload)));
    let found = store.dry_runs().find(me, &dry_run.id).await;
    assert_eq!(found, Ok(Some(dry_run)));
}

async fn a_foreign_project_sees_no_limit(db: Db) {
    let store = &db.store;
    let (owner, stranger) = (sample::project(store).await, sample::project(store).await);
    let (rates, limited) = (store.rate_limits(), rate_limits::of_model("tiny"));
    rate_limits::set(store, &owner, &limited).await;
    let me = &stranger.id;
    assert_eq!(rates.list(me).await, Ok(Vec::new()));
    let drawn = rate_limits::draw_all(store, me, "tiny").await;
    assert_eq!(drawn.limit, rate_limits::DEFAULT);
    rate_limits::set(store, &stranger, &rate_limits::of_model("small")).await;

    let me = &owner.id;
    assert_eq!(
        rates.list(me).await.unwrap(),
        std::slice::from_ref(&limited)
    );
    let drawn = rate_limits::draw_all(store, me, "tiny").await;
    assert_eq!(drawn.given, limited.limit.per_minute());
}

async fn a_foreign_project_sees_no_webhook(db: Db) {
    let store = &db.store;
    let (owner, stranger) = (sample::project(store).await, sample::project(store).await);
    let endpoint = sample::endpoint(store, &owner, &[WebhookEventType::BatchFailed]).await;
    let me = &stranger.id;
    let page = PageRequest {
        after: None,
        limit: 100,
        order: Order::NewestFirst,
    };
    let (webhooks, id) = (store.webhooks(), &endpoint.id);
    assert_eq!(webhooks.find(me, id).await, Ok(None));
    assert_eq!(webhooks.list(me, &page).await.unwrap().items, []);
    let change = sample::change(&endpoint);
    assert_eq!(webhooks.update(me, id, &change).await, Ok(false));
    let new = sample::sealed();
    let rotated = webhooks.rotate_secret(me, id, &new, "h", None, at(2));
    assert_eq!(rotated.await, Ok(false));
    assert_eq!(webhooks.secrets(me, id, at(2)).await, Ok(Vec::new()));
    assert_eq!(webhooks.delete(me, id).await, Ok(false));

    let me = &owner.id;
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

async fn a_foreign_project_sees_no_alias(db: Db) {
    let (store, aliases) = (&db.store, db.store.model_aliases());
    let (owner, stranger) = (sample::project(store).await, sample::project(store).await);
    let alias = sample::alias(Some(&owner), "gpt-4o");
    aliases.insert(&alias).await.unwrap();
    let me = &stranger.id;
    assert_eq!(aliases.find(me, &alias.name).await, Ok(None));
    assert_eq!(aliases.list(me).await, Ok(Vec::new()));
    assert_eq!(aliases.delete(me, &alias.name).await, Ok(false));
    let found = aliases.find(&owner.id, &alias.name).await;
    assert_eq!(found, Ok(Some(alias)));
}

async fn a_foreign_project_sees_nothing_of_what_administrators_made(db: Db) {
    let store = &db.store;
    let (owner, stranger) = (sample::project(store).await, sample::project(store).await);
    let job = sample::succeeded_job(store, &owner, at(0)).await;
    let ours = Administered::make(store, &owner, &job.tuned_model_name()).await;
    ours.is_absent_for(store, &stranger).await;
    ours.is_there_for(store, &owner).await;
}

/// What administrators made in a project.
pub struct Administered {
    member: ProjectUser,
    account: ServiceAccount,
    model: String,
}

impl Administered {
    pub async fn make(store: &Store, project: &Project, model: &str) -> Self {
        let made = |kind| sample::entry(&project.organization_id, kind, "made");
        let member = ProjectUser {
            project_id: project.id.clone(),
            user: sample::user(store, project, OrganizationRole::Reader).await,
            role: ProjectRole::Member,
            added_at: at(0),
        };
        let entry = made(AuditKind::UserAdded);
        store.project_users().insert(&member, &entry).await.unwrap();
        let account = sample::service_account(&project.id);
        let entry = made(AuditKind::ServiceAccountCreated);
        let accounts = store.service_accounts();
        accounts.insert(&account, None, &entry).await.unwrap();
        Self {
            member,
            account,
            model: model.to_owned(),
        }
    }

    async fn is_absent_for(&self, store: &Store, stranger: &Project) {
        let (me, page) = (&stranger.id, sample::page());
        let (user, account) = (&self.member.user.id, &self.account.id);
        let entry = |kind| sample::entry(&stranger.organization_id, kind, "tried");
        let members = store.project_users();
        assert_eq!(members.list(me, &page).await.unwrap().items, []);
        assert_eq!(members.find(me, user).await, Ok(None));
        let updated = entry(AuditKind::UserUpdated);
        let set = members.set_role(me, user, ProjectRole::Owner, &updated);
        assert_eq!(set.await, Ok(false));
        let deleted = entry(AuditKind::UserDeleted);
        assert_eq!(members.delete(me, user, &deleted).await, Ok(false));
        let accounts = store.service_accounts();
        assert_eq!(accounts.list(me, &page).await.unwrap().items, []);
        assert_eq!(accounts.find(me, account).await, Ok(None));
        let (change, changed) = (
            ServiceAccountChange::default(),
            entry(AuditKind::ServiceAccountUpdated),
        );
        let modified = accounts.modify(me, account, change, &changed).await;
        assert_eq!(modified, Ok(None));
        let deleted = entry(AuditKind::ServiceAccountDeleted);
        assert_eq!(accounts.delete(me, account, &deleted).await, Ok(false));
        let permissions = store.checkpoint_permissions();
        let listed = permissions.list(&self.model, Some(me), &page).await;
        assert_eq!(listed.unwrap().items, []);
        // Of another organisation a project is as absent as one that never was.
        let elsewhere = sample::organization_id();
        let projects = store.projects();
        assert_eq!(projects.find_in(&elsewhere, me).await, Ok(None));
        let tried = sample::entry(&elsewhere, AuditKind::ProjectUpdated, "tried");
        // There is not even a log to write it into.
        let absent = Err(StoreError::NotFound);
        let renamed = ProjectChange {
            name: Some("x".into()),
            ..ProjectChange::default()
        };
        assert_eq!(projects.modify(me, &renamed, &tried).await, absent);
        let limited = projects.set_spend_limit(me, None, &tried).await;
        assert_eq!(limited, absent);
        assert_eq!(projects.archive(me, &tried).await, absent);
        let opened = projects.set_model_permissions(me, None, &tried).await;
        assert_eq!(opened, absent);
    }

    async fn is_there_for(&self, store: &Store, owner: &Project) {
        let me = &owner.id;
        let member = store.project_users().find(me, &self.member.user.id).await;
        assert_eq!(member, Ok(Some(self.member.clone())));
        let account = store.service_accounts().find(me, &self.account.id).await;
        assert_eq!(account, Ok(Some(self.account.clone())));
    }
}

#[test]
fn the_walk_leaves_out_no_function_that_takes_a_project() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = BTreeSet::new();
    let folders = ["jobs", "usage", "webhooks"].map(|folder| src.join(folder));
    for folder in std::iter::once(src.clone()).chain(folders) {
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
