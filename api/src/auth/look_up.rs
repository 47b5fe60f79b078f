//! A key that is not cached: what the database knows of it.

use std::sync::Arc;

use domain::api_key::{KeyKind, OwnerAccess};
use domain::scope::Scopes;
use domain::user::OrganizationRole;

use super::{Admin, Caller, Known, Principal};
use crate::access;
use crate::app::store_error;
use crate::error::{ApiError, Kind};
use crate::state::State;

/// The key with this HMAC, unless it is revoked. Errors: 401 where its project is archived or its owner is gone, 403
/// where its owner may nothing.
pub async fn by_hmac(state: &State, kind: KeyKind, hmac: &str) -> Result<Option<Known>, ApiError> {
    match kind {
        KeyKind::Project | KeyKind::ServiceAccount => of_project(state, hmac).await,
        KeyKind::Admin => of_administrator(state, hmac).await,
    }
}

async fn of_project(state: &State, hmac: &str) -> Result<Option<Known>, ApiError> {
    let keys = state.store.api_keys();
    let Some(found) = keys.find_by_hmac(hmac).await.map_err(store_error)? else {
        return Ok(None);
    };
    if found.project.archived_at.is_some() {
        return Err(archived(found.project.id.as_str()));
    }
    match found.access {
        OwnerAccess::Active => {}
        OwnerAccess::Removed => return Err(ownerless()),
        OwnerAccess::NoRole => return Err(access::no_role()),
    }
    let key = found.key;
    if let Err(error) = keys.touch(&key.id, state.now()).await {
        tracing::warn!(key = %key.id, %error, "the key's last use was not noted");
    }
    Ok(Some(Known {
        principal: Principal::Project(Caller {
            project: Arc::new(found.project),
            key_id: key.id,
            expires_at: key.expires_at,
        }),
        scopes: key.scopes,
    }))
}

async fn of_administrator(state: &State, hmac: &str) -> Result<Option<Known>, ApiError> {
    let keys = state.store.admin_keys();
    let Some(found) = keys.find_by_hmac(hmac).await.map_err(store_error)? else {
        return Ok(None);
    };
    let key = found.key;
    let is_owner = |user: &domain::user::User| user.role == OrganizationRole::Owner;
    if key.owner.is_some() && !found.owner.as_ref().is_some_and(is_owner) {
        return Err(access::not_an_owner());
    }
    if let Err(error) = keys.touch(&key.id, state.now()).await {
        tracing::warn!(key = %key.id, %error, "the key's last use was not noted");
    }
    Ok(Some(Known {
        principal: Principal::Admin(Admin {
            organization: Arc::new(found.organization),
            key_id: key.id,
            user: found.owner,
            expires_at: key.expires_at,
            ip: String::new(),
        }),
        scopes: Scopes::All,
    }))
}

fn archived(project: &str) -> ApiError {
    let message = format!(
        "The project {project} of this API key is archived: its keys open nothing any more. Use a key of another project."
    );
    ApiError::new(Kind::Unauthorized, message).code("project_archived")
}

fn ownerless() -> ApiError {
    let message =
        "The owner of this API key is no longer a member of the project. Use a key of a member.";
    ApiError::new(Kind::Unauthorized, message).code("invalid_api_key")
}
