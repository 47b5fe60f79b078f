//! Whose a batch is. A lease that ran out may be taken by anyone; whoever takes it begins the batch's next run, and what
//! an earlier run still writes changes nothing.

use domain::batch::{Batch, BatchEvent};
use domain::file::File;
use domain::id::BatchId;
use domain::time::Timestamp;
use sea_orm::sea_query::{Condition, Expr};
use sea_orm::{
    ColumnTrait, DatabaseTransaction, EntityTrait, IntoActiveModel, QueryFilter, QuerySelect,
    Statement, UpdateMany, Value,
};

use super::{Batches, change, open, to_domain};
use crate::convert::{int, unsigned};
use crate::entity::batch::{Column, Entity, Model};
use crate::entity::file;
use crate::error::{BatchError, StoreError};
use crate::files;

/// Batches of one project that run at the same time, over all processes.
const PER_PROJECT: u32 = 4;

/// That a process holds a batch: its `run`th to do so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    pub batch_id: BatchId,
    pub run: u64,
}

impl Batches<'_> {
    /// Takes up to `limit` batches that nobody holds, until `until`: each project's turn comes after as many of its batches
    /// as run or are older; among equals the oldest.
    pub async fn take(
        self,
        limit: u64,
        now: Timestamp,
        until: Timestamp,
    ) -> Result<Vec<(Lease, Batch)>, StoreError> {
        let statement = free_statement(self.0.backend(), now, limit)?;
        let free = async {
            let select = Entity::find().from_raw_sql(statement);
            Ok::<_, StoreError>(select.all(&self.0.read).await?)
        };
        let mut taken = Vec::new();
        for row in self.0.bounded(free).await? {
            let update = Entity::update_many()
                .col_expr(Column::Run, (row.run + 1).into())
                .col_expr(Column::LeaseUntil, until.0.into())
                .filter(Column::Id.eq(row.id.as_str()))
                .filter(Column::Run.eq(row.run))
                .filter(is_free(now));
            // Nothing changed: another process was faster.
            if self.0.update(update).await? == 1 {
                let run = unsigned(row.run + 1)?;
                let batch = to_domain(row)?;
                let batch_id = batch.id.clone();
                taken.push((Lease { batch_id, run }, batch));
            }
        }
        Ok(taken)
    }

    /// Holds the batch until `until`; how it stands. Errors: `Stale`.
    pub async fn renew(self, lease: &Lease, until: Timestamp) -> Result<Batch, BatchError> {
        let update = held(lease).col_expr(Column::LeaseUntil, until.0.into());
        let work = async {
            let tx = self.0.begin().await?;
            if update.exec(&tx).await?.rows_affected == 0 {
                return Err(BatchError::Stale);
            }
            let row = Entity::find_by_id(lease.batch_id.as_str()).one(&tx).await?;
            tx.commit().await?;
            Ok(to_domain(row.ok_or(StoreError::NotFound)?)?)
        };
        self.0.bounded(work).await
    }

    /// The batch is anyone's at once.
    pub async fn release(self, lease: &Lease) -> Result<(), StoreError> {
        let update = held(lease).col_expr(Column::LeaseUntil, Expr::value(Value::BigInt(None)));
        self.0.update(update).await.map(drop)
    }

    /// On one machine the process that held a lease ended with the service before this one: every batch is anyone's.
    pub async fn void_leases(self) -> Result<u64, StoreError> {
        let update = Entity::update_many()
            .col_expr(Column::LeaseUntil, Expr::value(Value::BigInt(None)))
            .filter(Column::LeaseUntil.is_not_null());
        self.0.update(update).await
    }

    /// What the process that holds it has to say. Errors: `Stale`, `WrongStatus`.
    pub async fn apply(
        self,
        lease: &Lease,
        event: BatchEvent,
        now: Timestamp,
    ) -> Result<Batch, BatchError> {
        let work = async {
            let tx = self.0.begin().await?;
            let row = locked(&tx, lease).await?;
            let batch = change(&tx, row, event, now).await?;
            tx.commit().await?;
            Ok(batch)
        };
        self.0.bounded(work).await
    }

    /// The batch is over, and its files are whole. Errors: `Stale`, `WrongStatus`.
    pub async fn finish(
        self,
        lease: &Lease,
        output: Option<&File>,
        error: Option<&File>,
        now: Timestamp,
    ) -> Result<Batch, BatchError> {
        let finished = BatchEvent::Finished {
            output_file: output.map(|file| file.id.clone()),
            error_file: error.map(|file| file.id.clone()),
        };
        let work = async {
            let tx = self.0.begin().await?;
            let row = locked(&tx, lease).await?;
            let batch = change(&tx, row, finished, now).await?;
            for file in [output, error].into_iter().flatten() {
                let row = files::to_row(file)?.into_active_model();
                file::Entity::insert(row)
                    .exec_without_returning(&tx)
                    .await?;
            }
            tx.commit().await?;
            Ok(batch)
        };
        self.0.bounded(work).await
    }
}

/// The row, for this transaction alone. Errors: `Stale`.
pub(super) async fn locked(tx: &DatabaseTransaction, lease: &Lease) -> Result<Model, BatchError> {
    let select = Entity::find_by_id(lease.batch_id.as_str())
        .filter(Column::Run.eq(lease.run))
        .lock_exclusive();
    select.one(tx).await?.ok_or(BatchError::Stale)
}

fn held(lease: &Lease) -> UpdateMany<Entity> {
    Entity::update_many()
        .filter(Column::Id.eq(lease.batch_id.as_str()))
        .filter(Column::Run.eq(lease.run))
}

fn is_free(now: Timestamp) -> Condition {
    Condition::any()
        .add(Column::LeaseUntil.is_null())
        .add(Column::LeaseUntil.lt(now.0))
}

/// Plain SQL, because the query builder has no window over a join; the same text on both databases.
fn free_statement(
    backend: sea_orm::DbBackend,
    now: Timestamp,
    limit: u64,
) -> Result<Statement, StoreError> {
    let quoted: Vec<String> = open().map(|status| format!("'{status}'")).collect();
    let sql = format!(
        "SELECT b.* FROM batches b JOIN (\
           SELECT q.id AS id, COALESCE(busy.n, 0) \
                  + ROW_NUMBER() OVER (PARTITION BY q.project_id ORDER BY q.created_at, q.id) AS turn \
           FROM batches q LEFT JOIN (\
             SELECT project_id, COUNT(*) AS n FROM batches WHERE status IN ({open}) AND lease_until >= $1 \
             GROUP BY project_id\
           ) busy ON busy.project_id = q.project_id \
           WHERE q.status IN ({open}) AND (q.lease_until IS NULL OR q.lease_until < $1)\
         ) next ON next.id = b.id \
         WHERE next.turn <= {PER_PROJECT} \
         ORDER BY next.turn, b.created_at, b.id LIMIT $2",
        open = quoted.join(", ")
    );
    let values: [Value; 2] = [now.0.into(), int(limit)?.into()];
    Ok(Statement::from_sql_and_values(backend, sql, values))
}
