//! What the scheduler looks for: jobs that wait for it, across all projects.

use domain::job::{FineTuningJob, JobState};
use domain::time::Timestamp;
use sea_orm::sea_query::{Expr, ExprTrait};
use sea_orm::{
    ColumnTrait, EntityTrait, QueryFilter, QueryOrder, QuerySelect, Select, Statement, Value,
};

use super::{Jobs, row};
use crate::convert::{int, unsigned};
use crate::entity::job::{Column, Entity};
use crate::error::StoreError;

impl Jobs<'_> {
    /// Jobs whose files are still to be judged, oldest first.
    pub async fn validating(self, limit: u64) -> Result<Vec<FineTuningJob>, StoreError> {
        let select = in_state(JobState::Validating)
            .order_by_asc(Column::CreatedAt)
            .order_by_asc(Column::Id);
        self.jobs(select.limit(limit)).await
    }

    /// The next jobs to offer or to hand out: each project's turn comes after as many of its jobs as it has under
    /// way or before in the queue; among equals the oldest. `base_models`: only jobs on one of these.
    /// `running_jobs`: how many a project may have under way that has no number of its own; those beyond it are not there.
    pub async fn queued_fair(
        self,
        now: Timestamp,
        base_models: Option<&[String]>,
        running_jobs: Option<u64>,
        limit: u64,
    ) -> Result<Vec<FineTuningJob>, StoreError> {
        if base_models.is_some_and(<[String]>::is_empty) {
            return Ok(Vec::new());
        }
        let statement = fair_statement(self.0.backend(), now, base_models, running_jobs, limit)?;
        let rows = self
            .0
            .bounded(async {
                Ok::<_, StoreError>(
                    Entity::find()
                        .from_raw_sql(statement)
                        .all(&self.0.read)
                        .await?,
                )
            })
            .await?;
        rows.into_iter().map(row::to_domain).collect()
    }

    /// Jobs offered before `t` and still unclaimed, oldest offer first.
    pub async fn offers_older_than(
        self,
        t: Timestamp,
        limit: u64,
    ) -> Result<Vec<FineTuningJob>, StoreError> {
        let select = in_state(JobState::Dispatched)
            .filter(Column::StateSince.lt(t.0))
            .order_by_asc(Column::StateSince);
        self.jobs(select.limit(limit)).await
    }

    /// Jobs whose worker has not been heard of in time, longest silence first.
    pub async fn leases_expired(
        self,
        now: Timestamp,
        limit: u64,
    ) -> Result<Vec<FineTuningJob>, StoreError> {
        let select = Entity::find()
            .filter(Column::State.is_in(leased()))
            .filter(Column::LeaseUntil.lt(now.0))
            .order_by_asc(Column::LeaseUntil);
        self.jobs(select.limit(limit)).await
    }

    /// Jobs that an attempt holds, by when their leases end.
    pub async fn leased(self, limit: u64) -> Result<Vec<FineTuningJob>, StoreError> {
        let select = Entity::find()
            .filter(Column::State.is_in(leased()))
            .order_by_asc(Column::LeaseUntil);
        self.jobs(select.limit(limit)).await
    }

    /// After the database was away nobody could beat: no lease may end before `until`. How many were lengthened.
    pub async fn extend_leases(self, until: Timestamp) -> Result<u64, StoreError> {
        let update = Entity::update_many()
            .col_expr(Column::LeaseUntil, until.0.into())
            .col_expr(Column::Version, Expr::col(Column::Version).add(1))
            .filter(Column::State.is_in(leased()))
            .filter(Column::LeaseUntil.lt(until.0));
        self.0.update(update).await
    }

    /// On one machine the workers of an earlier run ended with it: every lease is over. How many were.
    pub async fn void_leases(self, now: Timestamp) -> Result<u64, StoreError> {
        let update = Entity::update_many()
            .col_expr(Column::LeaseUntil, (now.0 - 1).into())
            .col_expr(Column::Version, Expr::col(Column::Version).add(1))
            .filter(Column::State.is_in(leased()))
            .filter(Column::LeaseUntil.gte(now.0));
        self.0.update(update).await
    }

    /// How many jobs stand where, over all projects; states without jobs are left out.
    pub async fn count_by_state(self) -> Result<Vec<(JobState, u64)>, StoreError> {
        let select = Entity::find()
            .select_only()
            .column(Column::State)
            .column_as(Column::Id.count(), "n")
            .group_by(Column::State)
            .into_tuple::<(String, i64)>();
        let rows = self
            .0
            .bounded(async { Ok::<_, StoreError>(select.all(&self.0.read).await?) })
            .await?;
        rows.into_iter()
            .map(|(state, n)| Ok((row::state(&state)?, unsigned(n)?)))
            .collect()
    }

    async fn jobs(self, select: Select<Entity>) -> Result<Vec<FineTuningJob>, StoreError> {
        self.0
            .all(select)
            .await?
            .into_iter()
            .map(row::to_domain)
            .collect()
    }
}

