//! Which models a project can name.

use std::time::Instant;

use domain::model::{ServedModel, TunedModel};
use domain::project::Project;

use super::store_error;
use crate::error::{ApiError, Kind};
use crate::state::State;
use crate::wire::decode::echo;
use crate::wire::models::Model;

/// Base models of the installation, then the project's tuned ones, then aliases of these.
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
    let aliases = state.store.model_aliases().list(&project.id).await;
    let all = bases.into_iter().map(Model::from);
    let all = all.chain(tuned.into_iter().map(Model::from));
    let mut models: Vec<Model> = all.filter(|model| is_allowed(project, &model.id)).collect();
    let named = |name: &str| models.iter().find(|model| model.id == name);
    let aliases: Vec<Model> = aliases
        .map_err(store_error)?
        .into_iter()
        .filter(|alias| named(&alias.name).is_none())
        .filter_map(|alias| named(&alias.model).map(|model| Model::alias(alias, model)))
        .collect();
    models.extend(aliases);
    Ok(models)
}

/// Errors: 404 and 403 `model_not_found`.
pub async fn get(state: &State, project: &Project, name: &str) -> Result<Model, ApiError> {
    let found = match find_tuned(state, project, name).await? {
        Some(tuned) => Some(Model::from(tuned)),
        None => {
            let base = state.store.base_models().find(name).await;
            base.map_err(store_error)?.map(Model::from)
        }
    };
    if let Some(model) = found {
        check_allowed(project, name)?;
        return Ok(model);
    }
    let shown = list(state, project).await?.into_iter();
    let mut aliases = shown.filter(|model| model.id == name);
    aliases.next().ok_or_else(|| unknown(name))
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

/// A model that answers, and its own name: an alias is not one.
pub struct Named {
    pub name: String,
    pub served: ServedModel,
}

/// What answers under this name, which may be an alias. Errors: 403 for a model that is closed to the project.
pub async fn find_named(
    state: &State,
    project: &Project,
    name: &str,
) -> Result<Option<Named>, ApiError> {
    if let Some(served) = find_model(state, project, name).await? {
        let name = name.to_owned();
        return Ok(Some(Named { name, served }));
    }
    let aliases = state.store.model_aliases();
    let Some(alias) = aliases.find(&project.id, name).await.map_err(store_error)? else {
        return Ok(None);
    };
    // Its model may have been deleted since: then there is nothing that answers.
    let served = find_model(state, project, &alias.model).await?;
    Ok(served.map(|served| Named {
        name: alias.model,
        served,
    }))
}

fn is_allowed(project: &Project, name: &str) -> bool {
    let permissions = project.model_permissions.as_ref();
    permissions.is_none_or(|permissions| permissions.allow(name))
}

/// Errors: 403 for a model that an administrator has closed to the project.
pub fn check_allowed(project: &Project, name: &str) -> Result<(), ApiError> {
    if is_allowed(project, name) {
        return Ok(());
    }
    let (project, name) = (&project.id, echo(name));
    let message = format!("Project `{project}` does not have access to model `{name}`");
    Err(ApiError::new(Kind::Forbidden, message).code("model_not_found"))
}

/// What answers under this name, which may be an alias. Errors: 403 for a model that is closed to the project.
pub async fn find_served(
    state: &State,
    project: &Project,
    name: &str,
) -> Result<Option<ServedModel>, ApiError> {
    let named = find_named(state, project, name).await?;
    Ok(named.map(|named| named.served))
}

/// The base or tuned model of this very name. Errors: 403 for one that is closed to the project.
pub async fn find_model(
    state: &State,
    project: &Project,
    name: &str,
) -> Result<Option<ServedModel>, ApiError> {
    let served = match find_tuned(state, project, name).await? {
        Some(tuned) => ServedModel {
            base_model: tuned.base_model,
            adapter: Some(tuned.adapter),
        },
        None if is_base(state, name).await? => ServedModel {
            base_model: name.to_owned(),
            adapter: None,
        },
        None => return Ok(None),
    };
    check_allowed(project, name)?;
    Ok(Some(served))
}

/// Whether a base model of this name is installed.
async fn is_base(state: &State, name: &str) -> Result<bool, ApiError> {
    let bases = state.store.base_models();
    let known = match state.base_names.last() {
        Some(known) => known,
        None => {
            let at = Instant::now();
            let names = bases.names().await.map_err(store_error)?;
            state.base_names.keep(at, names.into_iter().collect())
        }
    };
    // It may have been installed since.
    Ok(known.contains(name) || bases.find(name).await.map_err(store_error)?.is_some())
}

/// A tuned model that the project may use, its own or one it was permitted; only names that begin as one are looked up.
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
