//! Permissions on tuned models as administrators see and order them.

use domain::checkpoint_permission::CheckpointPermission;
use poem_openapi::Object;

use super::decode::{At, Fields};
use super::list::Listed;
use super::reply::reply;
use crate::body::Decode;
use crate::error::ApiError;

/// Most projects that are granted a model at a time.
const MAX_PROJECTS: usize = 100;

reply! {
    /// A project may use another project's tuned model.
    CheckpointPermissionObject as "FineTuningCheckpointPermission" {
        id: String,
        /// `checkpoint.permission`.
        object: &'static str,
        /// Unix seconds.
        created_at: i64,
        project_id: String,
    }
}

impl From<CheckpointPermission> for CheckpointPermissionObject {
    fn from(permission: CheckpointPermission) -> Self {
        Self {
            id: permission.id.to_string(),
            object: "checkpoint.permission",
            created_at: permission.created_at.unix_s(),
            project_id: permission.project_id.to_string(),
        }
    }
}

impl Listed for CheckpointPermissionObject {
    fn id(&self) -> &str {
        &self.id
    }
}

/// The body that grants a model.
#[derive(Debug, Clone, PartialEq, Object)]
pub struct CheckpointPermissionRequest {
    /// 1–100 projects of the organization.
    pub project_ids: Vec<String>,
}

impl Decode for CheckpointPermissionRequest {
    type Schema = Self;

    fn decode(mut body: Fields) -> Result<Self, ApiError> {
        let ids = body.require("project_ids")?.items(1, MAX_PROJECTS)?;
        let project_ids = ids.into_iter().map(At::string).collect::<Result<_, _>>()?;
        body.finish()?;
        Ok(Self { project_ids })
    }
}
