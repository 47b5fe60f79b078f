//! Responses that are kept, each with the whole conversation it answers: none needs another one.

use domain::id::{ProjectId, ResponseId};
use domain::response::StoredResponse;
use domain::time::Timestamp;
use sea_orm::{ColumnTrait, EntityTrait, IntoActiveModel, QueryFilter};

use crate::connect::Store;
use crate::convert::{from_json, json};
use crate::entity::response::{Column, Entity, Model};
use crate::error::StoreError;

#[derive(Clone, Copy)]
pub struct Responses<'a>(&'a Store);

impl<'a> Responses<'a> {
    pub(crate) fn new(store: &'a Store) -> Self {
        Self(store)
    }

    /// Errors: `Conflict` when the id is there already.
    pub async fn insert(self, stored: &StoredResponse) -> Result<(), StoreError> {
        let row = Model {
            id: stored.response.id.to_string(),
            project_id: stored.project_id.to_string(),
            input: json(&stored.input),
            response: json(&stored.response),
            created_at: stored.response.created_at.0,
        };
        self.0
            .of(&stored.project_id)
            .insert(Entity::insert(row.into_active_model()))
            .await
    }

    pub async fn find(
        self,
        project: &ProjectId,
        id: &ResponseId,
    ) -> Result<Option<StoredResponse>, StoreError> {
        let select = Entity::find_by_id(id.as_str()).filter(Column::ProjectId.eq(project.as_str()));
        self.0
            .of(project)
            .one(select)
            .await?
            .map(to_domain)
            .transpose()
    }

    /// False: the project has no such response.
    pub async fn delete(self, project: &ProjectId, id: &ResponseId) -> Result<bool, StoreError> {
        let delete = Entity::delete_many()
            .filter(Column::ProjectId.eq(project.as_str()))
            .filter(Column::Id.eq(id.as_str()));
        Ok(self.0.of(project).delete(delete).await? == 1)
    }

    /// Forgets what was made before `at`; how many.
    pub async fn remove_older(self, at: Timestamp) -> Result<u64, StoreError> {
        let delete = Entity::delete_many().filter(Column::CreatedAt.lt(at.0));
        self.0.delete(delete).await
    }
}

fn to_domain(row: Model) -> Result<StoredResponse, StoreError> {
    Ok(StoredResponse {
        project_id: ProjectId::parse(&row.project_id)?,
        response: from_json("responses.response", &row.response)?,
        input: from_json("responses.input", &row.input)?,
    })
}
