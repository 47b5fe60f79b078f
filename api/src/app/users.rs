//! Users of an organisation.

use domain::audit::AuditKind;
use domain::id::UserId;
use domain::page::{Page, PageRequest};
use domain::user::{OrganizationRole, User};
use serde_json::json;
use store::StoreError;

use super::administration::{absent, entry, event};
use super::store_error;
use crate::auth::Admin;
use crate::error::{ApiError, Kind};
use crate::state::State;

/// With `emails` not empty: those of these addresses. Errors: 404 for an unknown `after`.
pub async fn list(
    state: &State,
    admin: &Admin,
    emails: &[String],
    page: &PageRequest,
) -> Result<Page<User>, ApiError> {
    let emails: Vec<String> = emails.iter().map(|email| email.to_lowercase()).collect();
    let users = state.store.users();
    let listed = users.list(&admin.organization.id, &emails, page).await;
    listed.map_err(store_error)
}

/// Errors: 404.
pub async fn get(state: &State, admin: &Admin, id: &str) -> Result<User, ApiError> {
    let user_id = UserId::parse(id).map_err(|_| unknown(id))?;
    let found = state
        .store
        .users()
        .find(&admin.organization.id, &user_id)
        .await;
    found.map_err(store_error)?.ok_or_else(|| unknown(id))
}

/// Errors: 404; 400 for the last owner.
pub async fn set_role(
    state: &State,
    admin: &Admin,
    id: &str,
    role: OrganizationRole,
) -> Result<User, ApiError> {
    let user = get(state, admin, id).await?;
    let details = json!({"changes_requested": {"role": role}});
    let event = event(AuditKind::UserUpdated, &user.id, details);
    let entry = entry(state, admin, None, event);
    let set = state.store.users().set_role(&user.id, role, &entry).await;
    let is_set = set.map_err(|error| of_owner(error, &user))?;
    is_set
        .then_some(User { role, ..user })
        .ok_or_else(|| unknown(id))
}

/// Deletes the user with its memberships; its keys open nothing any more. Errors: 404; 400 for the last owner.
pub async fn delete(state: &State, admin: &Admin, id: &str) -> Result<(), ApiError> {
    let user = get(state, admin, id).await?;
    let event = event(AuditKind::UserDeleted, &user.id, json!({}));
    let entry = entry(state, admin, None, event);
    let deleted = state.store.users().delete(&user.id, &entry).await;
    let is_deleted = deleted.map_err(|error| of_owner(error, &user))?;
    is_deleted.then_some(()).ok_or_else(|| unknown(id))
}

fn of_owner(error: StoreError, user: &User) -> ApiError {
    match error {
        StoreError::LastOwner => {
            let message = format!(
                "The user {} is the last owner of the organization: make another user an owner first.",
                user.id
            );
            ApiError::new(Kind::BadRequest, message).code("last_owner")
        }
        other => store_error(other),
    }
}

pub(super) fn unknown(id: &str) -> ApiError {
    absent("user", id, "user_id")
}
