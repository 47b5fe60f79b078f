//! Responses that are kept.

use std::convert::Infallible;

use domain::id::ResponseId;
use domain::page::{Page, PageRequest};
use domain::project::Project;
use domain::response::{Item, StoredResponse};

use crate::app::{cut, store_error};
use crate::error::{ApiError, Kind};
use crate::state::State;
use crate::wire::decode::echo;

/// Errors: 404.
pub async fn get(state: &State, project: &Project, id: &str) -> Result<StoredResponse, ApiError> {
    let found = state
        .store
        .responses()
        .find(&project.id, &response_id(id)?)
        .await;
    found.map_err(store_error)?.ok_or_else(|| unknown(id))
}

/// Errors: 404.
pub async fn delete(state: &State, project: &Project, id: &str) -> Result<(), ApiError> {
    let responses = state.store.responses();
    let deleted = responses.delete(&project.id, &response_id(id)?).await;
    match deleted.map_err(store_error)? {
        true => Ok(()),
        false => Err(unknown(id)),
    }
}

/// Refuses: a response is kept when it has ended. Errors: 404; 400.
pub async fn cancel(state: &State, project: &Project, id: &str) -> Result<Infallible, ApiError> {
    get(state, project, id).await?;
    let message = "Cannot cancel a synchronous response.";
    Err(ApiError::new(Kind::BadRequest, message))
}

/// The items that a response answers, those of earlier turns among them. Errors: 404 for it, and for an unknown `after`.
pub async fn input_items(
    state: &State,
    project: &Project,
    id: &str,
    page: &PageRequest,
) -> Result<Page<Item>, ApiError> {
    let stored = get(state, project, id).await?;
    cut(stored.input, page, |item| &item.id)
}

fn response_id(id: &str) -> Result<ResponseId, ApiError> {
    ResponseId::parse(id).map_err(|_| unknown(id))
}

fn unknown(id: &str) -> ApiError {
    ApiError::not_found(format!("Response with id '{}' not found.", echo(id)))
}
