//! Which models a project may name, as its administrators set it.

use domain::audit::AuditKind;
use domain::model_permissions::{ModelPermissions, PermissionMode};
use serde_json::json;

use super::administration::{absent, entry, event, live_project, project};
use super::store_error;
use crate::auth::Admin;
use crate::error::ApiError;
use crate::state::State;

/// Errors: 404.
pub async fn get(state: &State, admin: &Admin, id: &str) -> Result<ModelPermissions, ApiError> {
    let found = project(state, admin, id).await?;
    // No policy is one that denies nothing.
    Ok(found.model_permissions.unwrap_or(ModelPermissions {
        mode: PermissionMode::DenyList,
        model_ids: Vec::new(),
    }))
}

/// `None`: the project may name every model again. Errors: 404; 400 for an archived project.
pub async fn set(
    state: &State,
    admin: &Admin,
    id: &str,
    permissions: Option<&ModelPermissions>,
) -> Result<(), ApiError> {
    let found = live_project(state, admin, id).await?;
    let details = json!({"changes_requested": {"model_permissions": permissions}});
    let event = event(AuditKind::ProjectUpdated, &found.id, details);
    let entry = entry(state, admin, Some(&found), event);
    let projects = state.store.projects();
    let set = projects
        .set_model_permissions(&found.id, permissions, &entry)
        .await;
    let is_set = set.map_err(store_error)?;
    is_set
        .then_some(())
        .ok_or_else(|| absent("project", id, "project_id"))
}
