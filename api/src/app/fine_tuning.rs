//! Fine-tuning jobs: made here, followed and steered from here; everything between belongs to the scheduler.

use domain::checkpoint::Checkpoint;
use domain::event::Event;
use domain::file::Purpose;
use domain::id::{FileId, JobId, base62};
use domain::job::{FineTuningJob, JobSpec};
use domain::job_event::{JobEvent, Reject};
use domain::page::{Page, PageRequest};
use domain::project::Project;
use serde_json::Value;
use store::{ApplyError, InsertLimits, MetadataFilter, StoreError};

use super::repeat::{Created, Repeat, Request, fingerprint};
use super::store_error;
use super::x_training::{Ground, settle};
use crate::auth::Caller;
use crate::error::{ApiError, Kind};
use crate::state::State;
use crate::wire::decode::echo;
use crate::wire::fine_tuning::{JobOrder, file_id, unknown_file};

const CREATE: &str = "POST /fine_tuning/jobs";
/// Characters of the last part of a tuned model's name.
pub(super) const NONCE_CHARS: usize = 8;

/// Makes a job, or finds the one that the same request made before. Only what needs no look into the files is
/// judged here. Errors: 400; 429 where the project has as many jobs as it may, or has spent what it may.
pub async fn create(
    state: &State,
    caller: &Caller,
    order: JobOrder,
    raw: &Value,
    repeat: &Repeat,
) -> Result<Created<FineTuningJob>, ApiError> {
    let request = Request {
        caller,
        endpoint: CREATE,
        repeat,
        fingerprint: fingerprint(raw),
    };
    if let Some(id) = request.made_earlier(state).await? {
        return replayed(state, caller, &id).await;
    }
    state.spendings.check(state, &caller.project).await?;
    let spec = checked(state, &caller.project, order).await?;
    let now = state.now();
    let (job, events) = FineTuningJob::create(
        JobId::mint(state.entropy()),
        caller.project.id.clone(),
        caller.project.organization_id.clone(),
        caller.project.organization_slug.clone(),
        spec,
        base62(&state.entropy()[..NONCE_CHARS]),
        now,
    );
    let entry = request.entry(now);
    let own_cap = caller.project.caps.unfinished_jobs;
    let limits = InsertLimits {
        max_active: Some(own_cap.unwrap_or(state.max_unfinished_jobs)),
    };
    let inserted = state
        .store
        .jobs()
        .insert(&job, events, &limits, Some(&entry))
        .await;
    match inserted {
        Ok(()) => Ok(Created::new(job)),
        // The same request came twice at once, and the other was faster.
        Err(StoreError::Repeated { object_id }) => replayed(state, caller, &object_id).await,
        // A file was deleted since it was looked at.
        Err(StoreError::NotFound) => Err(unknown_file(
            "training_file",
            job.spec.training_file.as_str(),
        )),
        Err(error) => Err(store_error(error)),
    }
}

async fn replayed(
    state: &State,
    caller: &Caller,
    id: &str,
) -> Result<Created<FineTuningJob>, ApiError> {
    get(state, &caller.project, id).await.map(Created::replay)
}

/// What the job would be, as far as that needs no look into the files. Errors: 400.
pub(super) async fn checked(
    state: &State,
    project: &Project,
    order: JobOrder,
) -> Result<JobSpec, ApiError> {
    let Ground { base, x_training } = settle(
        state,
        project,
        &order.model,
        order.x_training,
        &order.method,
    )
    .await?;
    let training_file = check_file(state, project, "training_file", &order.training_file).await?;
    let validation_file = match &order.validation_file {
        Some(text) => Some(check_file(state, project, "validation_file", text).await?),
        None => None,
    };
    let drawn = u32::from_le_bytes(state.entropy()[..4].try_into().expect("four of 24 bytes")) >> 1;
    Ok(JobSpec {
        model: base.name,
        training_file,
        validation_file,
        suffix: order.suffix,
        seed: order.seed.unwrap_or(drawn),
        method: order.method,
        metadata: order.metadata,
        x_training: Some(x_training),
    })
}

