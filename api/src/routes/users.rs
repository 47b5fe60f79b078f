//! `/v1/organization/users`.

use domain::page::Order;
use poem::web::Data;
use poem_openapi::OpenApi;
use poem_openapi::param::{Path, Query};
use poem_openapi::payload::Json;

use super::{Tag, administrators_page};
use crate::app::users as app;
use crate::auth::Admin;
use crate::body::JsonBody;
use crate::error::ApiError;
use crate::state::Shared;
use crate::wire::list::{Deleted, List};
use crate::wire::users::{UserChange, UserObject};

pub struct UsersApi;

#[OpenApi(prefix_path = "/v1/organization/users", tag = "Tag::Administration")]
impl UsersApi {
    /// Lists the organization's users, newest first; with `emails[]` those of these addresses.
    ///
    /// `limit` is 1–100, default 20.
    #[oai(path = "/", method = "get", operation_id = "list-users")]
    async fn list(
        &self,
        state: Data<&Shared>,
        admin: Admin,
        after: Query<Option<String>>,
        limit: Query<Option<i64>>,
        emails: Query<Option<Vec<String>>>,
        #[oai(name = "emails[]")] bracketed: Query<Option<Vec<String>>>,
    ) -> Result<Json<List<UserObject>>, ApiError> {
        let page = administrators_page(after.0, limit.0, Order::NewestFirst)?;
        let mut emails = emails.0.unwrap_or_default();
        emails.extend(bracketed.0.unwrap_or_default());
        let listed = app::list(&state, &admin, &emails, &page).await?;
        Ok(Json(List::page(listed)))
    }

    /// Retrieves a user.
    #[oai(path = "/:user_id", method = "get", operation_id = "retrieve-user")]
    async fn retrieve(
        &self,
        state: Data<&Shared>,
        admin: Admin,
        user_id: Path<String>,
    ) -> Result<Json<UserObject>, ApiError> {
        let user = app::get(&state, &admin, &user_id).await?;
        Ok(Json(user.into()))
    }

    /// Changes a user's role. The last owner stays one.
    #[oai(path = "/:user_id", method = "post", operation_id = "modify-user")]
    async fn modify(
        &self,
        state: Data<&Shared>,
        admin: Admin,
        user_id: Path<String>,
        body: JsonBody<UserChange>,
    ) -> Result<Json<UserObject>, ApiError> {
        let user = app::set_role(&state, &admin, &user_id, body.value.role).await?;
        Ok(Json(user.into()))
    }

    /// Deletes a user: its keys open nothing any more. The last owner stays.
    #[oai(path = "/:user_id", method = "delete", operation_id = "delete-user")]
    async fn delete(
        &self,
        state: Data<&Shared>,
        admin: Admin,
        user_id: Path<String>,
    ) -> Result<Json<Deleted>, ApiError> {
        app::delete(&state, &admin, &user_id).await?;
        Ok(Json(Deleted {
            id: user_id.0,
            object: "organization.user.deleted",
            deleted: true,
        }))
    }
}
