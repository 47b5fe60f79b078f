//! Messages to publish. A row is written with the change it tells of and goes on being offered until the broker
//! confirmed it: messages may be doubled, never lost.

use domain::time::Timestamp;
use sea_orm::sea_query::{Expr, LockBehavior, LockType, Value};
use sea_orm::{ColumnTrait, Condition, EntityTrait, QueryFilter, QueryOrder, QuerySelect};

use crate::connect::Store;
use crate::convert::from_json;
use crate::entity::outbox::{Column, Entity};
use crate::error::StoreError;

/// A message and where it goes.
#[derive(Debug, Clone, PartialEq)]
pub struct OutboxMessage {
    pub id: i64,
    pub queue: String,
    pub body: serde_json::Value,
}

#[derive(Clone, Copy)]
pub struct Outbox<'a>(&'a Store);

impl<'a> Outbox<'a> {
    pub(crate) fn new(store: &'a Store) -> Self {
        Self(store)
    }

    /// Takes up to `limit` unsent messages, oldest first. Until `claimed_until` no other relay is given them.
    pub async fn claim_unsent(
        self,
        now: Timestamp,
        limit: u64,
        claimed_until: Timestamp,
    ) -> Result<Vec<OutboxMessage>, StoreError> {
        let unclaimed = Condition::any()
            .add(Column::ClaimedUntil.is_null())
            .add(Column::ClaimedUntil.lte(now.0));
        let select = Entity::find()
            .filter(Column::SentAt.is_null())
            .filter(unclaimed)
            .order_by_asc(Column::Id)
            .limit(limit)
            .lock_with_behavior(LockType::Update, LockBehavior::SkipLocked);
        let work = async {
            let tx = self.0.begin().await?;
            let rows = select.all(&tx).await?;
            if !rows.is_empty() {
                Entity::update_many()
                    .col_expr(Column::ClaimedUntil, claimed_until.0.into())
                    .filter(Column::Id.is_in(rows.iter().map(|row| row.id)))
                    .exec(&tx)
                    .await?;
            }
            tx.commit().await?;
            Ok::<_, StoreError>(rows)
        };
        let rows = self.0.bounded(work).await?;
        rows.into_iter()
            .map(|row| {
                let body = from_json("outbox.body", &row.body)?;
                Ok(OutboxMessage {
                    id: row.id,
                    queue: row.queue,
                    body,
                })
            })
            .collect()
    }

    /// The broker has these.
    pub async fn mark_sent(self, ids: &[i64], now: Timestamp) -> Result<(), StoreError> {
        let update = Entity::update_many()
            .col_expr(Column::SentAt, now.0.into())
            .filter(Column::Id.is_in(ids.iter().copied()));
        self.0.update(update).await.map(|_| ())
    }

    /// These could not be published: they may be taken again at once.
    pub async fn release(self, ids: &[i64]) -> Result<(), StoreError> {
        let update = Entity::update_many()
            .col_expr(Column::ClaimedUntil, Expr::val(Value::BigInt(None)))
            .filter(Column::Id.is_in(ids.iter().copied()))
            .filter(Column::SentAt.is_null());
        self.0.update(update).await.map(|_| ())
    }

    /// How many wait.
    pub async fn n_unsent(self) -> Result<u64, StoreError> {
        self.0
            .count(Entity::find().filter(Column::SentAt.is_null()))
            .await
    }

    /// Drops what was sent before; how many.
    pub async fn purge_sent(self, before: Timestamp) -> Result<u64, StoreError> {
        self.0
            .delete(Entity::delete_many().filter(Column::SentAt.lt(before.0)))
            .await
    }
}
