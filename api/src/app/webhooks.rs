//! Webhook endpoints: kept here, told by the scheduler; only a test is sent from here.

use domain::id::{WebhookDeliveryId, WebhookEndpointId, WebhookSecretId};
use domain::page::{Page, PageRequest};
use domain::project::Project;
use domain::webhook::{MAX_ENDPOINTS, WebhookEndpoint, WebhookEvent, WebhookEventType};
use platform::config::Secret;
use platform::webhook::{Message, SigningSecret, send};
use store::{SealedSecret, WebhookChange};

use super::store_error;
use crate::error::{ApiError, Kind};
use crate::state::State;
use crate::wire::decode::echo;
use crate::wire::webhooks::{EndpointOrder, EndpointUpdate, OldSecret};

/// How long a secret signs beside the one that replaced it. Seconds.
const OLD_SECRET_S: i64 = 24 * 3600;

/// An endpoint and its signing secret, which nobody can read again.
pub struct WithSecret {
    pub endpoint: WebhookEndpoint,
    pub secret: Secret<String>,
}

/// Errors: 400 for a URL that may not be called, and for one endpoint too many.
pub async fn create(
    state: &State,
    project: &Project,
    order: EndpointOrder,
) -> Result<WithSecret, ApiError> {
    check_url(state, &order.url).await?;
    let (secret, sealed) = draw_secret(state);
    let now = state.now();
    let endpoint = WebhookEndpoint {
        id: WebhookEndpointId::mint(state.entropy()),
        project_id: project.id.clone(),
        name: order.name,
        url: order.url,
        event_types: order.event_types,
        secret_hint: secret.hint(),
        created_at: now,
        updated_at: now,
        disabled_at: None,
    };
    let inserted = state.store.webhooks().insert(&endpoint, &sealed).await;
    if !inserted.map_err(store_error)? {
        let message = format!(
            "This project already has {MAX_ENDPOINTS} webhook endpoints. Please delete one that is no longer needed."
        );
        return Err(ApiError::new(Kind::BadRequest, message).code("webhook_endpoint_limit"));
    }
    Ok(WithSecret {
        endpoint,
        secret: secret.text(),
    })
}

/// Errors: 404 for an unknown `after`.
pub async fn list(
    state: &State,
    project: &Project,
    page: &PageRequest,
) -> Result<Page<WebhookEndpoint>, ApiError> {
    let listed = state.store.webhooks().list(&project.id, page).await;
    listed.map_err(store_error)
}

/// Errors: 404.
pub async fn get(state: &State, project: &Project, id: &str) -> Result<WebhookEndpoint, ApiError> {
    let endpoint_id = WebhookEndpointId::parse(id).map_err(|_| unknown(id))?;
    let found = state.store.webhooks().find(&project.id, &endpoint_id).await;
    found.map_err(store_error)?.ok_or_else(|| unknown(id))
}

/// Changes what is given, and enables an endpoint that was disabled. Errors: 404; 400 for a URL that may not be called.
pub async fn update(
    state: &State,
    project: &Project,
    id: &str,
    update: EndpointUpdate,
) -> Result<WebhookEndpoint, ApiError> {
    let before = get(state, project, id).await?;
    let mut after = before.clone();
    after.name = update.name.unwrap_or(after.name);
    after.url = update.url.unwrap_or(after.url);
    after.event_types = update.event_types.unwrap_or(after.event_types);
    if after.url != before.url {
        check_url(state, &after.url).await?;
    }
    after.disabled_at = None;
    if after != before {
        after.updated_at = state.now();
    }
    let change = WebhookChange {
        name: after.name.clone(),
        url: after.url.clone(),
        event_types: after.event_types.clone(),
        updated_at: after.updated_at,
    };
    let webhooks = state.store.webhooks();
    let is_there = webhooks.update(&project.id, &after.id, &change).await;
    if is_there.map_err(store_error)? {
        Ok(after)
    } else {
        Err(unknown(id))
    }
}

/// Errors: 404. What is on its way there is not sent any more.
pub async fn delete(state: &State, project: &Project, id: &str) -> Result<(), ApiError> {
    let endpoint_id = WebhookEndpointId::parse(id).map_err(|_| unknown(id))?;
    let webhooks = state.store.webhooks();
    let is_there = webhooks.delete(&project.id, &endpoint_id).await;
    if is_there.map_err(store_error)? {
        Ok(())
    } else {
        Err(unknown(id))
    }
}

/// Gives the endpoint another secret. Errors: 404.
pub async fn rotate_secret(
    state: &State,
    project: &Project,
    id: &str,
    old: OldSecret,
) -> Result<WithSecret, ApiError> {
    let endpoint_id = WebhookEndpointId::parse(id).map_err(|_| unknown(id))?;
    let (secret, sealed) = draw_secret(state);
    let now = state.now();
    let old_until = match old {
        OldSecret::Void => None,
        OldSecret::ActiveForADay => Some(now.plus_s(OLD_SECRET_S)),
    };
    let (webhooks, hint) = (state.store.webhooks(), secret.hint());
    webhooks
        .rotate_secret(&project.id, &endpoint_id, &sealed, &hint, old_until, now)
        .await
        .map_err(store_error)?;
    Ok(WithSecret {
        endpoint: get(state, project, id).await?,
        secret: secret.text(),
    })
}

/// Sends a sample event once and answers with the receiver's status. Errors: 404; 400 where there is no answer.
pub async fn test(
    state: &State,
    project: &Project,
    id: &str,
    event_type: WebhookEventType,
) -> Result<(WebhookEndpoint, u16), ApiError> {
    let endpoint = get(state, project, id).await?;
    let now = state.now();
    let webhooks = state.store.webhooks();
    let kept = webhooks.secrets(&project.id, &endpoint.id, now).await;
    let kept = kept.map_err(store_error)?;
    let secrets = kept
        .iter()
        .map(|kept| SigningSecret::open(&state.vault, &kept.id, &kept.sealed));
    let secrets: Vec<SigningSecret> = secrets
        .collect::<Result<_, _>>()
        .map_err(|error| ApiError::internal(format!("secrets of {}: {error}", endpoint.id)))?;
    let id = WebhookDeliveryId::mint(state.entropy());
    let message = Message {
        id: id.as_str(),
        sent_at: now,
        body: &WebhookEvent::sample(event_type, state.entropy(), now).body(),
    };
    let status = send(&state.outbound, &endpoint.url, &message, &secrets).await;
    let status = status.map_err(|error| {
        let message = format!("The test event did not get through: {error}.");
        ApiError::new(Kind::BadRequest, message).code("webhook_endpoint_unreachable")
    })?;
    Ok((endpoint, status))
}

async fn check_url(state: &State, url: &str) -> Result<(), ApiError> {
    state.outbound.check(url).await.map_err(|refusal| {
        let message = format!("Invalid 'url': {refusal}.");
        ApiError::invalid("url", "invalid_value", message)
    })
}

/// A new secret, and what is kept of it.
fn draw_secret(state: &State) -> (SigningSecret, SealedSecret) {
    let secret = SigningSecret::draw();
    let id = WebhookSecretId::mint(state.entropy());
    let sealed = secret.seal(&state.vault, &id);
    (secret, SealedSecret { id, sealed })
}

fn unknown(id: &str) -> ApiError {
    ApiError::not_found(format!("No such webhook endpoint: {}", echo(id))).param("id")
}
