//! What a project may spend in a month, as its administrators set it.

use domain::audit::AuditKind;
use domain::project::{Caps, Project};
use serde_json::json;

use super::administration::{absent, entry, event, live_project, project};
use super::{spending, store_error};
use crate::auth::Admin;
use crate::error::ApiError;
use crate::state::State;
use crate::wire::spend_limits::{SpendLimitObject, SpendLimitOrder};

/// Errors: 404 for the project, and where it has no limit.
pub async fn get(state: &State, admin: &Admin, id: &str) -> Result<SpendLimitObject, ApiError> {
    let found = project(state, admin, id).await?;
    let cents = limit_of(&found)?;
    shown(state, &found, cents).await
}

/// Errors: 404; 400 for an archived project.
pub async fn set(
    state: &State,
    admin: &Admin,
    id: &str,
    order: SpendLimitOrder,
) -> Result<SpendLimitObject, ApiError> {
    let found = live_project(state, admin, id).await?;
    let cents = order.threshold_amount;
    change(state, admin, &found, Some(cents)).await?;
    shown(state, &found, cents).await
}

/// Errors: 404 for the project, and where it has no limit; 400 for an archived project.
pub async fn delete(state: &State, admin: &Admin, id: &str) -> Result<(), ApiError> {
    let found = live_project(state, admin, id).await?;
    limit_of(&found)?;
    change(state, admin, &found, None).await
}

async fn change(
    state: &State,
    admin: &Admin,
    project: &Project,
    cents: Option<u64>,
) -> Result<(), ApiError> {
    let wanted = cents
        .map(|cents| json!({"threshold_amount": cents, "currency": "USD", "interval": "month"}));
    let details = json!({"changes_requested": {"spend_limit": wanted}});
    let event = event(AuditKind::ProjectUpdated, &project.id, details);
    let entry = entry(state, admin, Some(project), event);
    let projects = state.store.projects();
    let set = projects.set_spend_limit(&project.id, cents, &entry).await;
    let is_set = set.map_err(store_error)?;
    is_set
        .then_some(())
        .ok_or_else(|| absent("project", project.id.as_str(), "project_id"))
}

fn limit_of(project: &Project) -> Result<u64, ApiError> {
    let cents = project.caps.spend_limit_cents;
    cents.ok_or_else(|| {
        let message = format!(
            "The project {id} has no spend limit: POST /v1/organization/projects/{id}/spend_limit sets one.",
            id = project.id
        );
        ApiError::not_found(message).param("project_id")
    })
}

/// With how it stands: counted anew.
async fn shown(state: &State, project: &Project, cents: u64) -> Result<SpendLimitObject, ApiError> {
    let spent = spending::count(state, project, state.now()).await?;
    let caps = Caps {
        spend_limit_cents: Some(cents),
        ..project.caps
    };
    let is_reached = caps
        .spend_limit()
        .is_some_and(|limit| spent.total() >= limit);
    Ok(SpendLimitObject::new(cents, is_reached))
}
