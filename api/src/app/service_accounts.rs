//! Service accounts of a project, and their keys.

use domain::api_key::{ApiKey, KeyKind, KeyOwner};
use domain::audit::AuditKind;
use domain::id::{KeyId, ServiceAccountId};
use domain::page::{Page, PageRequest};
use domain::project::Project;
use domain::scope::Scopes;
use domain::service_account::{ServiceAccount, ServiceAccountRole};
use serde_json::json;
use store::ServiceAccountChange;

use super::administration::{absent, entry, event, live_project, new_secret};
use super::store_error;
use crate::auth::Admin;
use crate::error::ApiError;
use crate::state::State;
use crate::wire::service_accounts::{ServiceAccountKeyOrder, ServiceAccountOrder};

/// What a key is called that nobody named.
const KEY_NAME: &str = "Secret Key";

/// A key and its secret.
pub struct NewKey {
    pub key: ApiKey,
    pub secret: String,
}

/// Errors: 404, for an unknown `after`, too; 400 for an archived project.
pub async fn list(
    state: &State,
    admin: &Admin,
    project_id: &str,
    page: &PageRequest,
) -> Result<Page<ServiceAccount>, ApiError> {
    let project = live_project(state, admin, project_id).await?;
    let listed = state.store.service_accounts().list(&project.id, page).await;
    listed.map_err(store_error)
}

/// Errors: 404; 400 for an archived project.
pub async fn get(
    state: &State,
    admin: &Admin,
    project_id: &str,
    id: &str,
) -> Result<ServiceAccount, ApiError> {
    let project = live_project(state, admin, project_id).await?;
    find(state, &project, id).await
}

async fn find(state: &State, project: &Project, id: &str) -> Result<ServiceAccount, ApiError> {
    let account_id = ServiceAccountId::parse(id).map_err(|_| unknown(id))?;
    let accounts = state.store.service_accounts();
    let found = accounts.find(&project.id, &account_id).await;
    found.map_err(store_error)?.ok_or_else(|| unknown(id))
}

/// Makes an account, and its first key unless it is to have none. Errors: 404; 400 for an archived project.
pub async fn create(
    state: &State,
    admin: &Admin,
    project_id: &str,
    order: ServiceAccountOrder,
) -> Result<(ServiceAccount, Option<NewKey>), ApiError> {
    let project = live_project(state, admin, project_id).await?;
    let (name, role, first_key) = match order {
        ServiceAccountOrder::WithKey { name, expires_in_s } => {
            let key = ServiceAccountKeyOrder {
                name: None,
                scopes: Scopes::All,
                expires_in_s,
            };
            (name, ServiceAccountRole::Member, Some(key))
        }
        ServiceAccountOrder::Alone { name } => (name, ServiceAccountRole::None, None),
    };
    let account = ServiceAccount {
        id: ServiceAccountId::mint(state.entropy()),
        project_id: project.id.clone(),
        name,
        role,
        created_at: state.now(),
    };
    let new = first_key.map(|order| new_key(state, &account, order));
    let key = new.as_ref().map(|new| &new.key);
    let details = json!({"data": {"role": role.as_str(), "name": account.name, "api_key_id": key.map(|k| k.id.as_str())}});
    let event = event(AuditKind::ServiceAccountCreated, &account.id, details);
    let entry = entry(state, admin, Some(&project), event);
    let accounts = state.store.service_accounts();
    let inserted = accounts.insert(&account, key, &entry).await;
    inserted.map_err(store_error)?;
    Ok((account, new))
}

/// Errors: 404; 400 for an archived project.
pub async fn update(
    state: &State,
    admin: &Admin,
    project_id: &str,
    id: &str,
    wanted: ServiceAccountChange,
) -> Result<ServiceAccount, ApiError> {
    let project = live_project(state, admin, project_id).await?;
    let account_id = ServiceAccountId::parse(id).map_err(|_| unknown(id))?;
    let details = json!({"changes_requested": {"name": wanted.name, "role": wanted.role}});
    let event = event(AuditKind::ServiceAccountUpdated, &account_id, details);
    let entry = entry(state, admin, Some(&project), event);
    let accounts = state.store.service_accounts();
    let modified = accounts.modify(&project.id, &account_id, wanted, &entry);
    let modified = modified.await.map_err(store_error)?;
    modified.ok_or_else(|| unknown(id))
}

/// Its keys open nothing any more. Errors: 404; 400 for an archived project.
pub async fn delete(
    state: &State,
    admin: &Admin,
    project_id: &str,
    id: &str,
) -> Result<(), ApiError> {
    let project = live_project(state, admin, project_id).await?;
    let account_id = ServiceAccountId::parse(id).map_err(|_| unknown(id))?;
    let event = event(AuditKind::ServiceAccountDeleted, &account_id, json!({}));
    let entry = entry(state, admin, Some(&project), event);
    let accounts = state.store.service_accounts();
    let deleted = accounts.delete(&project.id, &account_id, &entry).await;
    let is_deleted = deleted.map_err(store_error)?;
    is_deleted.then_some(()).ok_or_else(|| unknown(id))
}

/// Makes a further key. Errors: 404; 400 for an archived project.
pub async fn create_key(
    state: &State,
    admin: &Admin,
    project_id: &str,
    id: &str,
    order: ServiceAccountKeyOrder,
) -> Result<NewKey, ApiError> {
    let project = live_project(state, admin, project_id).await?;
    let account = find(state, &project, id).await?;
    let new = new_key(state, &account, order);
    let scopes = new.key.scopes.to_names();
    let details = json!({"data": {"name": new.key.name, "scopes": scopes}});
    let event = event(AuditKind::ApiKeyCreated, &new.key.id, details);
    let entry = entry(state, admin, Some(&project), event);
    let inserted = state.store.api_keys().insert(&new.key, &entry).await;
    inserted.map_err(store_error)?;
    Ok(new)
}

fn new_key(state: &State, account: &ServiceAccount, order: ServiceAccountKeyOrder) -> NewKey {
    let secret = new_secret(state, KeyKind::ServiceAccount);
    let now = state.now();
    let key = ApiKey {
        id: KeyId::mint(state.entropy()),
        project_id: account.project_id.clone(),
        name: order.name.unwrap_or_else(|| KEY_NAME.to_owned()),
        hmac: secret.hmac,
        redacted: secret.redacted,
        scopes: order.scopes,
        owner: KeyOwner::ServiceAccount(account.id.clone()),
        created_at: now,
        expires_at: order.expires_in_s.map(|seconds| now.plus_s(seconds)),
        last_used_at: None,
        revoked_at: None,
    };
    NewKey {
        key,
        secret: secret.value,
    }
}

fn unknown(id: &str) -> ApiError {
    absent("service account", id, "service_account_id")
}
