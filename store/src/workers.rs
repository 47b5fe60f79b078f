//! Workers as they last described themselves.

use domain::id::WorkerId;
use domain::time::Timestamp;
use domain::worker::{Worker, WorkerStatus};
use sea_orm::sea_query::OnConflict;
use sea_orm::{ColumnTrait, EntityTrait, IntoActiveModel, QueryFilter, QueryOrder};

use crate::connect::Store;
use crate::convert::{from_json, json};
use crate::entity::worker::{Column, Entity, Model};
use crate::error::StoreError;

#[derive(Clone, Copy)]
pub struct Workers<'a>(&'a Store);

impl<'a> Workers<'a> {
    pub(crate) fn new(store: &'a Store) -> Self {
        Self(store)
    }

    /// The worker lives and is in this state.
    pub async fn upsert(self, status: &WorkerStatus, now: Timestamp) -> Result<(), StoreError> {
        let row = Model {
            id: status.worker_id.to_string(),
            status: json(status),
            seen_at: now.0,
        };
        let conflict = OnConflict::column(Column::Id)
            .update_columns([Column::Status, Column::SeenAt])
            .to_owned();
        self.0
            .insert(Entity::insert(row.into_active_model()).on_conflict(conflict))
            .await
    }

    /// Those seen at `since` or later, by id.
    pub async fn alive(self, since: Timestamp) -> Result<Vec<Worker>, StoreError> {
        let select = Entity::find()
            .filter(Column::SeenAt.gte(since.0))
            .order_by_asc(Column::Id);
        let rows = self.0.all(select).await?;
        rows.into_iter()
            .map(|row| {
                let status = from_json("workers.status", &row.status)?;
                Ok(Worker {
                    status,
                    seen_at: Timestamp(row.seen_at),
                })
            })
            .collect()
    }

    /// The worker said goodbye; safe to repeat.
    pub async fn remove(self, id: &WorkerId) -> Result<(), StoreError> {
        let delete = Entity::delete_many().filter(Column::Id.eq(id.as_str()));
        self.0.delete(delete).await.map(|_| ())
    }

    /// Drops those not seen since `before`; how many.
    pub async fn remove_older(self, before: Timestamp) -> Result<u64, StoreError> {
        self.0
            .delete(Entity::delete_many().filter(Column::SeenAt.lt(before.0)))
            .await
    }
}
