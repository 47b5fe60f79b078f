//! What a new job stands on: a base model and, where it goes on from a tuned one, that one's adapter; and what its
//! own options become on it.

use domain::adapter_file::CONFIG_FILE;
use domain::base_model::BaseModel;
use domain::method::Method;
use domain::model::TunedModel;
use domain::project::Project;
use domain::x_training::{Adapter, Inherited, XTraining};

use super::models::{check_allowed, find_named, find_tuned};
use super::{objects_error, store_error};
use crate::error::ApiError;
use crate::state::State;
use crate::wire::decode::echo;
use crate::wire::x_training::{XTrainingOrder, refused};

const CONTINUE_FROM: &str = "x_training.adapter.continue_from";

/// The base model a job trains on, and its options.
pub struct Ground {
    pub base: BaseModel,
    pub x_training: XTraining,
}

/// Finds what `model` names and settles every option of the job.
/// Errors: 400 for a model that is not there, and for options that do not go with it; 403 for one that is closed to the
/// project.
pub async fn settle(
    state: &State,
    project: &Project,
    model: &str,
    order: Option<XTrainingOrder>,
    method: &Method,
) -> Result<Ground, ApiError> {
    // An alias is shown as what it stood for when the job was made.
    let own = find_named(state, project, model).await?;
    let model = own.as_ref().map_or(model, |named| &named.name);
    let named = find_tuned(state, project, model).await?;
    let base_name = named.as_ref().map_or(model, |tuned| &tuned.base_model);
    let base = find_base(state, "model", base_name).await?;
    let (mut asked, raw) = match order {
        Some(order) => (order.asked, Some(order.raw)),
        None => (Default::default(), None),
    };
    let start = match &asked.adapter.continue_from {
        Some(name) => Some(find_start(state, project, &named, &base, name).await?),
        None => named.clone(),
    };
    let inherited = match &start {
        Some(tuned) => Some(Inherited {
            adapter: configuration(state, tuned).await?,
            frozen_weights: tuned.adapter.frozen_weights,
        }),
        None => None,
    };
    asked.adapter.continue_from = start.as_ref().map(|tuned| tuned.name.clone());
    let resolved = asked
        .resolve(base.context_length, inherited)
        .map_err(refused)?;
    resolved.check_method(method).map_err(refused)?;
    let x_training = XTraining {
        asked: raw,
        resolved,
        start: start.map(|tuned| tuned.adapter),
        named_model: named.map(|tuned| tuned.name),
    };
    Ok(Ground { base, x_training })
}

/// The installed base model. Errors: 400 that names `param`.
pub(super) async fn find_base(
    state: &State,
    param: &'static str,
    name: &str,
) -> Result<BaseModel, ApiError> {
    let found = state.store.base_models().find(name).await;
    found.map_err(store_error)?.ok_or_else(|| {
        let message = format!(
            "Model {} is not available for fine-tuning or does not exist.",
            echo(name)
        );
        ApiError::invalid(param, "model_not_available", message)
    })
}

/// The tuned model that `continue_from` names: on the same base, and the only one that is named.
async fn find_start(
    state: &State,
    project: &Project,
    named: &Option<TunedModel>,
    base: &BaseModel,
    name: &str,
) -> Result<TunedModel, ApiError> {
    check_allowed(project, name)?;
    let invalid = |message: String| ApiError::invalid(CONTINUE_FROM, "invalid_value", message);
    let Some(start) = find_tuned(state, project, name).await? else {
        let message = format!("The tuned model '{}' does not exist.", echo(name));
        return Err(ApiError::invalid(
            CONTINUE_FROM,
            "model_not_available",
            message,
        ));
    };
    if start.base_model != base.name {
        return Err(invalid(format!(
            "Invalid '{CONTINUE_FROM}': {name} stands on the base model {}, not on {}.",
            start.base_model, base.name
        )));
    }
    match named {
        Some(other) if other.name != start.name => Err(invalid(format!(
            "Invalid '{CONTINUE_FROM}': 'model' names another tuned model to go on from."
        ))),
        _ => Ok(start),
    }
}

/// What the adapter in the bucket says of itself.
async fn configuration(state: &State, tuned: &TunedModel) -> Result<Adapter, ApiError> {
    let key = format!("{}/{CONFIG_FILE}", tuned.adapter.object_prefix);
    let bytes = state.objects.get_bytes(&key).await.map_err(objects_error)?;
    Adapter::from_peft(&String::from_utf8_lossy(&bytes))
        .map_err(|error| ApiError::internal(format!("{key}: {error}")))
}
