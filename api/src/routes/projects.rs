//! `/v1/organization/projects`, and which models a project may name.

use domain::page::Order;
use poem::web::Data;
use poem_openapi::OpenApi;
use poem_openapi::param::{Path, Query};
use poem_openapi::payload::Json;
use store::WhichProjects;

use super::{Tag, administrators_page};
use crate::app::{model_permissions, projects as app};
use crate::auth::Admin;
use crate::body::JsonBody;
use crate::error::ApiError;
use crate::state::Shared;
use crate::wire::list::List;
use crate::wire::model_permissions::{
    ModelPermissionsDeleted, ModelPermissionsObject, ModelPermissionsOrder,
};
use crate::wire::projects::{ProjectObject, ProjectRequest, ProjectUpdate};

pub struct ProjectsApi;

#[OpenApi(prefix_path = "/v1/organization/projects", tag = "Tag::Administration")]
impl ProjectsApi {
    /// Lists the organization's projects, newest first; archived ones with `include_archived=true`.
    ///
    /// `limit` is 1–100, default 20.
    #[oai(path = "/", method = "get", operation_id = "list-projects")]
    async fn list(
        &self,
        state: Data<&Shared>,
        admin: Admin,
        after: Query<Option<String>>,
        limit: Query<Option<i64>>,
        include_archived: Query<Option<bool>>,
    ) -> Result<Json<List<ProjectObject>>, ApiError> {
        let page = administrators_page(after.0, limit.0, Order::NewestFirst)?;
        let which = match include_archived.0 {
            Some(true) => WhichProjects::All,
            _ => WhichProjects::Live,
        };
        let listed = app::list(&state, &admin, which, &page).await?;
        Ok(Json(List::page(listed)))
    }

    /// Makes a project.
    #[oai(path = "/", method = "post", operation_id = "create-project")]
    async fn create(
        &self,
        state: Data<&Shared>,
        admin: Admin,
        body: JsonBody<ProjectRequest>,
    ) -> Result<Json<ProjectObject>, ApiError> {
        let project = app::create(&state, &admin, body.value.name).await?;
        Ok(Json(project.into()))
    }

    /// Retrieves a project.
    #[oai(
        path = "/:project_id",
        method = "get",
        operation_id = "retrieve-project"
    )]
    async fn retrieve(
        &self,
        state: Data<&Shared>,
        admin: Admin,
        project_id: Path<String>,
    ) -> Result<Json<ProjectObject>, ApiError> {
        let project = app::get(&state, &admin, &project_id).await?;
        Ok(Json(project.into()))
    }

    /// Renames a project, and changes how much it may store and train at the same time.
    ///
    /// Caps hold at once in this process, in others within 15 seconds. What is there already stays.
    #[oai(
        path = "/:project_id",
        method = "post",
        operation_id = "modify-project"
    )]
    async fn modify(
        &self,
        state: Data<&Shared>,
        admin: Admin,
        project_id: Path<String>,
        body: JsonBody<ProjectUpdate>,
    ) -> Result<Json<ProjectObject>, ApiError> {
        let ProjectUpdate(wanted) = body.value;
        let project = app::modify(&state, &admin, &project_id, wanted).await?;
        Ok(Json(project.into()))
    }

    /// Archives a project for good: its keys open nothing any more.
    #[oai(
        path = "/:project_id/archive",
        method = "post",
        operation_id = "archive-project"
    )]
    async fn archive(
        &self,
        state: Data<&Shared>,
        admin: Admin,
        project_id: Path<String>,
    ) -> Result<Json<ProjectObject>, ApiError> {
        let project = app::archive(&state, &admin, &project_id).await?;
        Ok(Json(project.into()))
    }

    /// Retrieves which models a project may name; without a policy, a list that denies none.
    #[oai(
        path = "/:project_id/model_permissions",
        method = "get",
        operation_id = "retrieve-project-model-permissions"
    )]
    async fn model_permissions(
        &self,
        state: Data<&Shared>,
        admin: Admin,
        project_id: Path<String>,
    ) -> Result<Json<ModelPermissionsObject>, ApiError> {
        let permissions = model_permissions::get(&state, &admin, &project_id).await?;
        Ok(Json(permissions.into()))
    }

    /// Sets which models a project may name.
    #[oai(
        path = "/:project_id/model_permissions",
        method = "post",
        operation_id = "update-project-model-permissions"
    )]
    async fn set_model_permissions(
        &self,
        state: Data<&Shared>,
        admin: Admin,
        project_id: Path<String>,
        body: JsonBody<ModelPermissionsOrder>,
    ) -> Result<Json<ModelPermissionsObject>, ApiError> {
        let ModelPermissionsOrder(permissions) = body.value;
        model_permissions::set(&state, &admin, &project_id, Some(&permissions)).await?;
        Ok(Json(permissions.into()))
    }

    /// Lets a project name every model again.
    #[oai(
        path = "/:project_id/model_permissions",
        method = "delete",
        operation_id = "delete-project-model-permissions"
    )]
    async fn delete_model_permissions(
        &self,
        state: Data<&Shared>,
        admin: Admin,
        project_id: Path<String>,
    ) -> Result<Json<ModelPermissionsDeleted>, ApiError> {
        model_permissions::set(&state, &admin, &project_id, None).await?;
        Ok(Json(ModelPermissionsDeleted {
            object: "project.model_permissions.deleted",
            deleted: true,
        }))
    }
}
