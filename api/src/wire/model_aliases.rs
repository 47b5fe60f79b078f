//! Other names for models, as clients order and see them.

use domain::model_alias::{ModelAlias, is_valid_alias};
use poem_openapi::Object;

use super::decode::{Fields, echo};
use super::list::Listed;
use super::reply::reply;
use crate::body::Decode;
use crate::error::ApiError;

/// The body of `POST /v1/x/model_aliases`.
#[derive(Debug, Clone, PartialEq, Object)]
pub struct CreateModelAliasRequest {
    /// 1–256 characters of `[A-Za-z0-9._:/-]`, such as `gpt-4o-mini-2024-07-18`.
    pub id: String,
    /// The model it stands for: one of `GET /v1/models`.
    pub model: String,
}

/// A new alias.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AliasOrder {
    pub name: String,
    pub model: String,
}

impl Decode for AliasOrder {
    type Schema = CreateModelAliasRequest;

    fn decode(mut body: Fields) -> Result<Self, ApiError> {
        let name = body.require("id")?.string()?;
        if !is_valid_alias(&name) {
            let message = format!(
                "Invalid 'id': expected 1 to 256 letters, digits and characters of '._:/-', but got '{}' instead.",
                echo(&name)
            );
            return Err(ApiError::invalid("id", "invalid_value", message));
        }
        let model = body.require("model")?.string()?;
        body.finish()?;
        Ok(Self { name, model })
    }
}

reply! {
    /// A name that stands for a model.
    ModelAliasObject as "ModelAlias" {
        /// The name that clients may use.
        id: String,
        /// `model_alias`.
        object: &'static str,
        /// Unix seconds.
        created_at: i64,
        /// The model it stands for.
        model: String,
        /// `project`, or `installation` for one that the operator made for every project.
        scope: &'static str,
    }
}

impl From<ModelAlias> for ModelAliasObject {
    fn from(alias: ModelAlias) -> Self {
        Self {
            id: alias.name,
            object: "model_alias",
            created_at: alias.created_at.unix_s(),
            model: alias.model,
            scope: match alias.project_id {
                Some(_) => "project",
                None => "installation",
            },
        }
    }
}

impl Listed for ModelAliasObject {
    fn id(&self) -> &str {
        &self.id
    }
}
