//! How much a project may ask of each base model, as its administrators set it.

use domain::audit::AuditKind;
use domain::page::{Page, PageRequest};
use domain::project::Project;
use domain::rate_limit::ModelRateLimit;
use serde_json::{Map, Value, json};
use store::{RateLimitChange, StoreError};

use super::administration::{absent, entry, event, live_project, project};
use super::store_error;
use crate::auth::Admin;
use crate::error::ApiError;
use crate::state::State;
use crate::wire::project_rate_limits::{ID_PREFIX, MAX_REQUESTS, MAX_TOKENS};

/// One for each installed base model, by name. Errors: 404.
pub async fn list(
    state: &State,
    admin: &Admin,
    project_id: &str,
    page: &PageRequest,
) -> Result<Page<ModelRateLimit>, ApiError> {
    let project = project(state, admin, project_id).await?;
    let all = all(state, &project).await?;
    let model = |id: &String| id.strip_prefix(ID_PREFIX).unwrap_or_default().to_owned();
    let by_model = PageRequest {
        after: page.after.as_ref().map(model),
        ..page.clone()
    };
    let cut = Page::cut(all, &by_model, |limited| &limited.model);
    let after = || page.after.clone().unwrap_or_default();
    cut.ok_or_else(|| store_error(StoreError::UnknownAfter(after())))
}

/// Errors: 404 for the project and for a model that is not installed; 400 for an archived project.
pub async fn update(
    state: &State,
    admin: &Admin,
    project_id: &str,
    id: &str,
    wanted: RateLimitChange,
) -> Result<ModelRateLimit, ApiError> {
    let project = live_project(state, admin, project_id).await?;
    let mut all = all(state, &project).await?.into_iter();
    let found = all.find(|limited| is_id_of(id, &limited.model));
    let found = found.ok_or_else(|| absent("rate limit", id, "rate_limit_id"))?;
    let details = json!({"changes_requested": changes(wanted)});
    let event = event(AuditKind::RateLimitUpdated, id, details);
    let entry = entry(state, admin, Some(&project), event);
    let (rates, default) = (state.store.rate_limits(), state.gate.default());
    let modified = rates.modify(&project.id, &found.model, wanted, default, &entry);
    Ok(ModelRateLimit {
        limit: modified.await.map_err(store_error)?,
        ..found
    })
}

/// As the audit log tells of them.
fn changes(wanted: RateLimitChange) -> Map<String, Value> {
    let numbers = [
        (MAX_REQUESTS, wanted.requests_per_minute),
        (MAX_TOKENS, wanted.tokens_per_minute),
    ];
    let numbers = numbers.into_iter();
    let named = numbers.filter_map(|(name, number)| Some((name.to_owned(), json!(number?))));
    named.collect()
}

fn is_id_of(id: &str, model: &str) -> bool {
    id.strip_prefix(ID_PREFIX) == Some(model)
}

async fn all(state: &State, project: &Project) -> Result<Vec<ModelRateLimit>, ApiError> {
    let models = state
        .store
        .base_models()
        .list()
        .await
        .map_err(store_error)?;
    let own = state.store.rate_limits().list(&project.id).await;
    let own = own.map_err(store_error)?;
    let limit_of = |model: &str| own.iter().find(|limited| limited.model == model);
    let limits = models.into_iter().map(|model| ModelRateLimit {
        limit: limit_of(&model.name).map_or(state.gate.default(), |limited| limited.limit),
        model: model.name,
    });
    Ok(limits.collect())
}
