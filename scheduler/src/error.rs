//! Why a pass over the jobs did not get to its end. The next pass tries again.

use platform::objects::ObjectsError;
use store::{ApplyError, StoreError};

/// What stopped a pass.
#[derive(Debug, thiserror::Error)]
pub enum PassError {
    #[error("store: {0}")]
    Store(#[from] StoreError),
    #[error("objects: {0}")]
    Objects(#[from] ObjectsError),
    #[error("queue: {0}")]
    Hint(#[from] crate::hints::HintError),
}

/// Whether `apply` changed the job. A refusal is normal: somebody else was faster.
pub(crate) fn applied<T>(result: Result<T, ApplyError>) -> Result<Option<T>, StoreError> {
    match result {
        Ok(job) => Ok(Some(job)),
        Err(ApplyError::NotFound | ApplyError::Rejected(_)) => Ok(None),
        Err(ApplyError::Store(error)) => Err(error),
    }
}
