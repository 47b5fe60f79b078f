//! `/v1/organization/projects/{project_id}/users`.

use domain::page::Order;
use poem::web::Data;
use poem_openapi::OpenApi;
use poem_openapi::param::{Path, Query};
use poem_openapi::payload::Json;

use super::{Tag, administrators_page};
use crate::app::project_users as app;
use crate::auth::Admin;
use crate::body::JsonBody;
use crate::error::ApiError;
use crate::state::Shared;
use crate::wire::list::{Deleted, List};
use crate::wire::project_users::{ProjectUserChange, ProjectUserObject, ProjectUserOrder};

pub struct ProjectUsersApi;

#[OpenApi(prefix_path = "/v1/organization/projects", tag = "Tag::Administration")]
impl ProjectUsersApi {
    /// Lists a project's members, newest first.
    ///
    /// `limit` is 1–100, default 20.
    #[oai(
        path = "/:project_id/users",
        method = "get",
        operation_id = "list-project-users"
    )]
    async fn list(
        &self,
        state: Data<&Shared>,
        admin: Admin,
        project_id: Path<String>,
        after: Query<Option<String>>,
        limit: Query<Option<i64>>,
    ) -> Result<Json<List<ProjectUserObject>>, ApiError> {
        let page = administrators_page(after.0, limit.0, Order::NewestFirst)?;
        let listed = app::list(&state, &admin, &project_id, &page).await?;
        Ok(Json(List::page(listed)))
    }

    /// Makes a user of the organization a member of the project.
    #[oai(
        path = "/:project_id/users",
        method = "post",
        operation_id = "create-project-user"
    )]
    async fn create(
        &self,
        state: Data<&Shared>,
        admin: Admin,
        project_id: Path<String>,
        body: JsonBody<ProjectUserOrder>,
    ) -> Result<Json<ProjectUserObject>, ApiError> {
        let member = app::add(&state, &admin, &project_id, body.value).await?;
        Ok(Json(member.into()))
    }

    /// Retrieves a member.
    #[oai(
        path = "/:project_id/users/:user_id",
        method = "get",
        operation_id = "retrieve-project-user"
    )]
    async fn retrieve(
        &self,
        state: Data<&Shared>,
        admin: Admin,
        project_id: Path<String>,
        user_id: Path<String>,
    ) -> Result<Json<ProjectUserObject>, ApiError> {
        let member = app::get(&state, &admin, &project_id, &user_id).await?;
        Ok(Json(member.into()))
    }

    /// Changes a member's role.
    #[oai(
        path = "/:project_id/users/:user_id",
        method = "post",
        operation_id = "modify-project-user"
    )]
    async fn modify(
        &self,
        state: Data<&Shared>,
        admin: Admin,
        project_id: Path<String>,
        user_id: Path<String>,
        body: JsonBody<ProjectUserChange>,
    ) -> Result<Json<ProjectUserObject>, ApiError> {
        let role = body.value.role;
        let member = app::set_role(&state, &admin, &project_id, &user_id, role).await?;
        Ok(Json(member.into()))
    }

    /// Takes a user out of the project: its keys of this project open nothing any more.
    #[oai(
        path = "/:project_id/users/:user_id",
        method = "delete",
        operation_id = "delete-project-user"
    )]
    async fn delete(
        &self,
        state: Data<&Shared>,
        admin: Admin,
        project_id: Path<String>,
        user_id: Path<String>,
    ) -> Result<Json<Deleted>, ApiError> {
        app::delete(&state, &admin, &project_id, &user_id).await?;
        Ok(Json(Deleted {
            id: user_id.0,
            object: "organization.project.user.deleted",
            deleted: true,
        }))
    }
}
