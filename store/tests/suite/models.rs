//! Tuned models, those of jobs and those around an adapter that a client brought.

use domain::id::{FileId, ProjectId};
use domain::job::FineTuningJob;
use domain::model::{AdapterRef, TunedModel};
use domain::project::{Caps, Project};
use domain::x_training::FrozenWeights;
use migrations::Migrator;
use sea_orm::ConnectionTrait;
use sea_orm_migration::MigratorTrait;
use store::{Store, StoreConfig, StoreError};

use crate::harness::{self, Db, on_both};
use crate::sample::{self, at};

on_both!(
    a_brought_adapter_is_a_model_like_others,
    a_request_brings_one_adapter_however_often_it_is_sent,
    an_adapter_s_folder_is_known_even_of_a_deleted_model,
);

pub fn brought(project: &domain::project::Project, nonce: &str) -> TunedModel {
    TunedModel {
        name: format!("ft:tiny:luthier:mine:{nonce}"),
        project_id: project.id.clone(),
        job_id: None,
        base_model: "tiny".into(),
        adapter: AdapterRef {
            object_prefix: format!("projects/{}/adapters/adapter-{nonce}", project.id),
            sha256: "ab".repeat(32),
            size_bytes: 77,
            frozen_weights: FrozenWeights::Int8,
        },
        owned_by: project.organization_slug.clone(),
        created_at: at(300),
    }
}

async fn a_brought_adapter_is_a_model_like_others(db: Db) {
    let project = sample::project(&db.store).await;
    let job = sample::succeeded_job(&db.store, &project, at(0)).await;
    let (models, model) = (db.store.models(), brought(&project, "a"));
    models.insert(&model, None).await.unwrap();
    assert_eq!(
        models.find(&project.id, &model.name).await.unwrap(),
        Some(model.clone())
    );
    let listed = models.list(&project.id).await.unwrap();
    assert_eq!(listed.last(), Some(&model), "oldest first");
    assert!(
        listed
            .iter()
            .any(|other| other.job_id == Some(job.id.clone()))
    );
    assert!(
        models
            .delete(&project.id, &model.name, at(301))
            .await
            .unwrap()
    );
    assert_eq!(models.find(&project.id, &model.name).await.unwrap(), None);
    let again = models.insert(&model, None).await;
    assert!(matches!(again, Err(StoreError::Conflict(_))), "{again:?}");
}

async fn a_request_brings_one_adapter_however_often_it_is_sent(db: Db) {
    let project = sample::project(&db.store).await;
    let request = sample::request("POST /x/adapters", "k");
    let (models, first) = (db.store.models(), brought(&project, "a"));
    models.insert(&first, Some(&request)).await.unwrap();
    let second = models.insert(&brought(&project, "b"), Some(&request)).await;
    let repeated = StoreError::Repeated {
        object_id: first.name.clone(),
    };
    assert_eq!(second, Err(repeated));
    assert_eq!(
        models.list(&project.id).await.unwrap(),
        std::slice::from_ref(&first)
    );
    let (idempotency, now) = (db.store.idempotency(), at(301));
    let found = idempotency.find(&project.id, &request.endpoint, "k", now);
    assert_eq!(found.await.unwrap().unwrap().object_id, first.name);
}

async fn an_adapter_s_folder_is_known_even_of_a_deleted_model(db: Db) {
    let project = sample::project(&db.store).await;
    let (models, model) = (db.store.models(), brought(&project, "a"));
    let folder = model.adapter.object_prefix.clone();
    assert!(!models.names_adapter(&folder).await.unwrap());
    models.insert(&model, None).await.unwrap();
    models
        .delete(&project.id, &model.name, at(301))
        .await
        .unwrap();
    assert!(models.names_adapter(&folder).await.unwrap());
}

/// A model, its job and its project, as the first schema has them: this program's own inserts may need a later one.
fn first_inserts(project: &Project, job: &FineTuningJob, model: &TunedModel) -> String {
    let (organization, slug) = (&project.organization_id, &project.organization_slug);
    let (project, name, adapter) = (&project.id, &project.name, &model.adapter);
    format!(
        "INSERT INTO organizations (id, name, slug, created_at) VALUES ('{organization}', 'o', '{slug}', 0); \
         INSERT INTO projects (id, organization_id, name, created_at) VALUES ('{project}', '{organization}', '{name}', 0); \
         INSERT INTO jobs (id, project_id, organization_id, organization_slug, model, training_file, model_nonce, spec, \
         created_at, state, version, attempt, state_since, n_events, progress) VALUES \
         ('{}', '{project}', '{organization}', '{slug}', 'm', 'f', 'n', '', 0, '', 0, 0, 0, 0, ''); \
         INSERT INTO models (name, project_id, job_id, base_model, adapter_object_prefix, adapter_sha256, \
         adapter_size_bytes, owned_by, created_at) VALUES ('{}', '{project}', '{}', '{}', '{}', '{}', {}, '{}', {})",
        job.id,
        model.name,
        job.id,
        model.base_model,
        adapter.object_prefix,
        adapter.sha256,
        adapter.size_bytes,
        model.owned_by,
        model.created_at.0
    )
}

/// Rows of the schema before models could lack a job live on in the one after it.
async fn models_outlive_the_migration(url: String) {
    let store = Store::connect(&StoreConfig::new(&url)).await.unwrap();
    let before = sea_orm::Database::connect(&url).await.unwrap();
    Migrator::up(&before, Some(1)).await.unwrap();
    let project = Project {
        id: ProjectId::mint(sample::entropy()),
        organization_id: sample::organization_id(),
        organization_slug: "acme".into(),
        name: "search".into(),
        created_at: at(0),
        archived_at: None,
        model_permissions: None,
        caps: Caps::default(),
    };
    let file = FileId::mint(sample::entropy());
    let (job, _events) = sample::new_job(&project, sample::spec(&file), at(0));
    let mut model = sample::tuned(&job, job.tuned_model_name(), 6);
    model.adapter.frozen_weights = FrozenWeights::Stored;
    let rows = first_inserts(&project, &job, &model);
    before.execute_unprepared(&rows).await.unwrap();
    let refused = store.models().insert(&brought(&project, "a"), None).await;
    assert!(refused.is_err(), "the schema before knows no such model");
    store.migrate().await.unwrap();
    assert_eq!(store.models().list(&project.id).await.unwrap(), [model]);
    let inserted = store.models().insert(&brought(&project, "a"), None).await;
    inserted.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn models_outlive_the_migration_on_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    models_outlive_the_migration(format!("sqlite://{}/test.db", folder.path().display())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn models_outlive_the_migration_on_postgresql() {
    harness::on_empty_postgres(models_outlive_the_migration).await;
}
