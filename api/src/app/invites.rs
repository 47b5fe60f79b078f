//! Invitations to an organisation. Nobody can accept one yet: that needs a login.

use domain::audit::AuditKind;
use domain::id::{InviteId, ProjectId};
use domain::invite::{INVITE_LIFETIME_S, Invite};
use domain::page::{Page, PageRequest};
use serde_json::json;

use super::administration::{absent, archived, entry, event};
use super::store_error;
use crate::auth::Admin;
use crate::error::ApiError;
use crate::state::State;
use crate::wire::decode::echo;
use crate::wire::invites::InviteOrder;

/// Errors: 404 for an unknown `after`.
pub async fn list(
    state: &State,
    admin: &Admin,
    page: &PageRequest,
) -> Result<Page<Invite>, ApiError> {
    let listed = state
        .store
        .invites()
        .list(&admin.organization.id, page)
        .await;
    listed.map_err(store_error)
}

/// Errors: 404.
pub async fn get(state: &State, admin: &Admin, id: &str) -> Result<Invite, ApiError> {
    let invite_id = InviteId::parse(id).map_err(|_| unknown(id))?;
    let invites = state.store.invites();
    let found = invites.find(&admin.organization.id, &invite_id).await;
    found.map_err(store_error)?.ok_or_else(|| unknown(id))
}

/// Errors: 400 for somebody who is a user already, and for a project that is not there or archived.
pub async fn create(state: &State, admin: &Admin, order: InviteOrder) -> Result<Invite, ApiError> {
    let (users, organization) = (state.store.users(), &admin.organization.id);
    let user = users.find_by_email(organization, &order.email).await;
    if let Some(user) = user.map_err(store_error)? {
        let message = format!("Invalid 'email': that is the user {} already.", user.id);
        return Err(ApiError::invalid("email", "invalid_value", message));
    }
    for (i, project) in order.projects.iter().enumerate() {
        check_project(state, admin, i, &project.id).await?;
    }
    let now = state.now();
    let invite = Invite {
        id: InviteId::mint(state.entropy()),
        organization_id: organization.clone(),
        email: order.email,
        role: order.role,
        projects: order.projects,
        created_at: now,
        expires_at: now.plus_s(INVITE_LIFETIME_S),
    };
    let details = json!({"data": {"email": invite.email, "role": invite.role}});
    let event = event(AuditKind::InviteSent, &invite.id, details);
    let entry = entry(state, admin, None, event);
    let inserted = state.store.invites().insert(&invite, &entry).await;
    inserted.map_err(store_error)?;
    Ok(invite)
}

async fn check_project(
    state: &State,
    admin: &Admin,
    i: usize,
    id: &ProjectId,
) -> Result<(), ApiError> {
    let projects = state.store.projects();
    let found = projects.find_in(&admin.organization.id, id).await;
    match found.map_err(store_error)? {
        Some(project) if project.archived_at.is_some() => {
            Err(archived(&project).param(format!("projects[{i}].id")))
        }
        Some(_) => Ok(()),
        None => {
            let param = format!("projects[{i}].id");
            let id = echo(id.as_str());
            let message = format!("Invalid '{param}': the organization has no project {id}.");
            Err(ApiError::invalid(param, "invalid_value", message))
        }
    }
}

/// Errors: 404.
pub async fn delete(state: &State, admin: &Admin, id: &str) -> Result<(), ApiError> {
    let invite_id = InviteId::parse(id).map_err(|_| unknown(id))?;
    let event = event(AuditKind::InviteDeleted, &invite_id, json!({}));
    let entry = entry(state, admin, None, event);
    let deleted = state.store.invites().delete(&invite_id, &entry).await;
    let is_deleted = deleted.map_err(store_error)?;
    is_deleted.then_some(()).ok_or_else(|| unknown(id))
}

fn unknown(id: &str) -> ApiError {
    absent("invite", id, "invite_id")
}
