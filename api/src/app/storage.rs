//! How much a project may store: what it may still bring is known before its bytes are taken, and counted when they are there.

use domain::project::Project;

use super::store_error;
use crate::error::{ApiError, Kind};
use crate::state::State;

/// What a form may have beside the bytes of its file. Bytes.
const OF_FORM: u64 = 64 * 1024;

/// How a project's storage stands. Bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Storage {
    pub limit: u64,
    pub stored: u64,
}

/// What the project may store. Bytes.
pub fn limit(state: &State, project: &Project) -> u64 {
    project.caps.stored_bytes.unwrap_or(state.max_stored_bytes)
}

/// Errors: 503.
pub async fn of_project(state: &State, project: &Project) -> Result<Storage, ApiError> {
    let stored = state.store.files().stored_bytes(&project.id, state.now());
    Ok(Storage {
        limit: limit(state, project),
        stored: stored.await.map_err(store_error)?,
    })
}

impl Storage {
    pub fn left(self) -> u64 {
        self.limit.saturating_sub(self.stored)
    }

    /// Errors: 400 where `n_bytes` more find no room.
    pub fn check(self, n_bytes: u64) -> Result<(), ApiError> {
        match n_bytes <= self.left() {
            true => Ok(()),
            false => Err(self.exceeded()),
        }
    }

    /// As [`Storage::check`], of a form that will be so long; one that does not say is read. Errors: 400.
    pub fn check_form(self, content_length: Option<u64>) -> Result<(), ApiError> {
        let at_least = content_length.unwrap_or(0).saturating_sub(OF_FORM);
        // Whatever there is has bytes.
        self.check(at_least.max(1))
    }

    /// 400, not 413: the file is not too large, and an SDK does not send it again.
    pub fn exceeded(self) -> ApiError {
        let message = format!(
            "This project may store {} bytes of files, and {} are stored: there is no room for this one. Please delete files, or ask an \
             administrator for a higher x_max_stored_bytes.",
            self.limit, self.stored
        );
        ApiError::new(Kind::BadRequest, message).code("storage_limit_exceeded")
    }
}
