//! Sample nouns. Ids are counted up, so that no two are the same and each failure reads the same twice.

use std::sync::atomic::{AtomicU64, Ordering};

use domain::api_key::{ApiKey, KeyOwner};
use domain::audit::{AuditEntry, AuditEvent, AuditKind};
use domain::batch::{Batch, BatchEndpoint, BatchSpec};
use domain::checkpoint::{Checkpoint, StateRef};
use domain::error::JobError;
use domain::event::NewEvent;
use domain::file::{File, Purpose};
use domain::hyperparameters::{Hyperparameters, ResolvedHyperparameters};
use domain::id::{
    AuditLogId, BatchId, CheckpointId, DispatchId, Entropy, FileId, JobId, KeyId, OrganizationId,
    PartId, ProjectId, ServiceAccountId, UploadId, UserId, WebhookEndpointId, WebhookSecretId,
    WorkerId,
};
use domain::job::{FineTuningJob, JobResult, JobSpec};
use domain::job_event::JobEvent;
use domain::method::Method;
use domain::metrics::StepMetrics;
use domain::model::{AdapterRef, TunedModel};
use domain::model_alias::ModelAlias;
use domain::page::{Order, PageRequest};
use domain::project::Project;
use domain::scope::Scopes;
use domain::service_account::{ServiceAccount, ServiceAccountRole};
use domain::speed::{DeviceKind, TrainingSpeed};
use domain::time::Timestamp;
use domain::upload::{LIFETIME_S, Upload, UploadPart, UploadState};
use domain::user::{OrganizationRole, User};
use domain::webhook::{WebhookEndpoint, WebhookEventType};
use domain::x_training::FrozenWeights;
use store::{IdempotencyEntry, InsertLimits, PartLimits, SealedSecret, Store, WebhookChange};

pub const BASE: &str = "tiny-base";

/// Seconds after an arbitrary beginning.
pub fn at(seconds: i64) -> Timestamp {
    Timestamp::from_unix_s(1_790_000_000 + seconds)
}

pub fn entropy() -> Entropy {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let mut n = COUNT.fetch_add(1, Ordering::Relaxed);
    let mut entropy = [0; 24];
    for byte in entropy.iter_mut().rev() {
        *byte = (n % 62) as u8;
        n /= 62;
    }
    entropy
}

/// All of a list, newest first.
pub fn page() -> PageRequest {
    PageRequest {
        after: None,
        limit: 100,
        order: Order::NewestFirst,
    }
}

/// A new project of the default organisation.
pub async fn project(store: &Store) -> Project {
    let first = store
        .projects()
        .ensure_default([entropy(), entropy()], at(0))
        .await
        .unwrap();
    let id = ProjectId::mint(entropy());
    let name = format!("project {id}");
    let project = Project { id, name, ..first };
    store.projects().insert(&project).await.unwrap();
    project
}

pub fn organization_id() -> OrganizationId {
    OrganizationId::mint(entropy())
}

/// An entry of the audit log that tells of this.
pub fn entry(organization: &OrganizationId, kind: AuditKind, resource: &str) -> AuditEntry {
    AuditEntry {
        id: AuditLogId::mint(entropy()),
        organization_id: organization.clone(),
        effective_at: at(300),
        actor: None,
        project: None,
        event: AuditEvent {
            kind,
            resource_id: resource.to_owned(),
            details: serde_json::json!({"data": {"b": 1, "a": [null, "ä\u{0}"]}}),
        },
    }
}

/// A member of the project, not stored.
pub fn service_account(project: &ProjectId) -> ServiceAccount {
    ServiceAccount {
        id: ServiceAccountId::mint(entropy()),
        project_id: project.clone(),
        name: "bot".into(),
        role: ServiceAccountRole::Member,
        created_at: at(0),
    }
}

/// A stored user of the project's organisation.
pub async fn user(store: &Store, project: &Project, role: OrganizationRole) -> User {
    let id = UserId::mint(entropy());
    let user = User {
        organization_id: project.organization_id.clone(),
        email: format!("{id}@example.com").to_lowercase(),
        name: "Ada".into(),
        role,
        added_at: at(0),
        id,
    };
    let added = entry(
        &user.organization_id,
        AuditKind::UserAdded,
        user.id.as_str(),
    );
    store.users().insert(&user, &added).await.unwrap();
    user
}

