//! `/v1/x/files/{file_id}/validate`, `/v1/x/dry_runs`.

use poem::web::Data;
use poem_openapi::OpenApi;
use poem_openapi::param::Path;
use poem_openapi::payload::Json;

use super::Tag;
use crate::app::dry_runs as app;
use crate::auth::Caller;
use crate::body::JsonBody;
use crate::error::ApiError;
use crate::state::Shared;
use crate::wire::dry_runs::{DryRunObject, FileOrder};

pub struct DryRunsApi;

#[OpenApi(prefix_path = "/v1/x", tag = "Tag::Extensions")]
impl DryRunsApi {
    /// Reads a training file as a job would, and tells what is in it.
    ///
    /// Every row is rendered and tokenized. The answer is `in_progress` where that takes longer than 50 seconds; the report is
    /// found under its id then, for a day.
    #[oai(
        path = "/files/:file_id/validate",
        method = "post",
        operation_id = "validateFile"
    )]
    async fn validate_file(
        &self,
        state: Data<&Shared>,
        caller: Caller,
        file_id: Path<String>,
        body: JsonBody<FileOrder>,
    ) -> Result<Json<DryRunObject>, ApiError> {
        let dry_run = app::of_file(&state, &caller.project, &file_id, body.value).await?;
        Ok(Json(dry_run))
    }

    /// Retrieves a dry run, which may have its report by now.
    #[oai(
        path = "/dry_runs/:dry_run_id",
        method = "get",
        operation_id = "retrieveDryRun"
    )]
    async fn retrieve(
        &self,
        state: Data<&Shared>,
        caller: Caller,
        dry_run_id: Path<String>,
    ) -> Result<Json<DryRunObject>, ApiError> {
        let dry_run = app::get(&state, &caller.project, &dry_run_id).await?;
        Ok(Json(dry_run))
    }
}
