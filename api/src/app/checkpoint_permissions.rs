//! Which other projects of the organisation may use a tuned model.

use domain::audit::AuditKind;
use domain::checkpoint_permission::CheckpointPermission;
use domain::id::{CheckpointPermissionId, ProjectId};
use domain::model::TunedModel;
use domain::page::{Page, PageRequest};
use serde_json::json;

use super::administration::{absent, entry, event, project};
use super::models::unknown as unknown_model;
use super::store_error;
use crate::auth::Admin;
use crate::error::ApiError;
use crate::state::State;
use crate::wire::decode::echo;

/// Of one project, or of all. Errors: 404 for the model and for an unknown `after`.
pub async fn list(
    state: &State,
    admin: &Admin,
    model: &str,
    project_id: Option<&str>,
    page: &PageRequest,
) -> Result<Page<CheckpointPermission>, ApiError> {
    let model = find_model(state, admin, model).await?;
    let project = match project_id {
        None => None,
        Some(id) => Some(project(state, admin, id).await?.id),
    };
    let permissions = state.store.checkpoint_permissions();
    let listed = permissions.list(&model.name, project.as_ref(), page).await;
    listed.map_err(store_error)
}

/// What holds now, in the order asked for. Errors: 404 for the model; 400 for a project that is not there, archived, or
/// the model's own.
pub async fn grant(
    state: &State,
    admin: &Admin,
    model: &str,
    project_ids: Vec<String>,
) -> Result<Vec<CheckpointPermission>, ApiError> {
    let model = find_model(state, admin, model).await?;
    let mut wanted = Vec::new();
    for (i, id) in project_ids.iter().enumerate() {
        let project = receiver(state, admin, &model, i, id).await?;
        let permission = CheckpointPermission {
            id: CheckpointPermissionId::mint(state.entropy()),
            model: model.name.clone(),
            project_id: project.id.clone(),
            created_at: state.now(),
        };
        let data = json!({"project_id": project.id, "fine_tuned_model_checkpoint": model.name});
        let kind = AuditKind::CheckpointPermissionCreated;
        let event = event(kind, &permission.id, json!({"data": data}));
        wanted.push((permission, entry(state, admin, Some(&project), event)));
    }
    let permissions = state.store.checkpoint_permissions();
    let granted = permissions.grant(&admin.organization.id, &wanted).await;
    granted.map_err(store_error)
}

async fn receiver(
    state: &State,
    admin: &Admin,
    model: &TunedModel,
    i: usize,
    id: &str,
) -> Result<domain::project::Project, ApiError> {
    let invalid = |reason: &str| {
        let (param, id) = (format!("project_ids[{i}]"), echo(id));
        let message = format!("Invalid '{param}': {reason} {id}.");
        ApiError::invalid(param, "invalid_value", message)
    };
    let unknown = || invalid("the organization has no project");
    let project_id = ProjectId::parse(id).map_err(|_| unknown())?;
    let projects = state.store.projects();
    let found = projects.find_in(&admin.organization.id, &project_id).await;
    let project = found.map_err(store_error)?.ok_or_else(unknown)?;
    if project.archived_at.is_some() {
        return Err(invalid("this project is archived:"));
    }
    if project.id == model.project_id {
        return Err(invalid("the model belongs to this project:"));
    }
    Ok(project)
}

/// From now on the project has no such model. Errors: 404.
pub async fn revoke(state: &State, admin: &Admin, model: &str, id: &str) -> Result<(), ApiError> {
    let unknown = || absent("checkpoint permission", id, "permission_id");
    let model = find_model(state, admin, model).await?;
    let permission_id = CheckpointPermissionId::parse(id).map_err(|_| unknown())?;
    let permissions = state.store.checkpoint_permissions();
    let found = permissions.find(&model.name, &permission_id).await;
    let permission = found.map_err(store_error)?.ok_or_else(unknown)?;
    let project = project(state, admin, permission.project_id.as_str()).await?;
    let event = event(
        AuditKind::CheckpointPermissionDeleted,
        &permission_id,
        json!({}),
    );
    let entry = entry(state, admin, Some(&project), event);
    let deleted = permissions
        .delete(&model.name, &permission_id, &entry)
        .await;
    let is_deleted = deleted.map_err(store_error)?;
    is_deleted.then_some(()).ok_or_else(unknown)
}

/// A tuned model or checkpoint of any project of the organisation. Errors: 404.
async fn find_model(state: &State, admin: &Admin, name: &str) -> Result<TunedModel, ApiError> {
    let permissions = state.store.checkpoint_permissions();
    let found = permissions.find_model(&admin.organization.id, name).await;
    found
        .map_err(store_error)?
        .ok_or_else(|| unknown_model(name))
}