/// Stores a key as the command line does.
pub async fn insert_key(store: &Store, project: &Project, key: &ApiKey) {
    let made = entry(
        &project.organization_id,
        AuditKind::ApiKeyCreated,
        key.id.as_str(),
    );
    store.api_keys().insert(key, &made).await.unwrap();
}

pub fn api_key(project: &ProjectId) -> ApiKey {
    let id = KeyId::mint(entropy());
    ApiKey {
        project_id: project.clone(),
        name: "a key".into(),
        hmac: format!("hmac of {id}"),
        redacted: "sk-proj-…abcd".into(),
        scopes: Scopes::All,
        owner: KeyOwner::Installation,
        created_at: at(0),
        expires_at: None,
        last_used_at: None,
        revoked_at: None,
        id,
    }
}

pub fn file(project: &ProjectId, created_at: Timestamp) -> File {
    let id = FileId::mint(entropy());
    File {
        project_id: project.clone(),
        filename: "naïve ☃.jsonl".into(),
        purpose: Purpose::FineTune,
        size_bytes: 1_234,
        sha256: "ab".repeat(32),
        object_key: domain::object_key::file(project, &id),
        created_at,
        expires_at: None,
        id,
    }
}

/// A new batch on a new file.
pub async fn stored_batch(store: &Store, project: &Project, now: Timestamp) -> Batch {
    let batch = batch(store, project, now).await;
    store.batches().insert(&batch, None).await.unwrap();
    batch
}

/// Its input is stored.
pub async fn batch(store: &Store, project: &Project, now: Timestamp) -> Batch {
    let input = File {
        purpose: Purpose::Batch,
        ..file(&project.id, now)
    };
    store.files().insert(&input, None).await.unwrap();
    let spec = BatchSpec {
        endpoint: BatchEndpoint::ChatCompletions,
        input_file: input.id,
        metadata: Some(vec![("☃".into(), "b".into())]),
        output_expires_after_s: Some(3_600),
    };
    Batch::new(BatchId::mint(entropy()), project.id.clone(), spec, now)
}

/// Twelve bytes in parts, within an hour.
pub fn upload(project: &ProjectId, created_at: Timestamp) -> Upload {
    Upload {
        id: UploadId::mint(entropy()),
        project_id: project.clone(),
        filename: "naïve ☃.jsonl".into(),
        purpose: Purpose::FineTune,
        size_bytes: 12,
        file_lifetime_s: None,
        created_at,
        expires_at: created_at.plus_s(LIFETIME_S),
        state: UploadState::Pending,
    }
}

/// Four bytes.
pub fn part(upload: &Upload, created_at: Timestamp) -> UploadPart {
    let id = PartId::mint(entropy());
    UploadPart {
        upload_id: upload.id.clone(),
        size_bytes: 4,
        object_key: domain::object_key::upload_part(&upload.project_id, &upload.id, &id),
        created_at,
        id,
    }
}

/// So many bytes in the parts of an upload.
pub fn up_to(upload_bytes: u64) -> PartLimits {
    PartLimits {
        upload_bytes,
        stored_bytes: u64::MAX,
    }
}

/// A request that names itself by `key`.
pub fn request(endpoint: &str, key: &str) -> IdempotencyEntry {
    IdempotencyEntry {
        endpoint: endpoint.into(),
        key: Some(key.into()),
        api_key_id: KeyId::parse("key_1").unwrap(),
        fingerprint: "f".into(),
        began_at: at(0),
        repeats_since: None,
        expires_at: at(100_000),
    }
}

pub fn spec(training_file: &FileId) -> JobSpec {
    JobSpec {
        model: BASE.into(),
        training_file: training_file.clone(),
        validation_file: None,
        suffix: Some("tickets".into()),
        seed: 42,
        method: Method::Supervised {
            hyperparameters: Hyperparameters::default(),
        },
        metadata: None,
        x_training: None,
    }
}

