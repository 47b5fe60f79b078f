//! Models as clients see them.

use domain::base_model::BaseModel;
use domain::model::TunedModel;
use domain::model_alias::ModelAlias;

use super::reply::reply;

reply! {
    /// A base model of this installation, or a tuned model of the caller's project.
    Model as "Model" {
        id: String,
        /// `model`.
        object: &'static str,
        /// Unix seconds.
        created: i64,
        /// `system`, or the organisation's slug for a tuned model.
        owned_by: String,
    }

    /// Every model the caller can name.
    ModelList as "ModelList" {
        /// `list`.
        object: &'static str,
        data: Vec<Model>,
    }
}

impl Model {
    /// A model under another name.
    pub fn alias(alias: ModelAlias, model: &Model) -> Self {
        Self {
            id: alias.name,
            object: "model",
            created: alias.created_at.unix_s(),
            owned_by: model.owned_by.clone(),
        }
    }
}

impl From<BaseModel> for Model {
    fn from(base: BaseModel) -> Self {
        Self {
            id: base.name,
            object: "model",
            created: base.created_at.unix_s(),
            owned_by: "system".to_owned(),
        }
    }
}

impl From<TunedModel> for Model {
    fn from(model: TunedModel) -> Self {
        Self {
            id: model.name,
            object: "model",
            created: model.created_at.unix_s(),
            owned_by: model.owned_by,
        }
    }
}
