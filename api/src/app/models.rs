//! Which models a project can name.

use domain::model::{ServedModel, TunedModel};
use domain::project::Project;

use super::store_error;
use crate::error::{ApiError, Kind};
use crate::state::State;
use crate::wire::decode::echo;
use crate::wire::models::Model;

/// Base models of the installation, then the project's tuned ones.
pub async fn list(state: &State, project: &Project) -> Result<Vec<Model>, ApiError> {
    let bases = state
        .store
        .base_models()
        .list()
        .await
        .map_err(store_error)?;
    let tuned = state
        .store
        .models()
        .list(&project.id)
        .await
        .map_err(store_error)?;
    Ok(bases
        .into_iter()
        .map(Model::from)
        .chain(tuned.into_iter().map(Model::from))
        .collect())
}

/// Errors: 404 `model_not_found`.
pub async fn get(state: &State, project: &Project, name: &str) -> Result<Model, ApiError> {
    if let Some(tuned) = find_tuned(state, project, name).await? {
        return Ok(tuned.into());
    }
    let base = state
        .store
        .base_models()
        .find(name)
        .await
        .map_err(store_error)?;
    base.map(Model::from).ok_or_else(|| unknown(name))
}

/// Deletes a tuned model of the project. Errors: 403 for a base model, 404 `model_not_found`.
pub async fn delete(state: &State, project: &Project, name: &str) -> Result<(), ApiError> {
    if state
        .store
        .models()
        .delete(&project.id, name, state.now())
        .await
        .map_err(store_error)?
    {
        return Ok(());
    }
    match state
        .store
        .base_models()
        .find(name)
        .await
        .map_err(store_error)?
    {
        Some(_) => Err(ApiError::new(
            Kind::Forbidden,
            "A base model belongs to the installation: only its operator can remove it.",
        )),
        None => Err(unknown(name)),
    }
}

/// What answers under this name.
pub async fn find_served(
    state: &State,
    project: &Project,
    name: &str,
) -> Result<Option<ServedModel>, ApiError> {
    if let Some(tuned) = find_tuned(state, project, name).await? {
        return Ok(Some(ServedModel {
            base_model: tuned.base_model,
            adapter: Some(tuned.adapter),
        }));
    }
    let base = state
        .store
        .base_models()
        .find(name)
        .await
        .map_err(store_error)?;
    Ok(base.map(|base| ServedModel {
        base_model: base.name,
        adapter: None,
    }))
}

/// A tuned model of the project; only names that begin as one are looked up.
pub async fn find_tuned(
    state: &State,
    project: &Project,
    name: &str,
) -> Result<Option<TunedModel>, ApiError> {
    if !name.starts_with("ft:") {
        return Ok(None);
    }
    state
        .store
        .models()
        .find(&project.id, name)
        .await
        .map_err(store_error)
}

/// The model routes' 404.
pub fn unknown(name: &str) -> ApiError {
    ApiError::not_found(format!("The model '{}' does not exist", echo(name)))
        .param("model")
        .code("model_not_found")
}
