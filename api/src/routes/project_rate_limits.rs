//! `/v1/organization/projects/{project_id}/rate_limits`.

use domain::page::Order;
use poem::web::Data;
use poem_openapi::OpenApi;
use poem_openapi::param::{Path, Query};
use poem_openapi::payload::Json;
use store::RateLimitChange;

use super::Tag;
use crate::app::page_request;
use crate::app::project_rate_limits as app;
use crate::auth::Admin;
use crate::body::JsonBody;
use crate::error::ApiError;
use crate::state::Shared;
use crate::wire::list::List;
use crate::wire::project_rate_limits::RateLimitObject;

pub struct ProjectRateLimitsApi;

#[OpenApi(prefix_path = "/v1/organization/projects", tag = "Tag::Administration")]
impl ProjectRateLimitsApi {
    /// Lists how much the project may ask of each base model and of what is tuned from it, by model.
    ///
    /// `limit` is 1–100, default 100.
    #[oai(
        path = "/:project_id/rate_limits",
        method = "get",
        operation_id = "list-project-rate-limits"
    )]
    async fn list(
        &self,
        state: Data<&Shared>,
        admin: Admin,
        project_id: Path<String>,
        after: Query<Option<String>>,
        limit: Query<Option<i64>>,
    ) -> Result<Json<List<RateLimitObject>>, ApiError> {
        let page = page_request(after.0, limit.0, 100, 100, Order::OldestFirst)?;
        let listed = app::list(&state, &admin, &project_id, &page).await?;
        Ok(Json(List::page(listed)))
    }

    /// Changes a limit; what is left out stays. It holds in all processes as soon as they have spent what they drew.
    #[oai(
        path = "/:project_id/rate_limits/:rate_limit_id",
        method = "post",
        operation_id = "update-project-rate-limits"
    )]
    async fn update(
        &self,
        state: Data<&Shared>,
        admin: Admin,
        project_id: Path<String>,
        rate_limit_id: Path<String>,
        body: JsonBody<RateLimitChange>,
    ) -> Result<Json<RateLimitObject>, ApiError> {
        let updated = app::update(&state, &admin, &project_id, &rate_limit_id, body.value);
        Ok(Json(updated.await?.into()))
    }
}
