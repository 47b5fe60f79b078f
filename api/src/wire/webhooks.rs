//! Webhook endpoints as clients order and see them.

use domain::webhook::{WebhookEndpoint, WebhookEventType};
use platform::config::Secret;
use poem_openapi::Object;

use super::decode::{At, Fields, not_one_of};
use super::list::Listed;
use super::nullable::Nullable;
use super::reply::reply;
use crate::body::Decode;
use crate::error::ApiError;

/// Longest name. Characters.
const MAX_NAME: usize = 256;

/// The body of `POST /v1/webhook_endpoints`.
#[derive(Debug, Clone, PartialEq, Object)]
pub struct CreateWebhookEndpointRequest {
    /// For people; 1–256 characters.
    pub name: String,
    /// Where to: `https://`, a public host, port 443.
    pub url: String,
    /// What of; see `GET /v1/webhook_event_types`.
    pub event_types: Vec<String>,
}

/// The body of `POST /v1/webhook_endpoints/{webhook_endpoint_id}`: what is absent stays as it is.
#[derive(Debug, Clone, PartialEq, Object)]
pub struct UpdateWebhookEndpointRequest {
    pub name: Option<String>,
    pub url: Option<String>,
    pub event_types: Option<Vec<String>>,
}

/// The body of `POST /v1/webhook_endpoints/{webhook_endpoint_id}/rotate_secret`.
#[derive(Debug, Clone, PartialEq, Object)]
pub struct RotateWebhookSecretRequest {
    /// Whether the secret before signs beside the new one for 24 hours; default `false`.
    pub keep_old_secret_active_for_24_hours: Option<bool>,
}

/// The body of `POST /v1/webhook_endpoints/{webhook_endpoint_id}/test`.
#[derive(Debug, Clone, PartialEq, Object)]
pub struct TestWebhookEndpointRequest {
    pub event_type: String,
}

/// A new endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointOrder {
    pub name: String,
    pub url: String,
    pub event_types: Vec<WebhookEventType>,
}

impl Decode for EndpointOrder {
    type Schema = CreateWebhookEndpointRequest;

    fn decode(mut body: Fields) -> Result<Self, ApiError> {
        let order = Self {
            name: name(body.require("name")?)?,
            url: body.require("url")?.string()?,
            event_types: event_types(body.require("event_types")?)?,
        };
        body.finish()?;
        Ok(order)
    }
}

/// What is to change of an endpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EndpointUpdate {
    pub name: Option<String>,
    pub url: Option<String>,
    pub event_types: Option<Vec<WebhookEventType>>,
}

impl Decode for EndpointUpdate {
    type Schema = UpdateWebhookEndpointRequest;

    fn decode(mut body: Fields) -> Result<Self, ApiError> {
        let update = Self {
            name: body.take("name").map(name).transpose()?,
            url: body.take("url").map(At::string).transpose()?,
            event_types: body.take("event_types").map(event_types).transpose()?,
        };
        body.finish()?;
        Ok(update)
    }
}

/// What becomes of the secret that is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OldSecret {
    Void,
    ActiveForADay,
}

impl Decode for OldSecret {
    type Schema = RotateWebhookSecretRequest;

    fn decode(mut body: Fields) -> Result<Self, ApiError> {
        let keep = body.take("keep_old_secret_active_for_24_hours");
        let keep = keep.map(At::boolean).transpose()?.unwrap_or(false);
        body.finish()?;
        Ok(if keep {
            OldSecret::ActiveForADay
        } else {
            OldSecret::Void
        })
    }
}

/// An endpoint is to be tried with an event of this type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TestOrder {
    pub event_type: WebhookEventType,
}

impl Decode for TestOrder {
    type Schema = TestWebhookEndpointRequest;

    fn decode(mut body: Fields) -> Result<Self, ApiError> {
        let event_type = event_type(body.require("event_type")?)?;
        body.finish()?;
        Ok(Self { event_type })
    }
}

fn name(at: At) -> Result<String, ApiError> {
    let path = at.path.clone();
    let name = at.string_up_to(MAX_NAME)?;
    if name.is_empty() {
        let message = format!("Invalid '{path}': expected a name, but got an empty string.");
        return Err(ApiError::invalid(path, "invalid_value", message));
    }
    Ok(name)
}

