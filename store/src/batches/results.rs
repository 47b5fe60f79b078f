//! Outcomes of requests, row by row as they come, until they stand in the batch's files.

use std::collections::HashSet;

use domain::batch::{Batch, BatchEvent, BatchFile, BatchResult};
use domain::id::BatchId;
use domain::time::Timestamp;
use domain::usage::TokenUsage;
use sea_orm::{
    ColumnTrait, ConnectionTrait, EntityTrait, IntoActiveModel, QueryFilter, QueryOrder,
    QuerySelect, Statement,
};

use super::lease::{Lease, locked};
use super::{Batches, change, open};
use crate::convert::{code, int, unsigned};
use crate::entity::batch_result::{Column, Entity, Model};
use crate::error::{BatchError, StoreError};

impl Batches<'_> {
    /// Keeps outcomes. Safe to repeat: what is kept already is not counted again. Errors: `Stale`, `WrongStatus`.
    pub async fn record(
        self,
        lease: &Lease,
        results: &[BatchResult],
        now: Timestamp,
    ) -> Result<Batch, BatchError> {
        let batch_id = lease.batch_id.as_str();
        let lines = results.iter().map(|result| i64::from(result.line));
        let select = lines_of(&lease.batch_id).filter(Column::Line.is_in(lines));
        let work = async {
            let tx = self.0.begin().await?;
            let row = locked(&tx, lease).await?;
            let known: Vec<i64> = select.into_tuple().all(&tx).await?;
            let known: HashSet<i64> = known.into_iter().collect();
            let is_new = |result: &&BatchResult| !known.contains(&i64::from(result.line));
            let new: Vec<&BatchResult> = results.iter().filter(is_new).collect();
            let batch = change(&tx, row, answered(&new), now).await?;
            if !new.is_empty() {
                let rows = new.into_iter().map(|result| to_row(batch_id, result));
                Entity::insert_many(rows.map(Model::into_active_model))
                    .exec_without_returning(&tx)
                    .await?;
            }
            tx.commit().await?;
            Ok(batch)
        };
        self.0.bounded(work).await
    }

    /// The lines of the input that have their outcome.
    pub async fn answered_lines(self, id: &BatchId) -> Result<HashSet<u32>, StoreError> {
        let select = lines_of(id).into_tuple::<i64>();
        let lines = async { Ok::<_, StoreError>(select.all(&self.0.read).await?) };
        let lines = self.0.bounded(lines).await?.into_iter();
        lines.map(unsigned).collect()
    }

    /// Up to `limit` lines of one of the batch's files, in the order of the input, after the one of line `after`, each with
    /// where its request stands.
    pub async fn results(
        self,
        id: &BatchId,
        file: BatchFile,
        after: u32,
        limit: u64,
    ) -> Result<Vec<(u32, String)>, StoreError> {
        let select = Entity::find()
            .filter(Column::BatchId.eq(id.as_str()))
            .filter(Column::File.eq(code(&file)))
            .filter(Column::Line.gt(after))
            .order_by_asc(Column::Line)
            .limit(limit);
        let rows = self.0.all(select).await?.into_iter();
        rows.map(|row| Ok((unsigned(row.line)?, row.body)))
            .collect()
    }

    /// Drops up to `limit` outcomes that stand in files now; how many.
    pub async fn purge_results(self, limit: u64) -> Result<u64, StoreError> {
        let quoted: Vec<String> = open().map(|status| format!("'{status}'")).collect();
        // Plain SQL, because neither database limits a deletion.
        let sql = format!(
            "DELETE FROM batch_results WHERE (batch_id, line) IN (\
               SELECT r.batch_id, r.line FROM batch_results r JOIN batches b ON b.id = r.batch_id \
               WHERE b.status NOT IN ({}) LIMIT $1)",
            quoted.join(", ")
        );
        let values = [int(limit)?.into()];
        let delete = Statement::from_sql_and_values(self.0.backend(), sql, values);
        let work = async {
            let done = self.0.write.execute_raw(delete).await?;
            Ok::<_, StoreError>(done.rows_affected())
        };
        self.0.bounded(work).await
    }
}

fn lines_of(id: &BatchId) -> sea_orm::Select<Entity> {
    Entity::find()
        .select_only()
        .column(Column::Line)
        .filter(Column::BatchId.eq(id.as_str()))
}

fn answered(results: &[&BatchResult]) -> BatchEvent {
    let completed = results.iter().filter(|r| r.file == BatchFile::Output);
    let completed = completed.count() as u64;
    let mut usage = TokenUsage::default();
    results.iter().for_each(|result| usage += result.usage);
    BatchEvent::Answered {
        completed,
        failed: results.len() as u64 - completed,
        usage,
    }
}

fn to_row(batch_id: &str, result: &BatchResult) -> Model {
    Model {
        batch_id: batch_id.to_owned(),
        line: result.line.into(),
        file: code(&result.file),
        body: result.body.clone(),
    }
}
