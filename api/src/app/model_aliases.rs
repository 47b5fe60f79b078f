//! Other names for models. A model goes before an alias of its name, and an alias never stands for another one.

use domain::model_alias::{MAX_ALIASES, ModelAlias};
use domain::page::Page;
use domain::project::Project;
use store::StoreError;

use super::models::{find_model, find_named};
use super::store_error;
use crate::error::{ApiError, Kind};
use crate::state::State;
use crate::wire::decode::echo;
use crate::wire::model_aliases::AliasOrder;

/// Errors: 400 for a name that is taken, a model that is not there, and one alias too many.
pub async fn create(
    state: &State,
    project: &Project,
    order: AliasOrder,
) -> Result<ModelAlias, ApiError> {
    if find_model(state, project, &order.name).await?.is_some() {
        let message = format!(
            "Invalid 'id': there is a model named '{}', and an alias cannot stand before it.",
            order.name
        );
        return Err(ApiError::invalid("id", "model_exists", message));
    }
    let Some(named) = find_named(state, project, &order.model).await? else {
        let message = format!(
            "The model '{}' does not exist: an alias stands for a model of GET /v1/models.",
            echo(&order.model)
        );
        return Err(ApiError::invalid("model", "model_not_found", message));
    };
    let alias = ModelAlias {
        name: order.name,
        project_id: Some(project.id.clone()),
        model: named.name,
        created_at: state.now(),
    };
    match state.store.model_aliases().insert(&alias).await {
        Ok(true) => Ok(alias),
        Ok(false) => {
            let message = format!(
                "This project already has {MAX_ALIASES} model aliases. Please delete one that is no longer needed."
            );
            Err(ApiError::new(Kind::BadRequest, message).code("model_alias_limit"))
        }
        Err(StoreError::Conflict(_)) => {
            let message = format!(
                "Invalid 'id': the project has an alias named '{}' already. Delete it first.",
                alias.name
            );
            Err(ApiError::invalid("id", "model_alias_exists", message))
        }
        Err(error) => Err(store_error(error)),
    }
}

/// All that the project can name: its own, and the operator's.
pub async fn list(state: &State, project: &Project) -> Result<Page<ModelAlias>, ApiError> {
    let listed = state.store.model_aliases().list(&project.id).await;
    Ok(Page {
        items: listed.map_err(store_error)?,
        has_more: false,
    })
}

/// Errors: 404; 403 for one of the operator's.
pub async fn delete(state: &State, project: &Project, name: &str) -> Result<(), ApiError> {
    let aliases = state.store.model_aliases();
    if aliases
        .delete(&project.id, name)
        .await
        .map_err(store_error)?
    {
        return Ok(());
    }
    match aliases.find(&project.id, name).await.map_err(store_error)? {
        Some(_) => Err(ApiError::new(
            Kind::Forbidden,
            "This alias belongs to the installation: only its operator can remove it.",
        )),
        None => {
            let message = format!("No such model alias: {}", echo(name));
            Err(ApiError::not_found(message).param("id"))
        }
    }
}
