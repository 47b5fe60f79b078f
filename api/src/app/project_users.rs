//! Members of a project.

use domain::audit::AuditKind;
use domain::id::UserId;
use domain::page::{Page, PageRequest};
use domain::project::Project;
use domain::project_user::{ProjectRole, ProjectUser};
use domain::user::User;
use serde_json::json;
use store::StoreError;

use super::administration::{entry, event, live_project};
use super::store_error;
use super::users::unknown;
use crate::auth::Admin;
use crate::error::ApiError;
use crate::state::State;
use crate::wire::decode::echo;
use crate::wire::project_users::{NamedUser, ProjectUserOrder};

/// Errors: 404, for an unknown `after`, too; 400 for an archived project.
pub async fn list(
    state: &State,
    admin: &Admin,
    project_id: &str,
    page: &PageRequest,
) -> Result<Page<ProjectUser>, ApiError> {
    let project = live_project(state, admin, project_id).await?;
    let listed = state.store.project_users().list(&project.id, page).await;
    listed.map_err(store_error)
}

/// Errors: 404; 400 for an archived project.
pub async fn get(
    state: &State,
    admin: &Admin,
    project_id: &str,
    id: &str,
) -> Result<ProjectUser, ApiError> {
    let project = live_project(state, admin, project_id).await?;
    find(state, &project, id).await
}

async fn find(state: &State, project: &Project, id: &str) -> Result<ProjectUser, ApiError> {
    let user_id = UserId::parse(id).map_err(|_| unknown(id))?;
    let members = state.store.project_users();
    let found = members.find(&project.id, &user_id).await;
    found.map_err(store_error)?.ok_or_else(|| unknown(id))
}

/// Makes a user of the organisation a member. Errors: 404; 400 for an archived project, for somebody who is not of the
/// organisation, and for a member.
pub async fn add(
    state: &State,
    admin: &Admin,
    project_id: &str,
    order: ProjectUserOrder,
) -> Result<ProjectUser, ApiError> {
    let project = live_project(state, admin, project_id).await?;
    let member = ProjectUser {
        project_id: project.id.clone(),
        user: named(state, admin, &order.user).await?,
        role: order.role,
        added_at: state.now(),
    };
    let details = json!({"data": {"role": member.role}});
    let event = event(AuditKind::UserAdded, &member.user.id, details);
    let entry = entry(state, admin, Some(&project), event);
    let inserted = state.store.project_users().insert(&member, &entry).await;
    inserted.map_err(|error| match error {
        StoreError::Conflict(_) => {
            let message = format!(
                "The user {} is a member of the project {} already.",
                member.user.id, project.id
            );
            ApiError::invalid(order.user.param(), "invalid_value", message)
        }
        other => store_error(other),
    })?;
    Ok(member)
}

async fn named(state: &State, admin: &Admin, user: &NamedUser) -> Result<User, ApiError> {
    let (users, organization) = (state.store.users(), &admin.organization.id);
    let found = match user {
        NamedUser::Id(id) => match UserId::parse(id) {
            Ok(id) => users.find(organization, &id).await.map_err(store_error)?,
            Err(_) => None,
        },
        NamedUser::Email(email) => {
            let found = users
                .find_by_email(organization, &email.to_lowercase())
                .await;
            found.map_err(store_error)?
        }
    };
    found.ok_or_else(|| {
        let (param, text) = (user.param(), echo(user.as_str()));
        let message = format!("Invalid '{param}': the organization has no user {text}.");
        ApiError::invalid(param, "invalid_value", message)
    })
}

/// Errors: 404; 400 for an archived project.
pub async fn set_role(
    state: &State,
    admin: &Admin,
    project_id: &str,
    id: &str,
    role: ProjectRole,
) -> Result<ProjectUser, ApiError> {
    let project = live_project(state, admin, project_id).await?;
    let member = find(state, &project, id).await?;
    let user_id = &member.user.id;
    let details = json!({"changes_requested": {"role": role}});
    let event = event(AuditKind::UserUpdated, user_id, details);
    let entry = entry(state, admin, Some(&project), event);
    let members = state.store.project_users();
    let set = members.set_role(&project.id, user_id, role, &entry).await;
    let is_set = set.map_err(store_error)?;
    let member = ProjectUser { role, ..member };
    is_set.then_some(member).ok_or_else(|| unknown(id))
}

/// The user's keys of this project open nothing any more. Errors: 404; 400 for an archived project.
pub async fn delete(
    state: &State,
    admin: &Admin,
    project_id: &str,
    id: &str,
) -> Result<(), ApiError> {
    let project = live_project(state, admin, project_id).await?;
    let user_id = UserId::parse(id).map_err(|_| unknown(id))?;
    let event = event(AuditKind::UserDeleted, &user_id, json!({}));
    let entry = entry(state, admin, Some(&project), event);
    let members = state.store.project_users();
    let deleted = members.delete(&project.id, &user_id, &entry).await;
    let is_deleted = deleted.map_err(store_error)?;
    is_deleted.then_some(()).ok_or_else(|| unknown(id))
}
