//! `/v1/organization/projects/{project_id}/spend_limit`.

use poem::web::Data;
use poem_openapi::OpenApi;
use poem_openapi::param::Path;
use poem_openapi::payload::Json;

use super::Tag;
use crate::app::spend_limits as app;
use crate::auth::Admin;
use crate::body::JsonBody;
use crate::error::ApiError;
use crate::state::Shared;
use crate::wire::spend_limits::{SpendLimitDeleted, SpendLimitObject, SpendLimitOrder};

pub struct ProjectSpendLimitsApi;

#[OpenApi(prefix_path = "/v1/organization/projects", tag = "Tag::Administration")]
impl ProjectSpendLimitsApi {
    /// Retrieves what the project may spend in a calendar month (UTC), and whether that is spent. 404 without a limit.
    #[oai(
        path = "/:project_id/spend_limit",
        method = "get",
        operation_id = "retrieve-project-spend-limit"
    )]
    async fn retrieve(
        &self,
        state: Data<&Shared>,
        admin: Admin,
        project_id: Path<String>,
    ) -> Result<Json<SpendLimitObject>, ApiError> {
        Ok(Json(app::get(&state, &admin, &project_id).await?))
    }

    /// Sets what the project may spend in a calendar month (UTC).
    ///
    /// It counts what `/v1/organization/costs` does, and what unfinished jobs will cost. Where it is reached, jobs, batches and whatever
    /// is answered by a model are refused with 429 `insufficient_quota`; what runs goes on. It holds at once in this process, in others
    /// within 15 seconds.
    #[oai(
        path = "/:project_id/spend_limit",
        method = "post",
        operation_id = "update-project-spend-limit"
    )]
    async fn update(
        &self,
        state: Data<&Shared>,
        admin: Admin,
        project_id: Path<String>,
        body: JsonBody<SpendLimitOrder>,
    ) -> Result<Json<SpendLimitObject>, ApiError> {
        Ok(Json(
            app::set(&state, &admin, &project_id, body.value).await?,
        ))
    }

    /// Lets the project spend as much as it likes.
    #[oai(
        path = "/:project_id/spend_limit",
        method = "delete",
        operation_id = "delete-project-spend-limit"
    )]
    async fn delete(
        &self,
        state: Data<&Shared>,
        admin: Admin,
        project_id: Path<String>,
    ) -> Result<Json<SpendLimitDeleted>, ApiError> {
        app::delete(&state, &admin, &project_id).await?;
        Ok(Json(SpendLimitDeleted {
            object: "project.spend_limit.deleted",
            deleted: true,
        }))
    }
}
