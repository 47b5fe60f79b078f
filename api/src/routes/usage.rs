//! `/v1/organization/usage/…` and `/v1/organization/costs`.

use poem::web::Data;
use poem_openapi::OpenApi;
use poem_openapi::param::Query;
use poem_openapi::payload::Json;

use super::Tag;
use super::reply::QueryList;
use crate::app::usage::{self as app, Asked};
use crate::auth::Admin;
use crate::error::ApiError;
use crate::state::Shared;
use crate::wire::usage::{CompletionsPage, CostsPage, EmbeddingsPage, ModerationsPage};

pub struct UsageApi;

#[OpenApi(prefix_path = "/v1/organization", tag = "Tag::Usage")]
impl UsageApi {
    /// What answers took, in buckets of time.
    ///
    /// `bucket_width` is `1d` (the default; `limit` 7, at most 31), `1h` (24, 168) or `1m` (60, 1440); `group_by` takes
    /// `project_id`, `api_key_id`, `model` and `batch`.
    #[oai(
        path = "/usage/completions",
        method = "get",
        operation_id = "usage-completions"
    )]
    #[allow(clippy::too_many_arguments)] // each one is a parameter of the route
    async fn completions(
        &self,
        state: Data<&Shared>,
        admin: Admin,
        start_time: Query<i64>,
        end_time: Query<Option<i64>>,
        bucket_width: Query<Option<String>>,
        project_ids: QueryList,
        user_ids: QueryList,
        api_key_ids: QueryList,
        models: QueryList,
        batch: Query<Option<bool>>,
        group_by: QueryList,
        limit: Query<Option<i64>>,
        page: Query<Option<String>>,
    ) -> Result<Json<CompletionsPage>, ApiError> {
        let asked = Asked {
            start_time: start_time.0,
            end_time: end_time.0,
            bucket_width: bucket_width.0,
            limit: limit.0,
            page: page.0,
            project_ids: project_ids.0,
            api_key_ids: api_key_ids.0,
            models: models.0,
            user_ids: user_ids.0,
            batch: batch.0,
            group_by: group_by.0,
        };
        let buckets = app::completions(&state, &admin.organization, asked).await?;
        Ok(Json(buckets.into()))
    }

    /// What embeddings took, in buckets of time.
    #[oai(
        path = "/usage/embeddings",
        method = "get",
        operation_id = "usage-embeddings"
    )]
    #[allow(clippy::too_many_arguments)] // each one is a parameter of the route
    async fn embeddings(
        &self,
        state: Data<&Shared>,
        admin: Admin,
        start_time: Query<i64>,
        end_time: Query<Option<i64>>,
        bucket_width: Query<Option<String>>,
        project_ids: QueryList,
        user_ids: QueryList,
        api_key_ids: QueryList,
        models: QueryList,
        group_by: QueryList,
        limit: Query<Option<i64>>,
        page: Query<Option<String>>,
    ) -> Result<Json<EmbeddingsPage>, ApiError> {
        let asked = Asked {
            start_time: start_time.0,
            end_time: end_time.0,
            bucket_width: bucket_width.0,
            limit: limit.0,
            page: page.0,
            project_ids: project_ids.0,
            api_key_ids: api_key_ids.0,
            models: models.0,
            user_ids: user_ids.0,
            batch: None,
            group_by: group_by.0,
        };
        let buckets = app::embeddings(&state, &admin.organization, asked).await?;
        Ok(Json(buckets.into()))
    }

    /// What moderations took, in buckets of time.
    #[oai(
        path = "/usage/moderations",
        method = "get",
        operation_id = "usage-moderations"
    )]
    #[allow(clippy::too_many_arguments)] // each one is a parameter of the route
    async fn moderations(
        &self,
        state: Data<&Shared>,
        admin: Admin,
        start_time: Query<i64>,
        end_time: Query<Option<i64>>,
        bucket_width: Query<Option<String>>,
        project_ids: QueryList,
        user_ids: QueryList,
        api_key_ids: QueryList,
        models: QueryList,
        group_by: QueryList,
        limit: Query<Option<i64>>,
        page: Query<Option<String>>,
    ) -> Result<Json<ModerationsPage>, ApiError> {
        let asked = Asked {
            start_time: start_time.0,
            end_time: end_time.0,
            bucket_width: bucket_width.0,
            limit: limit.0,
            page: page.0,
            project_ids: project_ids.0,
            api_key_ids: api_key_ids.0,
            models: models.0,
            user_ids: user_ids.0,
            batch: None,
            group_by: group_by.0,
        };
        let buckets = app::moderations(&state, &admin.organization, asked).await?;
        Ok(Json(buckets.into()))
    }

    /// What was taken, at the operator's prices, in buckets of a day.
    ///
    /// `limit` is 1–180, default 7; `group_by` takes `project_id`, `line_item` and `api_key_id`.
    #[oai(path = "/costs", method = "get", operation_id = "usage-costs")]
    #[allow(clippy::too_many_arguments)] // each one is a parameter of the route
    async fn costs(
        &self,
        state: Data<&Shared>,
        admin: Admin,
        start_time: Query<i64>,
        end_time: Query<Option<i64>>,
        bucket_width: Query<Option<String>>,
        project_ids: QueryList,
        api_key_ids: QueryList,
        group_by: QueryList,
        limit: Query<Option<i64>>,
        page: Query<Option<String>>,
    ) -> Result<Json<CostsPage>, ApiError> {
        let asked = Asked {
            start_time: start_time.0,
            end_time: end_time.0,
            bucket_width: bucket_width.0,
            limit: limit.0,
            page: page.0,
            project_ids: project_ids.0,
            api_key_ids: api_key_ids.0,
            group_by: group_by.0,
            ..Asked::default()
        };
        let buckets = app::costs(&state, &admin.organization, asked).await?;
        Ok(Json(buckets.into()))
    }
}
