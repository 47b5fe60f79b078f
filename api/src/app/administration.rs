//! What the operations of administrators share: the project they are about, and the entry that tells of them.

use std::fmt::Display;

use domain::api_key::KeyKind;
use domain::audit::{Actor, ActorUser, AuditEntry, AuditEvent, AuditKind, AuditProject};
use domain::id::{AuditLogId, ProjectId};
use domain::project::Project;
use serde_json::Value;

use super::store_error;
use crate::auth::{Admin, NewSecret};
use crate::error::{ApiError, Kind};
use crate::state::State;
use crate::wire::decode::echo;

/// What was done, to what; `details` as OpenAI shows them beside the id.
pub fn event(kind: AuditKind, resource: impl Display, details: Value) -> AuditEvent {
    AuditEvent {
        kind,
        resource_id: resource.to_string(),
        details,
    }
}

/// The entry of an operation that happens now, perhaps in a project.
pub fn entry(
    state: &State,
    admin: &Admin,
    project: Option<&Project>,
    event: AuditEvent,
) -> AuditEntry {
    let user = admin.user.as_ref().map(|user| ActorUser {
        id: user.id.clone(),
        email: user.email.clone(),
    });
    AuditEntry {
        id: AuditLogId::mint(state.entropy()),
        organization_id: admin.organization.id.clone(),
        effective_at: state.now(),
        actor: Some(Actor {
            key_id: admin.key_id.clone(),
            user,
            ip: admin.ip.clone(),
        }),
        project: project.map(|project| AuditProject {
            id: project.id.clone(),
            name: project.name.clone(),
        }),
        event,
    }
}

/// A new secret, to be shown once.
pub fn new_secret(state: &State, kind: KeyKind) -> NewSecret {
    NewSecret::mint(&state.key_pepper, kind)
}

/// A project of the organisation, perhaps an archived one. Errors: 404.
pub async fn project(state: &State, admin: &Admin, id: &str) -> Result<Project, ApiError> {
    let unknown = || absent("project", id, "project_id");
    let project_id = ProjectId::parse(id).map_err(|_| unknown())?;
    let projects = state.store.projects();
    let found = projects.find_in(&admin.organization.id, &project_id).await;
    found.map_err(store_error)?.ok_or_else(unknown)
}

/// A project of the organisation that can be changed. Errors: 404; 400 for an archived one.
pub async fn live_project(state: &State, admin: &Admin, id: &str) -> Result<Project, ApiError> {
    let project = project(state, admin, id).await?;
    if project.archived_at.is_some() {
        return Err(archived(&project));
    }
    Ok(project)
}

/// 400: an archived project cannot be used or changed.
pub fn archived(project: &Project) -> ApiError {
    let message = format!(
        "The project {} is archived: it cannot be used or changed any more.",
        project.id
    );
    ApiError::new(Kind::BadRequest, message).code("project_archived")
}

/// 404: the organisation has no such thing.
pub fn absent(what: &str, id: &str, param: &'static str) -> ApiError {
    ApiError::not_found(format!("No such {what} in this organization: {}", echo(id))).param(param)
}
