//! A project's permission to use another project's tuned model or checkpoint.

use crate::id::{CheckpointPermissionId, ProjectId};
use crate::time::Timestamp;

/// The project may use the model as if it were its own; it cannot delete it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointPermission {
    pub id: CheckpointPermissionId,
    /// Name of the model.
    pub model: String,
    pub project_id: ProjectId,
    pub created_at: Timestamp,
}
