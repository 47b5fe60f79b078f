//! `/v1/organization/projects/{project_id}/api_keys`.

use domain::page::Order;
use poem::web::Data;
use poem_openapi::OpenApi;
use poem_openapi::param::{Path, Query};
use poem_openapi::payload::Json;
use store::AccessFilter;

use super::{Tag, administrators_page};
use crate::app::api_keys as app;
use crate::auth::Admin;
use crate::error::ApiError;
use crate::state::Shared;
use crate::wire::api_keys::ApiKeyObject;
use crate::wire::decode::At;
use crate::wire::list::{Deleted, List};

pub struct ApiKeysApi;

#[OpenApi(prefix_path = "/v1/organization/projects", tag = "Tag::Administration")]
impl ApiKeysApi {
    /// Lists a project's keys, newest first.
    ///
    /// `limit` is 1–100, default 20; `owner_project_access` is `active`, `inactive` or `any`, the default.
    #[oai(
        path = "/:project_id/api_keys",
        method = "get",
        operation_id = "list-project-api-keys"
    )]
    async fn list(
        &self,
        state: Data<&Shared>,
        admin: Admin,
        project_id: Path<String>,
        after: Query<Option<String>>,
        limit: Query<Option<i64>>,
        owner_project_access: Query<Option<String>>,
    ) -> Result<Json<List<ApiKeyObject>>, ApiError> {
        let page = administrators_page(after.0, limit.0, Order::NewestFirst)?;
        let access = access_filter(owner_project_access.0)?;
        let listed = app::list(&state, &admin, &project_id, access, &page).await?;
        Ok(Json(List::page(listed)))
    }

    /// Retrieves a key.
    #[oai(
        path = "/:project_id/api_keys/:api_key_id",
        method = "get",
        operation_id = "retrieve-project-api-key"
    )]
    async fn retrieve(
        &self,
        state: Data<&Shared>,
        admin: Admin,
        project_id: Path<String>,
        api_key_id: Path<String>,
    ) -> Result<Json<ApiKeyObject>, ApiError> {
        let key = app::get(&state, &admin, &project_id, &api_key_id).await?;
        Ok(Json(key.into()))
    }

    /// Deletes a key: it opens nothing any more. A service account's keys go with the account.
    #[oai(
        path = "/:project_id/api_keys/:api_key_id",
        method = "delete",
        operation_id = "delete-project-api-key"
    )]
    async fn delete(
        &self,
        state: Data<&Shared>,
        admin: Admin,
        project_id: Path<String>,
        api_key_id: Path<String>,
    ) -> Result<Json<Deleted>, ApiError> {
        app::delete(&state, &admin, &project_id, &api_key_id).await?;
        Ok(Json(Deleted {
            id: api_key_id.0,
            object: "organization.project.api_key.deleted",
            deleted: true,
        }))
    }
}

fn access_filter(text: Option<String>) -> Result<AccessFilter, ApiError> {
    let Some(text) = text else {
        return Ok(AccessFilter::Any);
    };
    let at = At::new("owner_project_access", text.into());
    Ok(match at.one_of(&["active", "inactive", "any"])? {
        "active" => AccessFilter::Active,
        "inactive" => AccessFilter::Inactive,
        _ => AccessFilter::Any,
    })
}
