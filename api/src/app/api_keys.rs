//! Keys of a project, as its administrators see them: never the secret.

use domain::api_key::KeyOwner;
use domain::audit::AuditKind;
use domain::id::KeyId;
use domain::page::{Page, PageRequest};
use domain::project::Project;
use serde_json::json;
use store::{AccessFilter, OwnedKey};

use super::administration::{absent, entry, event, project};
use super::store_error;
use crate::auth::Admin;
use crate::error::{ApiError, Kind};
use crate::state::State;

/// Errors: 404, for an unknown `after`, too.
pub async fn list(
    state: &State,
    admin: &Admin,
    project_id: &str,
    access: AccessFilter,
    page: &PageRequest,
) -> Result<Page<OwnedKey>, ApiError> {
    let project = project(state, admin, project_id).await?;
    let listed = state.store.api_keys().list(&project.id, access, page).await;
    listed.map_err(store_error)
}

/// Errors: 404.
pub async fn get(
    state: &State,
    admin: &Admin,
    project_id: &str,
    id: &str,
) -> Result<OwnedKey, ApiError> {
    let project = project(state, admin, project_id).await?;
    find(state, &project, id).await
}

async fn find(state: &State, project: &Project, id: &str) -> Result<OwnedKey, ApiError> {
    let key_id = KeyId::parse(id).map_err(|_| unknown(id))?;
    let found = state.store.api_keys().find(&project.id, &key_id).await;
    found.map_err(store_error)?.ok_or_else(|| unknown(id))
}

/// Errors: 404; 400 for a key of a service account, which goes with its account.
pub async fn delete(
    state: &State,
    admin: &Admin,
    project_id: &str,
    id: &str,
) -> Result<(), ApiError> {
    let project = project(state, admin, project_id).await?;
    let key = find(state, &project, id).await?.key;
    if let KeyOwner::ServiceAccount(account) = &key.owner {
        let message = format!(
            "The API key {} belongs to the service account {account}: delete the service account instead.",
            key.id
        );
        return Err(ApiError::new(Kind::BadRequest, message).code("service_account_key"));
    }
    let event = event(AuditKind::ApiKeyDeleted, &key.id, json!({}));
    let entry = entry(state, admin, Some(&project), event);
    let revoked = state
        .store
        .api_keys()
        .revoke(&project.id, &key.id, &entry)
        .await;
    let is_revoked = revoked.map_err(store_error)?;
    is_revoked.then_some(()).ok_or_else(|| unknown(id))
}

fn unknown(id: &str) -> ApiError {
    absent("API key", id, "api_key_id")
}