pub fn new_job(project: &Project, spec: JobSpec, now: Timestamp) -> (FineTuningJob, Vec<NewEvent>) {
    FineTuningJob::create(
        JobId::mint(entropy()),
        project.id.clone(),
        project.organization_id.clone(),
        project.organization_slug.clone(),
        spec,
        domain::id::base62(&entropy()[16..]),
        now,
    )
}

/// A stored job with a training file of its own.
pub async fn job(store: &Store, project: &Project, now: Timestamp) -> FineTuningJob {
    job_on(store, project, BASE, now).await
}

pub async fn job_on(store: &Store, project: &Project, base: &str, now: Timestamp) -> FineTuningJob {
    let file = file(&project.id, now);
    store.files().insert(&file, None).await.unwrap();
    let spec = JobSpec {
        model: base.into(),
        ..spec(&file.id)
    };
    let (job, events) = new_job(project, spec, now);
    store
        .jobs()
        .insert(&job, events, &InsertLimits::default(), None)
        .await
        .unwrap();
    job
}

pub fn validated() -> JobEvent {
    JobEvent::Validated {
        hyperparameters: ResolvedHyperparameters {
            n_epochs: 3,
            batch_size: 4,
            learning_rate_multiplier: 1.0,
            learning_rate: 1.25e-3,
        },
        total_steps: 6,
        planned_tokens: 5_070,
        details: Vec::new(),
    }
}

pub async fn queued_job(store: &Store, project: &Project, now: Timestamp) -> FineTuningJob {
    let job = job(store, project, now).await;
    store.jobs().apply(&job.id, validated(), now).await.unwrap()
}

pub fn claimed(lease_until: Timestamp) -> JobEvent {
    JobEvent::Claimed {
        dispatch_id: None,
        worker_id: WorkerId::mint(entropy()),
        lease_until,
    }
}

/// A job that attempt 1 holds until 30 s after `now`.
pub async fn running_job(store: &Store, project: &Project, now: Timestamp) -> FineTuningJob {
    let job = queued_job(store, project, now).await;
    store
        .jobs()
        .apply(&job.id, claimed(now.plus_s(30)), now)
        .await
        .unwrap()
}

pub fn offered() -> JobEvent {
    JobEvent::Offered {
        dispatch_id: DispatchId::mint(entropy()),
    }
}

pub fn step(step: u64) -> StepMetrics {
    StepMetrics {
        step,
        train_loss: 1.0 / 3.0 + step as f64,
        train_mean_token_accuracy: 0.1 + 0.2,
        n_tokens: 100 + step,
        valid_loss: step.is_multiple_of(2).then_some(0.7),
        ..StepMetrics::default()
    }
}

pub fn adapter(job: &FineTuningJob, at_step: u64) -> AdapterRef {
    let prefix = domain::object_key::attempt(&job.project_id, &job.id, job.progress().attempt);
    AdapterRef {
        object_prefix: domain::object_key::checkpoint_adapter(&prefix, at_step),
        sha256: format!("{at_step:064x}"),
        size_bytes: 4_096,
        frozen_weights: FrozenWeights::Nf4DoubleQuant,
    }
}

pub fn checkpoint(job: &FineTuningJob, at_step: u64, epoch: Option<u32>) -> Checkpoint {
    let attempt = job.progress().attempt;
    let prefix = domain::object_key::attempt(&job.project_id, &job.id, attempt);
    Checkpoint {
        id: CheckpointId::mint(entropy()),
        job_id: job.id.clone(),
        attempt,
        step: at_step,
        epoch,
        state: StateRef {
            object_key: domain::object_key::checkpoint_state(&prefix, at_step),
            sha256: format!("{at_step:064x}"),
            size_bytes: 8_192,
        },
        adapter: adapter(job, at_step),
        name: format!("{}:ckpt-step-{at_step}", job.tuned_model_name()),
        metrics: step(at_step),
        created_at: at(100),
    }
}

