//! Which request made which object, so that its repetition makes none.

use domain::id::{KeyId, ProjectId};
use domain::time::Timestamp;
use sea_orm::{
    ActiveValue, ColumnTrait, DatabaseTransaction, EntityTrait, QueryFilter, QueryOrder,
};

use crate::connect::Store;
use crate::convert::text;
use crate::entity::idempotency_key::{ActiveModel, Column, Entity, Model};
use crate::error::StoreError;

/// The request that makes an object; stored in the object's own transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyEntry {
    /// e.g. `POST /fine_tuning/jobs`.
    pub endpoint: String,
    /// The client's `Idempotency-Key`, unique within project and endpoint.
    pub key: Option<String>,
    pub api_key_id: KeyId,
    /// Hash of the request.
    pub fingerprint: String,
    pub expires_at: Timestamp,
}

/// What an earlier request made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replay {
    pub fingerprint: String,
    pub object_id: String,
}

#[derive(Clone, Copy)]
pub struct Idempotency<'a>(&'a Store);

impl<'a> Idempotency<'a> {
    pub(crate) fn new(store: &'a Store) -> Self {
        Self(store)
    }

    /// What the request with this key made, unless that is forgotten by `now`.
    pub async fn find(
        self,
        project: &ProjectId,
        endpoint: &str,
        key: &str,
        now: Timestamp,
    ) -> Result<Option<Replay>, StoreError> {
        let select = Entity::find()
            .filter(Column::ProjectId.eq(project.as_str()))
            .filter(Column::Endpoint.eq(endpoint))
            .filter(Column::Key.eq(text("idempotency key", key)?))
            .filter(Column::ExpiresAt.gt(now.0));
        Ok(self.0.of(project).one(select).await?.map(replay))
    }

    /// What the same request by the same API key made last, not before `since`: for clients that repeat a request
    /// without saying so by a key.
    pub async fn find_retry(
        self,
        project: &ProjectId,
        endpoint: &str,
        api_key: &KeyId,
        fingerprint: &str,
        since: Timestamp,
    ) -> Result<Option<Replay>, StoreError> {
        let select = Entity::find()
            .filter(Column::ProjectId.eq(project.as_str()))
            .filter(Column::Endpoint.eq(endpoint))
            .filter(Column::ApiKeyId.eq(api_key.as_str()))
            .filter(Column::Fingerprint.eq(fingerprint))
            .filter(Column::CreatedAt.gte(since.0))
            .order_by_desc(Column::CreatedAt)
            .order_by_desc(Column::Id);
        Ok(self.0.of(project).one(select).await?.map(replay))
    }

    /// Forgets what is over; how many.
    pub async fn purge(self, now: Timestamp) -> Result<u64, StoreError> {
        self.0
            .delete(Entity::delete_many().filter(Column::ExpiresAt.lte(now.0)))
            .await
    }
}

/// Errors: `Conflict` when a request with this key is remembered already.
pub(crate) async fn remember(
    tx: &DatabaseTransaction,
    project: &ProjectId,
    entry: &IdempotencyEntry,
    object_id: &str,
    now: Timestamp,
) -> Result<(), StoreError> {
    if let Some(key) = &entry.key {
        Entity::delete_many()
            .filter(Column::ProjectId.eq(project.as_str()))
            .filter(Column::Endpoint.eq(entry.endpoint.as_str()))
            .filter(Column::Key.eq(text("idempotency key", key)?))
            .filter(Column::ExpiresAt.lte(now.0))
            .exec(tx)
            .await?;
    }
    let row = ActiveModel {
        id: ActiveValue::NotSet,
        project_id: ActiveValue::Set(project.to_string()),
        endpoint: ActiveValue::Set(entry.endpoint.clone()),
        key: ActiveValue::Set(entry.key.clone()),
        api_key_id: ActiveValue::Set(entry.api_key_id.to_string()),
        fingerprint: ActiveValue::Set(entry.fingerprint.clone()),
        object_id: ActiveValue::Set(object_id.to_owned()),
        created_at: ActiveValue::Set(now.0),
        expires_at: ActiveValue::Set(entry.expires_at.0),
    };
    Entity::insert(row).exec_without_returning(tx).await?;
    Ok(())
}

fn replay(row: Model) -> Replay {
    Replay {
        fingerprint: row.fingerprint,
        object_id: row.object_id,
    }
}
