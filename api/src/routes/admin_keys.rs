//! `/v1/organization/admin_api_keys`.

use domain::page::Order;
use poem::web::Data;
use poem_openapi::OpenApi;
use poem_openapi::param::{Path, Query};
use poem_openapi::payload::Json;

use super::{Tag, administrators_page, order_or};
use crate::app::admin_keys as app;
use crate::auth::Admin;
use crate::body::JsonBody;
use crate::error::ApiError;
use crate::state::Shared;
use crate::wire::admin_keys::{AdminKeyObject, AdminKeyOrder};
use crate::wire::list::{Deleted, List};

pub struct AdminKeysApi;

#[OpenApi(
    prefix_path = "/v1/organization/admin_api_keys",
    tag = "Tag::Administration"
)]
impl AdminKeysApi {
    /// Lists the organization's admin keys, oldest first.
    ///
    /// `limit` is 1–100, default 20; `order` is `asc`, the default, or `desc`.
    #[oai(path = "/", method = "get", operation_id = "admin-api-keys-list")]
    async fn list(
        &self,
        state: Data<&Shared>,
        admin: Admin,
        after: Query<Option<String>>,
        limit: Query<Option<i64>>,
        #[oai(name = "order")] sort: Query<Option<String>>,
    ) -> Result<Json<List<AdminKeyObject>>, ApiError> {
        let order = order_or(sort.0, Order::OldestFirst)?;
        let page = administrators_page(after.0, limit.0, order)?;
        Ok(Json(List::page(app::list(&state, &admin, &page).await?)))
    }

    /// Makes an admin key. `value` is shown this once.
    #[oai(path = "/", method = "post", operation_id = "admin-api-keys-create")]
    async fn create(
        &self,
        state: Data<&Shared>,
        admin: Admin,
        body: JsonBody<AdminKeyOrder>,
    ) -> Result<Json<AdminKeyObject>, ApiError> {
        let (key, secret) = app::create(&state, &admin, body.value).await?;
        Ok(Json(AdminKeyObject {
            value: Some(secret),
            ..key.into()
        }))
    }

    /// Retrieves an admin key.
    #[oai(path = "/:key_id", method = "get", operation_id = "admin-api-keys-get")]
    async fn retrieve(
        &self,
        state: Data<&Shared>,
        admin: Admin,
        key_id: Path<String>,
    ) -> Result<Json<AdminKeyObject>, ApiError> {
        let key = app::get(&state, &admin, &key_id).await?;
        Ok(Json(key.into()))
    }

    /// Deletes an admin key: it opens nothing any more.
    #[oai(
        path = "/:key_id",
        method = "delete",
        operation_id = "admin-api-keys-delete"
    )]
    async fn delete(
        &self,
        state: Data<&Shared>,
        admin: Admin,
        key_id: Path<String>,
    ) -> Result<Json<Deleted>, ApiError> {
        app::delete(&state, &admin, &key_id).await?;
        Ok(Json(Deleted {
            id: key_id.0,
            object: "organization.admin_api_key.deleted",
            deleted: true,
        }))
    }
}