pub fn saved(job: &FineTuningJob, at_step: u64, epoch: Option<u32>) -> JobEvent {
    JobEvent::CheckpointSaved {
        attempt: job.progress().attempt,
        checkpoint: checkpoint(job, at_step, epoch),
    }
}

pub fn beat(job: &FineTuningJob, lease_until: Timestamp, steps: &[u64]) -> JobEvent {
    JobEvent::Beat {
        attempt: job.progress().attempt,
        lease_until,
        metrics: steps.iter().map(|s| step(*s)).collect(),
        estimated_finish: None,
    }
}

pub fn tuned(job: &FineTuningJob, name: String, at_step: u64) -> TunedModel {
    TunedModel {
        name,
        project_id: job.project_id.clone(),
        job_id: Some(job.id.clone()),
        base_model: job.spec.model.clone(),
        adapter: adapter(job, at_step),
        owned_by: job.organization_slug.clone(),
        created_at: at(200),
    }
}

pub fn finished(job: &FineTuningJob) -> JobEvent {
    let result_file = File {
        purpose: Purpose::FineTuneResults,
        ..file(&job.project_id, at(200))
    };
    let name = job.tuned_model_name();
    JobEvent::Finished {
        attempt: job.progress().attempt,
        result: JobResult {
            fine_tuned_model: name.clone(),
            trained_tokens: 5_070,
            result_file: result_file.id.clone(),
        },
        earlier: vec![tuned(job, format!("{name}:ckpt-step-4"), 4)],
        model: tuned(job, name, 6),
        result_file,
        speed: Some(TrainingSpeed {
            device: DeviceKind::Cpu,
            tokens_per_s: 512.5,
        }),
    }
}

/// A job that went all the way.
pub async fn succeeded_job(store: &Store, project: &Project, now: Timestamp) -> FineTuningJob {
    let job = running_job(store, project, now).await;
    let mut job = job;
    for event in [
        beat(&job, now.plus_s(30), &[1, 2]),
        saved(&job, 2, Some(1)),
        beat(&job, now.plus_s(30), &[3, 4]),
        saved(&job, 4, Some(2)),
        beat(&job, now.plus_s(30), &[5, 6]),
        saved(&job, 6, Some(3)),
        JobEvent::Finalizing { attempt: 1 },
        finished(&job),
    ] {
        job = store.jobs().apply(&job.id, event, now).await.unwrap();
    }
    job
}

/// A stored endpoint that is told of these.
pub async fn endpoint(
    store: &Store,
    project: &Project,
    event_types: &[WebhookEventType],
) -> WebhookEndpoint {
    let endpoint = new_endpoint(project, event_types);
    let inserted = store.webhooks().insert(&endpoint, &sealed()).await;
    assert_eq!(inserted, Ok(true));
    endpoint
}

pub fn new_endpoint(project: &Project, event_types: &[WebhookEventType]) -> WebhookEndpoint {
    WebhookEndpoint {
        id: WebhookEndpointId::mint(entropy()),
        project_id: project.id.clone(),
        name: "naïve ☃".into(),
        url: "https://example.com/hook".into(),
        event_types: event_types.to_vec(),
        secret_hint: "whsec_…abcd".into(),
        created_at: at(0),
        updated_at: at(0),
        disabled_at: None,
    }
}

/// The operator's, or a project's.
pub fn alias(project: Option<&Project>, name: &str) -> ModelAlias {
    ModelAlias {
        name: name.into(),
        project_id: project.map(|project| project.id.clone()),
        model: BASE.into(),
        created_at: at(0),
    }
}

pub fn sealed() -> SealedSecret {
    let id = WebhookSecretId::mint(entropy());
    let sealed = format!("sealed for {id}");
    SealedSecret { id, sealed }
}

/// A change that changes nothing but the time.
pub fn change(endpoint: &WebhookEndpoint) -> WebhookChange {
    WebhookChange {
        name: endpoint.name.clone(),
        url: endpoint.url.clone(),
        event_types: endpoint.event_types.clone(),
        updated_at: at(9),
    }
}

pub fn error(code: &str) -> JobError {
    JobError {
        code: code.into(),
        message: format!("it failed: {code}"),
        param: None,
    }
}