async fn check_file(
    state: &State,
    project: &Project,
    param: &'static str,
    text: &str,
) -> Result<FileId, ApiError> {
    let id = file_id(param, text)?;
    let file = super::files::find(state, project, &id).await?;
    let file = file.ok_or_else(|| unknown_file(param, text))?;
    if file.purpose != Purpose::FineTune {
        let message = format!(
            "Invalid {param}: the file {id} has the purpose '{}', but '{}' is needed.",
            file.purpose.as_str(),
            Purpose::FineTune.as_str()
        );
        return Err(ApiError::invalid(param, "invalid_value", message));
    }
    Ok(id)
}

/// Errors: 404 for an unknown `after`.
pub async fn list(
    state: &State,
    project: &Project,
    filter: &MetadataFilter,
    page: &PageRequest,
) -> Result<Page<FineTuningJob>, ApiError> {
    let listed = state.store.jobs().list(&project.id, filter, page).await;
    listed.map_err(store_error)
}

/// Errors: 404 `fine_tune_not_found`.
pub async fn get(state: &State, project: &Project, id: &str) -> Result<FineTuningJob, ApiError> {
    let found = state.store.jobs().find(&project.id, &job_id(id)?).await;
    found.map_err(store_error)?.ok_or_else(|| unknown(id))
}

/// What a client may do to its job.
#[derive(Debug, Clone, Copy)]
pub enum Action {
    Cancel,
    Pause,
    Resume,
}

/// Errors: 404; 400 where the job's state does not allow it (a 409 would be sent again and again by the SDKs).
pub async fn act(
    state: &State,
    project: &Project,
    id: &str,
    action: Action,
) -> Result<FineTuningJob, ApiError> {
    let (event, done) = match action {
        Action::Cancel => (JobEvent::CancelRequested, "cancelled"),
        Action::Pause => (JobEvent::PauseRequested, "paused"),
        Action::Resume => (JobEvent::ResumeRequested, "resumed"),
    };
    let jobs = state.store.jobs();
    let applied = jobs
        .apply_in_project(&project.id, &job_id(id)?, event, state.now())
        .await;
    applied.map_err(|error| match error {
        ApplyError::NotFound => unknown(id),
        ApplyError::Rejected(Reject::WrongState(at)) => {
            let message = format!(
                "The fine-tuning job {id} cannot be {done}: its status is '{}'.",
                at.as_str()
            );
            ApiError::new(Kind::BadRequest, message).code("invalid_job_state")
        }
        ApplyError::Rejected(other) => {
            ApiError::internal(format!("{other} — a bug in the job's state machine"))
        }
        ApplyError::Store(error) => store_error(error),
    })
}

/// Newest first. Errors: 404 for the job, and for an unknown `after`.
pub async fn events(
    state: &State,
    project: &Project,
    id: &str,
    page: &PageRequest,
) -> Result<Page<Event>, ApiError> {
    let listed = state
        .store
        .events()
        .list(&project.id, &job_id(id)?, page)
        .await;
    listed.map_err(|error| of_job(error, id))
}

/// Newest first. Errors: 404 for the job, and for an unknown `after`.
pub async fn checkpoints(
    state: &State,
    project: &Project,
    id: &str,
    page: &PageRequest,
) -> Result<Page<Checkpoint>, ApiError> {
    let listed = state
        .store
        .checkpoints()
        .list_visible(&project.id, &job_id(id)?, page)
        .await;
    listed.map_err(|error| of_job(error, id))
}

fn of_job(error: StoreError, id: &str) -> ApiError {
    match error {
        StoreError::NotFound => unknown(id),
        other => store_error(other),
    }
}

fn job_id(id: &str) -> Result<JobId, ApiError> {
    JobId::parse(id).map_err(|_| unknown(id))
}

fn unknown(id: &str) -> ApiError {
    ApiError::not_found(format!("Could not find fine tune: {}", echo(id)))
        .param("fine_tune_id")
        .code("fine_tune_not_found")
}