fn in_state(state: JobState) -> Select<Entity> {
    Entity::find().filter(Column::State.eq(state.as_str()))
}

fn leased() -> impl Iterator<Item = &'static str> {
    JobState::ALL
        .into_iter()
        .filter(|state| state.is_leased())
        .map(JobState::as_str)
}

/// Plain SQL, because the query builder has no window over a join; the same text on both databases.
fn fair_statement(
    backend: sea_orm::DbBackend,
    now: Timestamp,
    base_models: Option<&[String]>,
    running_jobs: Option<u64>,
    limit: u64,
) -> Result<Statement, StoreError> {
    let mut values = turn_values(now, running_jobs, limit)?;
    let mut on_models = String::new();
    if let Some(names) = base_models {
        let places: Vec<String> = names
            .iter()
            .map(|name| {
                values.push(name.as_str().into());
                format!("${}", values.len())
            })
            .collect();
        on_models = format!("AND q.model IN ({})", places.join(", "));
    }
    let sql = format!(
        "SELECT j.* FROM jobs j JOIN ({turns}) next ON next.id = j.id \
         ORDER BY next.turn, j.created_at, j.id LIMIT $2",
        turns = turns(&on_models)
    );
    Ok(Statement::from_sql_and_values(backend, sql, values))
}

/// $1 to $3 of statements with [`turns`]: now, limit and how many jobs of a project may run.
pub(super) fn turn_values(
    now: Timestamp,
    running_jobs: Option<u64>,
    limit: u64,
) -> Result<Vec<Value>, StoreError> {
    let running_jobs = running_jobs.map_or(Ok(i64::MAX), int)?;
    Ok(vec![now.0.into(), int(limit)?.into(), running_jobs.into()])
}

/// Which turn each queued job has that may be started at $1; `on_models`: only some of them, as `AND q.model …`. A job's turn is how many
/// of its project are under way once it is: those beyond what the project may have ($3 where it does not say) have none.
pub(super) fn turns(on_models: &str) -> String {
    let under_way: Vec<String> = leased()
        .chain([JobState::Dispatched.as_str()])
        .map(|state| format!("'{state}'"))
        .collect();
    format!(
        "SELECT t.id AS id, t.model AS model, t.created_at AS created_at, t.turn AS turn FROM (\
           SELECT q.id AS id, q.model AS model, q.created_at AS created_at, q.project_id AS project_id, COALESCE(busy.n, 0) \
                  + ROW_NUMBER() OVER (PARTITION BY q.project_id ORDER BY q.created_at, q.id) AS turn \
           FROM jobs q LEFT JOIN (\
             SELECT project_id, COUNT(*) AS n FROM jobs WHERE state IN ({under_way}) GROUP BY project_id\
           ) busy ON busy.project_id = q.project_id \
           WHERE q.state = 'queued' AND (q.not_before IS NULL OR q.not_before <= $1) {on_models}\
         ) t JOIN projects p ON p.id = t.project_id WHERE t.turn <= COALESCE(p.max_running_jobs, $3)",
        under_way = under_way.join(", ")
    )
}
