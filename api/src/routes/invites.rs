//! `/v1/organization/invites`.

use domain::page::Order;
use poem::web::Data;
use poem_openapi::OpenApi;
use poem_openapi::param::{Path, Query};
use poem_openapi::payload::Json;

use super::{Tag, administrators_page};
use crate::app::invites as app;
use crate::auth::Admin;
use crate::body::JsonBody;
use crate::error::ApiError;
use crate::state::Shared;
use crate::wire::invites::{InviteObject, InviteOrder};
use crate::wire::list::{Deleted, List};

pub struct InvitesApi;

#[OpenApi(prefix_path = "/v1/organization/invites", tag = "Tag::Administration")]
impl InvitesApi {
    /// Lists invitations, newest first.
    ///
    /// `limit` is 1–100, default 20.
    #[oai(path = "/", method = "get", operation_id = "list-invites")]
    async fn list(
        &self,
        state: Data<&Shared>,
        admin: Admin,
        after: Query<Option<String>>,
        limit: Query<Option<i64>>,
    ) -> Result<Json<List<InviteObject>>, ApiError> {
        let page = administrators_page(after.0, limit.0, Order::NewestFirst)?;
        let (listed, now) = (app::list(&state, &admin, &page).await?, state.now());
        let listed = listed.map(|invite| InviteObject::at(now, invite));
        Ok(Json(List::page(listed)))
    }

    /// Invites somebody to the organization. Nobody can accept yet, and no e-mail is sent.
    #[oai(path = "/", method = "post", operation_id = "inviteUser")]
    async fn create(
        &self,
        state: Data<&Shared>,
        admin: Admin,
        body: JsonBody<InviteOrder>,
    ) -> Result<Json<InviteObject>, ApiError> {
        let invite = app::create(&state, &admin, body.value).await?;
        Ok(Json(InviteObject::at(state.now(), invite)))
    }

    /// Retrieves an invitation.
    #[oai(path = "/:invite_id", method = "get", operation_id = "retrieve-invite")]
    async fn retrieve(
        &self,
        state: Data<&Shared>,
        admin: Admin,
        invite_id: Path<String>,
    ) -> Result<Json<InviteObject>, ApiError> {
        let invite = app::get(&state, &admin, &invite_id).await?;
        Ok(Json(InviteObject::at(state.now(), invite)))
    }

    /// Deletes an invitation.
    #[oai(
        path = "/:invite_id",
        method = "delete",
        operation_id = "delete-invite"
    )]
    async fn delete(
        &self,
        state: Data<&Shared>,
        admin: Admin,
        invite_id: Path<String>,
    ) -> Result<Json<Deleted>, ApiError> {
        app::delete(&state, &admin, &invite_id).await?;
        Ok(Json(Deleted {
            id: invite_id.0,
            object: "organization.invite.deleted",
            deleted: true,
        }))
    }
}