/// Each once, in the client's order.
fn event_types(at: At) -> Result<Vec<WebhookEventType>, ApiError> {
    let mut types = Vec::new();
    for item in at.items(1, 100)? {
        let event_type = event_type(item)?;
        if !types.contains(&event_type) {
            types.push(event_type);
        }
    }
    Ok(types)
}

fn event_type(at: At) -> Result<WebhookEventType, ApiError> {
    let path = at.path.clone();
    let text = at.string()?;
    WebhookEventType::parse(&text).ok_or_else(|| not_one_of(&path, &text, WebhookEventType::WORDS))
}

reply! {
    /// Where a project is told of what happened.
    WebhookEndpointObject as "WebhookEndpoint" {
        id: String,
        /// `webhook_endpoint`.
        object: &'static str,
        /// Unix seconds.
        created_at: i64,
        /// Unix seconds: when its configuration or its secret last changed.
        updated_at: i64,
        name: String,
        url: String,
        event_types: Vec<String>,
        /// The last characters of the signing secret.
        signing_secret_hint: String,
        /// Unix seconds; set when nothing got through for five days. It is told of nothing until it is updated.
        x_disabled_at: Nullable<i64>,
    }

    /// An endpoint and its signing secret, which is shown this once.
    WebhookEndpointWithSecret as "WebhookEndpointWithSecret" {
        id: String,
        /// `webhook_endpoint`.
        object: &'static str,
        /// Unix seconds.
        created_at: i64,
        /// Unix seconds.
        updated_at: i64,
        name: String,
        url: String,
        event_types: Vec<String>,
        signing_secret_hint: String,
        /// `whsec_…`: verifies what the endpoint receives, as the Standard Webhooks specification says.
        signing_secret: String,
        x_disabled_at: Nullable<i64>,
    }

    /// What an endpoint answered to a sample event.
    WebhookEndpointTestResult as "WebhookEndpointTestResult" {
        /// `webhook_endpoint.test`.
        object: &'static str,
        webhook_endpoint_id: String,
        event_type: &'static str,
        /// As the receiver answered.
        status_code: u16,
        /// Always true: a test that gets no answer is an error.
        success: bool,
    }

    /// What a project can be told of.
    WebhookEventTypeList as "WebhookEventTypeList" {
        /// `list`.
        object: &'static str,
        data: Vec<String>,
    }
}

impl From<WebhookEndpoint> for WebhookEndpointObject {
    fn from(endpoint: WebhookEndpoint) -> Self {
        Self {
            id: endpoint.id.to_string(),
            object: "webhook_endpoint",
            created_at: endpoint.created_at.unix_s(),
            updated_at: endpoint.updated_at.unix_s(),
            name: endpoint.name,
            url: endpoint.url,
            event_types: names(&endpoint.event_types),
            signing_secret_hint: endpoint.secret_hint,
            x_disabled_at: Nullable(endpoint.disabled_at.map(|at| at.unix_s())),
        }
    }
}

impl WebhookEndpointWithSecret {
    pub fn new(endpoint: WebhookEndpoint, secret: &Secret<String>) -> Self {
        let shown = WebhookEndpointObject::from(endpoint);
        Self {
            id: shown.id,
            object: shown.object,
            created_at: shown.created_at,
            updated_at: shown.updated_at,
            name: shown.name,
            url: shown.url,
            event_types: shown.event_types,
            signing_secret_hint: shown.signing_secret_hint,
            signing_secret: secret.expose().clone(),
            x_disabled_at: shown.x_disabled_at,
        }
    }
}

impl WebhookEventTypeList {
    pub fn all() -> Self {
        Self {
            object: "list",
            data: WebhookEventType::WORDS
                .iter()
                .map(|word| (*word).to_owned())
                .collect(),
        }
    }
}

fn names(types: &[WebhookEventType]) -> Vec<String> {
    types.iter().map(|t| t.as_str().to_owned()).collect()
}

impl Listed for WebhookEndpointObject {
    fn id(&self) -> &str {
        &self.id
    }
}
