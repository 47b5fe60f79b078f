//! Which models a project may name, as administrators see and order it.

use domain::model_permissions::{ModelPermissions, PermissionMode};
use poem_openapi::Object;

use super::decode::{At, Fields};
use super::reply::reply;
use crate::body::Decode;
use crate::error::ApiError;

/// Most models on a list.
const MAX_MODELS: usize = 1000;
/// Longest name of a model. Characters.
const MAX_MODEL: usize = 512;

reply! {
    /// Which models a project may name.
    ModelPermissionsObject as "ProjectModelPermissions" {
        /// `project.model_permissions`.
        object: &'static str,
        /// `allow_list`: these and no others; `deny_list`: all but these.
        mode: &'static str,
        model_ids: Vec<String>,
    }

    /// The project may name every model again.
    ModelPermissionsDeleted as "ProjectModelPermissionsDeleted" {
        /// `project.model_permissions.deleted`.
        object: &'static str,
        deleted: bool,
    }
}

impl From<ModelPermissions> for ModelPermissionsObject {
    fn from(permissions: ModelPermissions) -> Self {
        Self {
            object: "project.model_permissions",
            mode: permissions.mode.as_str(),
            model_ids: permissions.model_ids,
        }
    }
}

/// The body that sets which models a project may name.
#[derive(Debug, Clone, PartialEq, Object)]
pub struct ModelPermissionsRequest {
    /// `allow_list` or `deny_list`.
    pub mode: String,
    /// Names of base models and tuned ones; at most 1000.
    pub model_ids: Vec<String>,
}

/// What was ordered.
pub struct ModelPermissionsOrder(pub ModelPermissions);

impl Decode for ModelPermissionsOrder {
    type Schema = ModelPermissionsRequest;

    fn decode(mut body: Fields) -> Result<Self, ApiError> {
        let mode = body.require("mode")?;
        let mode = mode.word(PermissionMode::WORDS, PermissionMode::parse)?;
        let ids = body.require("model_ids")?.items(0, MAX_MODELS)?;
        let name = |at: At| at.name(MAX_MODEL);
        let model_ids = ids.into_iter().map(name).collect::<Result<_, _>>()?;
        body.finish()?;
        Ok(Self(ModelPermissions { mode, model_ids }))
    }
}
