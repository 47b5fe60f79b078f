//! Files: what is known of them, and their bytes.

mod create;

use domain::file::{File, Purpose};
use domain::id::FileId;
use domain::page::{Page, PageRequest};
use domain::project::Project;
use platform::objects::ByteStream;

use super::{objects_error, store_error};
use crate::error::ApiError;
use crate::state::State;
use crate::wire::decode::echo;

pub use create::create;

/// Errors: 404 for an unknown `after`.
pub async fn list(
    state: &State,
    project: &Project,
    purpose: Option<&str>,
    page: &PageRequest,
) -> Result<Page<File>, ApiError> {
    let purpose = match purpose {
        None => None,
        Some(text) => match Purpose::parse(text) {
            Some(purpose) => Some(purpose),
            // No file has a purpose this service does not know.
            None => {
                return Ok(Page {
                    items: Vec::new(),
                    has_more: false,
                });
            }
        },
    };
    let files = state.store.files();
    let listed = files.list(&project.id, purpose, page, state.now()).await;
    listed.map_err(store_error)
}

/// Errors: 404.
pub async fn get(state: &State, project: &Project, id: &str) -> Result<File, ApiError> {
    let file_id = FileId::parse(id).map_err(|_| unknown(id))?;
    find(state, project, &file_id)
        .await?
        .ok_or_else(|| unknown(id))
}

/// The file, unless it expired.
pub async fn find(state: &State, project: &Project, id: &FileId) -> Result<Option<File>, ApiError> {
    let found = state
        .store
        .files()
        .find(&project.id, id)
        .await
        .map_err(store_error)?;
    let now = state.now();
    Ok(found.filter(|file| file.expires_at.is_none_or(|at| at > now)))
}

/// Errors: 404. The bytes go once no live job needs them.
pub async fn delete(state: &State, project: &Project, id: &str) -> Result<FileId, ApiError> {
    let file = get(state, project, id).await?;
    let deleted = state
        .store
        .files()
        .delete(&project.id, &file.id, state.now())
        .await
        .map_err(store_error)?;
    deleted.map(|file| file.id).ok_or_else(|| unknown(id))
}

/// The file and its bytes. Errors: 404; 400 for a purpose that is not given out.
pub async fn content(
    state: &State,
    project: &Project,
    id: &str,
) -> Result<(File, ByteStream), ApiError> {
    let file = get(state, project, id).await?;
    if !file.purpose.is_downloadable() {
        let message = format!(
            "Not allowed to download files of purpose: {}",
            file.purpose.as_str()
        );
        return Err(ApiError::new(crate::error::Kind::BadRequest, message));
    }
    let bytes = state
        .objects
        .get(&file.object_key)
        .await
        .map_err(objects_error)?;
    Ok((file, bytes))
}

fn unknown(id: &str) -> ApiError {
    ApiError::not_found(format!("No such File object: {}", echo(id))).param("id")
}
