//! Keys that administer an organisation.

use domain::api_key::{AdminKey, KeyKind};
use domain::audit::AuditKind;
use domain::id::KeyId;
use domain::page::{Page, PageRequest};
use serde_json::json;
use store::OwnedAdminKey;

use super::administration::{absent, entry, event, new_secret};
use super::store_error;
use crate::auth::Admin;
use crate::error::ApiError;
use crate::state::State;
use crate::wire::admin_keys::AdminKeyOrder;

/// Errors: 404 for an unknown `after`.
pub async fn list(
    state: &State,
    admin: &Admin,
    page: &PageRequest,
) -> Result<Page<OwnedAdminKey>, ApiError> {
    let keys = state.store.admin_keys();
    let listed = keys.list(&admin.organization.id, page).await;
    listed.map_err(store_error)
}

/// Errors: 404.
pub async fn get(state: &State, admin: &Admin, id: &str) -> Result<OwnedAdminKey, ApiError> {
    let key_id = KeyId::parse(id).map_err(|_| unknown(id))?;
    let keys = state.store.admin_keys();
    let found = keys.find(&admin.organization.id, &key_id).await;
    found.map_err(store_error)?.ok_or_else(|| unknown(id))
}

/// Makes a key that belongs to whom the caller's belongs to, and its secret.
pub async fn create(
    state: &State,
    admin: &Admin,
    order: AdminKeyOrder,
) -> Result<(OwnedAdminKey, String), ApiError> {
    let secret = new_secret(state, KeyKind::Admin);
    let now = state.now();
    let key = AdminKey {
        id: KeyId::mint(state.entropy()),
        organization_id: admin.organization.id.clone(),
        name: order.name,
        hmac: secret.hmac,
        redacted: secret.redacted,
        owner: admin.user.as_ref().map(|user| user.id.clone()),
        created_at: now,
        expires_at: order.expires_in_s.map(|seconds| now.plus_s(seconds)),
        last_used_at: None,
        revoked_at: None,
    };
    let details = json!({"data": {"name": key.name, "scopes": ["api.management.write"]}});
    let event = event(AuditKind::ApiKeyCreated, &key.id, details);
    let entry = entry(state, admin, None, event);
    let inserted = state.store.admin_keys().insert(&key, &entry).await;
    inserted.map_err(store_error)?;
    let owner = admin.user.clone();
    Ok((OwnedAdminKey { key, owner }, secret.value))
}

/// Errors: 404.
pub async fn delete(state: &State, admin: &Admin, id: &str) -> Result<(), ApiError> {
    let key_id = KeyId::parse(id).map_err(|_| unknown(id))?;
    let event = event(AuditKind::ApiKeyDeleted, &key_id, json!({}));
    let entry = entry(state, admin, None, event);
    let revoked = state.store.admin_keys().revoke(&key_id, &entry).await;
    let is_revoked = revoked.map_err(store_error)?;
    is_revoked.then_some(()).ok_or_else(|| unknown(id))
}

fn unknown(id: &str) -> ApiError {
    absent("admin API key", id, "key_id")
}
