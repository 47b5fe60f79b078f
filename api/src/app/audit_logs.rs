//! What administrators did.

use domain::audit::AuditEntry;
use domain::page::Page;
use store::{AuditFilter, AuditPage};

use super::store_error;
use crate::auth::Admin;
use crate::error::ApiError;
use crate::state::State;

/// Newest first. Errors: 404 for an unknown `after` or `before`.
pub async fn list(
    state: &State,
    admin: &Admin,
    filter: &AuditFilter,
    page: &AuditPage,
) -> Result<Page<AuditEntry>, ApiError> {
    let audit = state.store.audit();
    let listed = audit.list(&admin.organization.id, filter, page).await;
    listed.map_err(store_error)
}
