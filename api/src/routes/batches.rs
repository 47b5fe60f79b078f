//! `/v1/batches`.

use domain::page::Order;
use poem::web::Data;
use poem_openapi::OpenApi;
use poem_openapi::param::{Path, Query};
use poem_openapi::payload::Json;

use super::Tag;
use super::reply::{Made, RepeatHeaders};
use crate::app::{batches as app, page_request};
use crate::auth::Caller;
use crate::body::JsonBody;
use crate::error::ApiError;
use crate::state::Shared;
use crate::wire::batches::{BatchObject, BatchOrder};
use crate::wire::list::List;

pub struct BatchesApi;

#[OpenApi(prefix_path = "/v1/batches", tag = "Tag::Batches")]
impl BatchesApi {
    /// Creates a batch from an uploaded file of requests.
    ///
    /// What is in the file is judged afterwards: a bad one makes the batch `failed`.
    #[oai(path = "/", method = "post", operation_id = "createBatch")]
    async fn create(
        &self,
        state: Data<&Shared>,
        caller: Caller,
        repeat: RepeatHeaders,
        body: JsonBody<BatchOrder>,
    ) -> Result<Made<BatchObject>, ApiError> {
        let created = app::create(&state, &caller, body.value, &body.raw, &repeat.0).await?;
        Ok(Made::from(created))
    }

    /// Lists the project's batches, newest first.
    ///
    /// `limit` is 1–100, default 20.
    #[oai(path = "/", method = "get", operation_id = "listBatches")]
    async fn list(
        &self,
        state: Data<&Shared>,
        caller: Caller,
        after: Query<Option<String>>,
        limit: Query<Option<i64>>,
    ) -> Result<Json<List<BatchObject>>, ApiError> {
        let page = page_request(after.0, limit.0, 20, 100, Order::NewestFirst)?;
        let batches = app::list(&state, &caller.project, &page).await?;
        Ok(Json(List::page(batches)))
    }

    /// Retrieves a batch.
    #[oai(path = "/:batch_id", method = "get", operation_id = "retrieveBatch")]
    async fn retrieve(
        &self,
        state: Data<&Shared>,
        caller: Caller,
        batch_id: Path<String>,
    ) -> Result<Json<BatchObject>, ApiError> {
        let batch = app::get(&state, &caller.project, &batch_id).await?;
        Ok(Json(batch.into()))
    }

    /// Cancels a batch: what is being answered ends, nothing more is begun, and what was answered is kept.
    #[oai(
        path = "/:batch_id/cancel",
        method = "post",
        operation_id = "cancelBatch"
    )]
    async fn cancel(
        &self,
        state: Data<&Shared>,
        caller: Caller,
        batch_id: Path<String>,
    ) -> Result<Json<BatchObject>, ApiError> {
        let batch = app::cancel(&state, &caller.project, &batch_id).await?;
        Ok(Json(batch.into()))
    }
}
