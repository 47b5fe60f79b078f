//! `/v1/fine_tuning/jobs`.

use domain::page::Order;
use poem::web::Data;
use poem_openapi::OpenApi;
use poem_openapi::param::{Path, Query};
use poem_openapi::payload::Json;

use super::Tag;
use super::reply::{Made, MetadataQuery, Ordered, RepeatHeaders};
use crate::app::dry_runs;
use crate::app::fine_tuning::{self as app, Action};
use crate::app::{page_request, queue};
use crate::auth::Caller;
use crate::body::JsonBody;
use crate::error::ApiError;
use crate::state::Shared;
use crate::wire::fine_tuning::JobOrder;
use crate::wire::fine_tuning_job::{CheckpointObject, EventObject, JobObject};
use crate::wire::list::List;

/// Largest page of jobs, events and checkpoints.
const MAX_LIMIT: u64 = 100;

pub struct FineTuningApi;

#[OpenApi(prefix_path = "/v1/fine_tuning/jobs", tag = "Tag::FineTuning")]
impl FineTuningApi {
    /// Creates a fine-tuning job.
    ///
    /// What is in the files is judged afterwards: a bad file makes the job `failed`. With `x_dry_run=true` it is judged now, no job
    /// is made, and the answer is what the job would do.
    #[oai(path = "/", method = "post", operation_id = "createFineTuningJob")]
    async fn create(
        &self,
        state: Data<&Shared>,
        caller: Caller,
        repeat: RepeatHeaders,
        x_dry_run: Query<Option<bool>>,
        body: JsonBody<JobOrder>,
    ) -> Result<Ordered, ApiError> {
        if x_dry_run.0 == Some(true) {
            let dry_run = dry_runs::order(&state, &caller.project, body.value).await?;
            return Ok(Ordered::DryRun(Box::new(dry_run)));
        }
        let created = app::create(&state, &caller, body.value, &body.raw, &repeat.0).await?;
        let job = queue::shown(&state, created.object).await;
        let made = Made::new(job, created.is_replay);
        Ok(Ordered::Job(Box::new(made)))
    }

    /// Lists the project's jobs, newest first.
    ///
    /// `limit` is 1–100, default 20.
    #[oai(
        path = "/",
        method = "get",
        operation_id = "listPaginatedFineTuningJobs"
    )]
    async fn list(
        &self,
        state: Data<&Shared>,
        caller: Caller,
        after: Query<Option<String>>,
        limit: Query<Option<i64>>,
        metadata: MetadataQuery,
    ) -> Result<Json<List<JobObject>>, ApiError> {
        let page = page_request(after.0, limit.0, 20, MAX_LIMIT, Order::NewestFirst)?;
        let jobs = app::list(&state, &caller.project, &metadata.0, &page).await?;
        Ok(Json(List::page(queue::shown_page(&state, jobs).await)))
    }

    /// Retrieves a job.
    #[oai(
        path = "/:fine_tuning_job_id",
        method = "get",
        operation_id = "retrieveFineTuningJob"
    )]
    async fn retrieve(
        &self,
        state: Data<&Shared>,
        caller: Caller,
        fine_tuning_job_id: Path<String>,
    ) -> Result<Json<JobObject>, ApiError> {
        let job = app::get(&state, &caller.project, &fine_tuning_job_id).await?;
        Ok(Json(queue::shown(&state, job).await))
    }

    /// Cancels a job that has not ended.
    #[oai(
        path = "/:fine_tuning_job_id/cancel",
        method = "post",
        operation_id = "cancelFineTuningJob"
    )]
    async fn cancel(
        &self,
        state: Data<&Shared>,
        caller: Caller,
        fine_tuning_job_id: Path<String>,
    ) -> Result<Json<JobObject>, ApiError> {
        let job = app::act(&state, &caller.project, &fine_tuning_job_id, Action::Cancel).await?;
        Ok(Json(queue::shown(&state, job).await))
    }

    /// Pauses a queued or running job; a running one saves its state first.
    #[oai(
        path = "/:fine_tuning_job_id/pause",
        method = "post",
        operation_id = "pauseFineTuningJob"
    )]
    async fn pause(
        &self,
        state: Data<&Shared>,
        caller: Caller,
        fine_tuning_job_id: Path<String>,
    ) -> Result<Json<JobObject>, ApiError> {
        let job = app::act(&state, &caller.project, &fine_tuning_job_id, Action::Pause).await?;
        Ok(Json(queue::shown(&state, job).await))
    }

    /// Lets a paused job go on.
    #[oai(
        path = "/:fine_tuning_job_id/resume",
        method = "post",
        operation_id = "resumeFineTuningJob"
    )]
    async fn resume(
        &self,
        state: Data<&Shared>,
        caller: Caller,
        fine_tuning_job_id: Path<String>,
    ) -> Result<Json<JobObject>, ApiError> {
        let job = app::act(&state, &caller.project, &fine_tuning_job_id, Action::Resume).await?;
        Ok(Json(queue::shown(&state, job).await))
    }

    /// Lists the job's events, newest first.
    ///
    /// `limit` is 1–100, default 20.
    #[oai(
        path = "/:fine_tuning_job_id/events",
        method = "get",
        operation_id = "listFineTuningEvents"
    )]
    async fn events(
        &self,
        state: Data<&Shared>,
        caller: Caller,
        fine_tuning_job_id: Path<String>,
        after: Query<Option<String>>,
        limit: Query<Option<i64>>,
    ) -> Result<Json<List<EventObject>>, ApiError> {
        let page = page_request(after.0, limit.0, 20, MAX_LIMIT, Order::NewestFirst)?;
        let events = app::events(&state, &caller.project, &fine_tuning_job_id, &page).await?;
        Ok(Json(List::page(events)))
    }

    /// Lists the checkpoints of the last three epochs, newest first.
    ///
    /// `limit` is 1–100, default 10.
    #[oai(
        path = "/:fine_tuning_job_id/checkpoints",
        method = "get",
        operation_id = "listFineTuningJobCheckpoints"
    )]
    async fn checkpoints(
        &self,
        state: Data<&Shared>,
        caller: Caller,
        fine_tuning_job_id: Path<String>,
        after: Query<Option<String>>,
        limit: Query<Option<i64>>,
    ) -> Result<Json<List<CheckpointObject>>, ApiError> {
        let page = page_request(after.0, limit.0, 10, MAX_LIMIT, Order::NewestFirst)?;
        let found = app::checkpoints(&state, &caller.project, &fine_tuning_job_id, &page).await?;
        Ok(Json(List::page(found)))
    }
}
