//! Projects of an organisation, as its administrators see them.

use domain::audit::AuditKind;
use domain::id::ProjectId;
use domain::page::{Page, PageRequest};
use domain::project::{Caps, Project};
use serde_json::{Map, Value, json};
use store::projects::DEFAULT_PROJECT;
use store::{ProjectChange, StoreError, WhichProjects};

use super::administration::{absent, entry, event, live_project, project};
use super::store_error;
use crate::auth::Admin;
use crate::error::{ApiError, Kind};
use crate::state::State;
use crate::wire::decode::echo;
use crate::wire::projects::{X_MAX_RUNNING_JOBS, X_MAX_STORED_BYTES, X_MAX_UNFINISHED_JOBS};

/// Errors: 404 for an unknown `after`.
pub async fn list(
    state: &State,
    admin: &Admin,
    which: WhichProjects,
    page: &PageRequest,
) -> Result<Page<Project>, ApiError> {
    let projects = state.store.projects();
    let listed = projects.list_in(&admin.organization.id, which, page).await;
    listed.map_err(store_error)
}

/// Errors: 404.
pub async fn get(state: &State, admin: &Admin, id: &str) -> Result<Project, ApiError> {
    project(state, admin, id).await
}

/// Errors: 400 for a name that is taken.
pub async fn create(state: &State, admin: &Admin, name: String) -> Result<Project, ApiError> {
    let made = Project {
        id: ProjectId::mint(state.entropy()),
        organization_id: admin.organization.id.clone(),
        organization_slug: admin.organization.slug.clone(),
        name,
        created_at: state.now(),
        archived_at: None,
        model_permissions: None,
        caps: Caps::default(),
    };
    let details = json!({"data": {"name": made.name, "title": made.name}});
    let event = event(AuditKind::ProjectCreated, &made.id, details);
    let entry = entry(state, admin, Some(&made), event);
    let created = state.store.projects().create(&made, &entry).await;
    created.map_err(|error| of_name(error, &made.name))?;
    Ok(made)
}

/// Renames the project and changes its caps, as far as asked for. Errors: 404; 400 for an archived project, a new name of the
/// default one, and a name that is taken.
pub async fn modify(
    state: &State,
    admin: &Admin,
    id: &str,
    wanted: ProjectChange,
) -> Result<Project, ApiError> {
    let found = live_project(state, admin, id).await?;
    if wanted.is_empty() {
        return Ok(found);
    }
    if wanted.name.is_some() {
        refuse_default(&found, "renamed")?;
    }
    let details = json!({"changes_requested": changes(&wanted)});
    let event = event(AuditKind::ProjectUpdated, &found.id, details);
    let entry = entry(state, admin, Some(&found), event);
    let projects = state.store.projects();
    let modified = projects.modify(&found.id, &wanted, &entry).await;
    let name = wanted.name.as_deref().unwrap_or_default();
    if !modified.map_err(|error| of_name(error, name))? {
        return Err(absent("project", id, "project_id"));
    }
    Ok(wanted.of(found))
}

/// As the audit log tells of them.
fn changes(wanted: &ProjectChange) -> Map<String, Value> {
    let caps = [
        (X_MAX_STORED_BYTES, wanted.stored_bytes),
        (X_MAX_UNFINISHED_JOBS, wanted.unfinished_jobs),
        (X_MAX_RUNNING_JOBS, wanted.running_jobs),
    ];
    let title = wanted.name.as_ref();
    let title = title.map(|name| ("title".to_owned(), json!(name)));
    let caps = caps.into_iter();
    let caps = caps.filter_map(|(name, cap)| Some((name.to_owned(), json!(cap?))));
    title.into_iter().chain(caps).collect()
}

/// Closes the project for good; its keys open nothing any more. Errors: 404; 400 for an archived project and the
/// default one.
pub async fn archive(state: &State, admin: &Admin, id: &str) -> Result<Project, ApiError> {
    let found = live_project(state, admin, id).await?;
    refuse_default(&found, "archived")?;
    let event = event(AuditKind::ProjectArchived, &found.id, json!({}));
    let entry = entry(state, admin, Some(&found), event);
    let archived = state.store.projects().archive(&found.id, &entry).await;
    if !archived.map_err(store_error)? {
        return Err(absent("project", id, "project_id"));
    }
    Ok(Project {
        archived_at: Some(entry.effective_at),
        ..found
    })
}

/// The command line finds it by its name.
fn refuse_default(project: &Project, done: &str) -> Result<(), ApiError> {
    if project.name != DEFAULT_PROJECT {
        return Ok(());
    }
    let message = format!("The default project cannot be {done}.");
    Err(ApiError::new(Kind::BadRequest, message).code("default_project"))
}

fn of_name(error: StoreError, name: &str) -> ApiError {
    match error {
        StoreError::Conflict(_) => {
            let name = echo(name);
            let message = format!(
                "Invalid 'name': there is a project named '{name}' already. Choose another name, or archive that one."
            );
            ApiError::invalid("name", "invalid_value", message)
        }
        other => store_error(other),
    }
}
