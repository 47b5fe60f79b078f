//! `/v1/fine_tuning/checkpoints/{model}/permissions`.

use domain::page::{Order, Page};
use poem::web::Data;
use poem_openapi::OpenApi;
use poem_openapi::param::{Path, Query};
use poem_openapi::payload::Json;

use super::Tag;
use crate::app::{checkpoint_permissions as app, page_request};
use crate::auth::Admin;
use crate::body::JsonBody;
use crate::error::ApiError;
use crate::state::Shared;
use crate::wire::checkpoint_permissions::{
    CheckpointPermissionObject, CheckpointPermissionRequest,
};
use crate::wire::decode::At;
use crate::wire::list::{Deleted, List};

pub struct CheckpointPermissionsApi;

#[OpenApi(prefix_path = "/v1/fine_tuning/checkpoints", tag = "Tag::FineTuning")]
impl CheckpointPermissionsApi {
    /// Lists which projects may use a tuned model of another project, newest first.
    ///
    /// `limit` is 1–100, default 10; `order` is `ascending` or `descending`, the default.
    #[oai(
        path = "/:fine_tuned_model_checkpoint/permissions",
        method = "get",
        operation_id = "listFineTuningCheckpointPermissions"
    )]
    #[allow(clippy::too_many_arguments)] // Each is a parameter of the request.
    async fn list(
        &self,
        state: Data<&Shared>,
        admin: Admin,
        fine_tuned_model_checkpoint: Path<String>,
        project_id: Query<Option<String>>,
        after: Query<Option<String>>,
        limit: Query<Option<i64>>,
        #[oai(name = "order")] sort: Query<Option<String>>,
    ) -> Result<Json<List<CheckpointPermissionObject>>, ApiError> {
        let page = page_request(after.0, limit.0, 10, 100, order(sort.0)?)?;
        let (model, project) = (&fine_tuned_model_checkpoint, project_id.as_deref());
        let listed = app::list(&state, &admin, model, project, &page).await?;
        Ok(Json(List::page(listed)))
    }

    /// Lets projects use a tuned model of another project.
    #[oai(
        path = "/:fine_tuned_model_checkpoint/permissions",
        method = "post",
        operation_id = "createFineTuningCheckpointPermission"
    )]
    async fn create(
        &self,
        state: Data<&Shared>,
        admin: Admin,
        fine_tuned_model_checkpoint: Path<String>,
        body: JsonBody<CheckpointPermissionRequest>,
    ) -> Result<Json<List<CheckpointPermissionObject>>, ApiError> {
        let (model, ids) = (&fine_tuned_model_checkpoint, body.value.project_ids);
        let granted = app::grant(&state, &admin, model, ids).await?;
        Ok(Json(List::page(Page {
            items: granted,
            has_more: false,
        })))
    }

    /// Takes a permission back: the project has no such model any more.
    #[oai(
        path = "/:fine_tuned_model_checkpoint/permissions/:permission_id",
        method = "delete",
        operation_id = "deleteFineTuningCheckpointPermission"
    )]
    async fn delete(
        &self,
        state: Data<&Shared>,
        admin: Admin,
        fine_tuned_model_checkpoint: Path<String>,
        permission_id: Path<String>,
    ) -> Result<Json<Deleted>, ApiError> {
        let model = &fine_tuned_model_checkpoint;
        app::revoke(&state, &admin, model, &permission_id).await?;
        Ok(Json(Deleted {
            id: permission_id.0,
            object: "checkpoint.permission",
            deleted: true,
        }))
    }
}

fn order(text: Option<String>) -> Result<Order, ApiError> {
    let Some(text) = text else {
        return Ok(Order::NewestFirst);
    };
    let at = At::new("order", text.into());
    Ok(match at.one_of(&["ascending", "descending"])? {
        "ascending" => Order::OldestFirst,
        _ => Order::NewestFirst,
    })
}
