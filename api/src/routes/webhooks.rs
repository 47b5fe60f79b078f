//! `/v1/webhook_endpoints` and `/v1/webhook_event_types`.

use domain::page::Order;
use poem::web::Data;
use poem_openapi::OpenApi;
use poem_openapi::param::{Path, Query};
use poem_openapi::payload::Json;

use super::Tag;
use crate::app::page_request;
use crate::app::webhooks as app;
use crate::auth::Caller;
use crate::body::JsonBody;
use crate::error::ApiError;
use crate::state::Shared;
use crate::wire::list::{Deleted, List};
use crate::wire::webhooks::{
    EndpointOrder, EndpointUpdate, OldSecret, TestOrder, WebhookEndpointObject,
    WebhookEndpointTestResult, WebhookEndpointWithSecret, WebhookEventTypeList,
};

pub struct WebhooksApi;

#[OpenApi(prefix_path = "/v1", tag = "Tag::Webhooks")]
impl WebhooksApi {
    /// Creates a webhook endpoint. Its signing secret is shown this once.
    #[oai(
        path = "/webhook_endpoints",
        method = "post",
        operation_id = "createWebhookEndpoint"
    )]
    async fn create(
        &self,
        state: Data<&Shared>,
        caller: Caller,
        body: JsonBody<EndpointOrder>,
    ) -> Result<Json<WebhookEndpointWithSecret>, ApiError> {
        let made = app::create(&state, &caller.project, body.value).await?;
        let shown = WebhookEndpointWithSecret::new(made.endpoint, &made.secret);
        Ok(Json(shown))
    }

    /// Lists the project's webhook endpoints, newest first.
    ///
    /// `limit` is 1–100, default 20.
    #[oai(
        path = "/webhook_endpoints",
        method = "get",
        operation_id = "listWebhookEndpoints"
    )]
    async fn list(
        &self,
        state: Data<&Shared>,
        caller: Caller,
        after: Query<Option<String>>,
        limit: Query<Option<i64>>,
    ) -> Result<Json<List<WebhookEndpointObject>>, ApiError> {
        let page = page_request(after.0, limit.0, 20, 100, Order::NewestFirst)?;
        let endpoints = app::list(&state, &caller.project, &page).await?;
        Ok(Json(List::page(endpoints)))
    }

    /// Retrieves a webhook endpoint.
    #[oai(
        path = "/webhook_endpoints/:webhook_endpoint_id",
        method = "get",
        operation_id = "retrieveWebhookEndpoint"
    )]
    async fn retrieve(
        &self,
        state: Data<&Shared>,
        caller: Caller,
        webhook_endpoint_id: Path<String>,
    ) -> Result<Json<WebhookEndpointObject>, ApiError> {
        let endpoint = app::get(&state, &caller.project, &webhook_endpoint_id).await?;
        Ok(Json(endpoint.into()))
    }

    /// Changes a webhook endpoint, and enables it where it was disabled.
    #[oai(
        path = "/webhook_endpoints/:webhook_endpoint_id",
        method = "post",
        operation_id = "updateWebhookEndpoint"
    )]
    async fn update(
        &self,
        state: Data<&Shared>,
        caller: Caller,
        webhook_endpoint_id: Path<String>,
        body: JsonBody<EndpointUpdate>,
    ) -> Result<Json<WebhookEndpointObject>, ApiError> {
        let (project, id) = (&caller.project, &webhook_endpoint_id);
        let endpoint = app::update(&state, project, id, body.value).await?;
        Ok(Json(endpoint.into()))
    }

    /// Deletes a webhook endpoint, with what is on its way there.
    #[oai(
        path = "/webhook_endpoints/:webhook_endpoint_id",
        method = "delete",
        operation_id = "deleteWebhookEndpoint"
    )]
    async fn delete(
        &self,
        state: Data<&Shared>,
        caller: Caller,
        webhook_endpoint_id: Path<String>,
    ) -> Result<Json<Deleted>, ApiError> {
        app::delete(&state, &caller.project, &webhook_endpoint_id).await?;
        Ok(Json(Deleted {
            id: webhook_endpoint_id.0,
            object: "webhook_endpoint.deleted",
            deleted: true,
        }))
    }

    /// Gives a webhook endpoint another signing secret, shown this once.
    #[oai(
        path = "/webhook_endpoints/:webhook_endpoint_id/rotate_secret",
        method = "post",
        operation_id = "rotateWebhookSecret"
    )]
    async fn rotate_secret(
        &self,
        state: Data<&Shared>,
        caller: Caller,
        webhook_endpoint_id: Path<String>,
        body: JsonBody<OldSecret>,
    ) -> Result<Json<WebhookEndpointWithSecret>, ApiError> {
        let (project, id) = (&caller.project, &webhook_endpoint_id);
        let made = app::rotate_secret(&state, project, id, body.value).await?;
        let shown = WebhookEndpointWithSecret::new(made.endpoint, &made.secret);
        Ok(Json(shown))
    }

    /// Sends a sample event to a webhook endpoint and tells its answer.
    #[oai(
        path = "/webhook_endpoints/:webhook_endpoint_id/test",
        method = "post",
        operation_id = "testWebhookEndpoint"
    )]
    async fn test(
        &self,
        state: Data<&Shared>,
        caller: Caller,
        webhook_endpoint_id: Path<String>,
        body: JsonBody<TestOrder>,
    ) -> Result<Json<WebhookEndpointTestResult>, ApiError> {
        let (project, id) = (&caller.project, &webhook_endpoint_id);
        let event_type = body.value.event_type;
        let (endpoint, status_code) = app::test(&state, project, id, event_type).await?;
        Ok(Json(WebhookEndpointTestResult {
            object: "webhook_endpoint.test",
            webhook_endpoint_id: endpoint.id.to_string(),
            event_type: event_type.as_str(),
            status_code,
            success: true,
        }))
    }

    /// Lists what webhook endpoints can be told of.
    #[oai(
        path = "/webhook_event_types",
        method = "get",
        operation_id = "listWebhookEventTypes"
    )]
    async fn event_types(&self, _caller: Caller) -> Result<Json<WebhookEventTypeList>, ApiError> {
        Ok(Json(WebhookEventTypeList::all()))
    }
}
