//! Installed base models; the same for every project.

use domain::base_model::BaseModel;
use domain::time::Timestamp;
use sea_orm::sea_query::OnConflict;
use sea_orm::{EntityTrait, IntoActiveModel, QueryOrder, QuerySelect};

use crate::connect::Store;
use crate::convert::{from_json, int, json, text, unsigned};
use crate::entity::base_model::{Column, Entity, Model};
use crate::error::StoreError;

#[derive(Clone, Copy)]
pub struct BaseModels<'a>(&'a Store);

impl<'a> BaseModels<'a> {
    pub(crate) fn new(store: &'a Store) -> Self {
        Self(store)
    }

    /// Installs a model, or another version of it under the same name.
    pub async fn upsert(self, model: &BaseModel) -> Result<(), StoreError> {
        let row = Model {
            name: text("name", &model.name)?,
            sha256: model.sha256.clone(),
            object_prefix: text("object_prefix", &model.object_prefix)?,
            files: json(&model.files),
            architecture: text("architecture", &model.architecture)?,
            hidden_size: i64::from(model.hidden_size),
            n_parameters: int(model.n_parameters)?,
            context_length: i64::from(model.context_length),
            created_at: model.created_at.0,
        };
        let replaced = [
            Column::Sha256,
            Column::ObjectPrefix,
            Column::Files,
            Column::Architecture,
            Column::HiddenSize,
            Column::NParameters,
            Column::ContextLength,
            Column::CreatedAt,
        ];
        let conflict = OnConflict::column(Column::Name)
            .update_columns(replaced)
            .to_owned();
        self.0
            .insert(Entity::insert(row.into_active_model()).on_conflict(conflict))
            .await
    }

    /// Every model, by name.
    pub async fn list(self) -> Result<Vec<BaseModel>, StoreError> {
        let rows = self
            .0
            .all(Entity::find().order_by_asc(Column::Name))
            .await?;
        rows.into_iter().map(to_domain).collect()
    }

    /// The names of all.
    pub async fn names(self) -> Result<Vec<String>, StoreError> {
        let select = Entity::find().select_only().column(Column::Name);
        let names = select.into_tuple::<String>();
        let store = self.0;
        store
            .bounded(async { Ok::<_, StoreError>(names.all(&store.read).await?) })
            .await
    }

    pub async fn find(self, name: &str) -> Result<Option<BaseModel>, StoreError> {
        if name.contains('\0') {
            return Ok(None);
        }
        self.0
            .one(Entity::find_by_id(name))
            .await?
            .map(to_domain)
            .transpose()
    }
}

fn to_domain(row: Model) -> Result<BaseModel, StoreError> {
    Ok(BaseModel {
        name: row.name,
        sha256: row.sha256,
        object_prefix: row.object_prefix,
        files: from_json("base_models.files", &row.files)?,
        architecture: row.architecture,
        hidden_size: unsigned(row.hidden_size)?,
        n_parameters: unsigned(row.n_parameters)?,
        context_length: unsigned(row.context_length)?,
        created_at: Timestamp(row.created_at),
    })
}
