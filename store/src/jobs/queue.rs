//! The queue as those who wait in it see it.

use domain::id::JobId;
use domain::queue::Waiting;
use domain::time::Timestamp;
use sea_orm::{ConnectionTrait, QueryResult, Statement};

use super::Jobs;
use super::pick::{turn_values, turns};
use crate::convert::unsigned;
use crate::error::StoreError;

impl Jobs<'_> {
    /// Every job that waits for a worker and may be started now, over all projects and base models, in the order of
    /// [`Jobs::queued_fair`]; behind those that are offered already.
    pub async fn waiting(
        self,
        now: Timestamp,
        running_jobs: Option<u64>,
        limit: u64,
    ) -> Result<Vec<Waiting>, StoreError> {
        let values = turn_values(now, running_jobs, limit)?;
        let statement = Statement::from_sql_and_values(self.0.backend(), waiting_sql(), values);
        let rows: Vec<QueryResult> = self
            .0
            .bounded(async { Ok::<_, StoreError>(self.0.read.query_all_raw(statement).await?) })
            .await?;
        let to_waiting = |row: &QueryResult| {
            Ok(Waiting {
                id: JobId::parse(&row.try_get::<String>("", "id")?)?,
                base_model: row.try_get("", "model")?,
                n_before: unsigned(row.try_get("", "n_before")?)?,
            })
        };
        rows.iter().map(to_waiting).collect()
    }
}

fn waiting_sql() -> String {
    let order = "w.is_queued, w.turn, w.created_at, w.id";
    format!(
        "SELECT w.id AS id, w.model AS model, \
                ROW_NUMBER() OVER (PARTITION BY w.model ORDER BY {order}) - 1 AS n_before \
         FROM (\
           SELECT d.id AS id, d.model AS model, d.created_at AS created_at, 0 AS is_queued, d.state_since AS turn \
           FROM jobs d WHERE d.state = 'dispatched' \
           UNION ALL \
           SELECT t.id AS id, t.model AS model, t.created_at AS created_at, 1 AS is_queued, t.turn AS turn \
           FROM ({turns}) t\
         ) w ORDER BY {order} LIMIT $2",
        turns = turns("")
    )
}
