//! Fine-tuning jobs. A job is made by `insert` and changes by `apply`; everything else here only reads, except that
//! an outage of the database may lengthen leases.

mod apply;
mod effects;
mod insert;
mod pick;
mod queue;
mod row;

use domain::attempt::Attempt;
use domain::id::{JobId, ProjectId, WorkerId};
use domain::job::{FineTuningJob, JobState};
use domain::page::{Page, PageRequest};
use domain::time::Timestamp;
use sea_orm::sea_query::{Expr, ExprTrait, Query, SelectStatement};
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QueryOrder, Select};

pub use insert::InsertLimits;

use crate::connect::Store;
use crate::convert::{from_code, unsigned};
use crate::entity::job::{Column, Entity};
use crate::entity::{attempt, job_metadata, job_transition};
use crate::error::StoreError;
use crate::metadata::{MetadataFilter, with_metadata};
use crate::page::{Cursor, paged};

/// One line of a job's history: everything that was applied to it but the beats.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transition {
    /// The job's version after it.
    pub version: u64,
    /// [`domain::job_event::JobEvent::name`].
    pub event: String,
    pub from: JobState,
    pub to: JobState,
    /// The job's attempt after it.
    pub attempt: u32,
    pub at: Timestamp,
}

#[derive(Clone, Copy)]
pub struct Jobs<'a>(&'a Store);

impl<'a> Jobs<'a> {
    pub(crate) fn new(store: &'a Store) -> Self {
        Self(store)
    }

    pub async fn find(
        self,
        project: &ProjectId,
        id: &JobId,
    ) -> Result<Option<FineTuningJob>, StoreError> {
        let select = of(project).filter(Column::Id.eq(id.as_str()));
        self.0
            .of(project)
            .one(select)
            .await?
            .map(row::to_domain)
            .transpose()
    }

    /// For the scheduler, which serves every project.
    pub async fn get_internal(self, id: &JobId) -> Result<Option<FineTuningJob>, StoreError> {
        self.0
            .one(Entity::find_by_id(id.as_str()))
            .await?
            .map(row::to_domain)
            .transpose()
    }

    /// Errors: `UnknownAfter`.
    pub async fn list(
        self,
        project: &ProjectId,
        metadata: &MetadataFilter,
        page: &PageRequest,
    ) -> Result<Page<FineTuningJob>, StoreError> {
        let after = match &page.after {
            None => None,
            Some(after) => Some(self.cursor(project, after).await?),
        };
        let (key, value) = (job_metadata::Column::Key, job_metadata::Column::Value);
        let select = with_metadata(of(project), metadata, pairs, key, value)?;
        let rows = self
            .0
            .of(project)
            .all(paged(select, page, after, Column::CreatedAt, Column::Id))
            .await?;
        let jobs = rows
            .into_iter()
            .map(row::to_domain)
            .collect::<Result<_, _>>()?;
        Ok(Page::from_overfetch(jobs, page.limit))
    }

    async fn cursor(self, project: &ProjectId, after: &str) -> Result<Cursor, StoreError> {
        let unknown = || StoreError::UnknownAfter(after.to_owned());
        let id = JobId::parse(after).map_err(|_| unknown())?;
        let row = self
            .0
            .of(project)
            .one(of(project).filter(Column::Id.eq(id.as_str())))
            .await?;
        let row = row.ok_or_else(unknown)?;
        Ok(Cursor {
            created_at: row.created_at,
            id: row.id,
        })
    }

    /// Errors: `NotFound` when the project has no such job.
    pub(crate) async fn check_owner(
        self,
        project: &ProjectId,
        id: &JobId,
    ) -> Result<(), StoreError> {
        let n = self
            .0
            .of(project)
            .count(of(project).filter(Column::Id.eq(id.as_str())))
            .await?;
        if n == 1 {
            Ok(())
        } else {
            Err(StoreError::NotFound)
        }
    }

    /// The project's jobs that are not over.
    pub async fn n_active(self, project: &ProjectId) -> Result<u64, StoreError> {
        self.0
            .of(project)
            .count(of(project).filter(Column::State.is_not_in(terminal())))
            .await
    }

    /// Every run of the job, in order.
    pub async fn attempts(self, id: &JobId) -> Result<Vec<Attempt>, StoreError> {
        let select = attempt::Entity::find()
            .filter(attempt::Column::JobId.eq(id.as_str()))
            .order_by_asc(attempt::Column::Number);
        let to_attempt = |row: attempt::Model| {
            Ok(Attempt {
                job_id: JobId::parse(&row.job_id)?,
                number: unsigned(row.number)?,
                worker_id: WorkerId::parse(&row.worker_id)?,
                claimed_at: Timestamp(row.claimed_at),
                ended_at: row.ended_at.map(Timestamp),
                end: row
                    .ending
                    .map(|end| from_code("attempts.ending", &end))
                    .transpose()?,
            })
        };
        self.0
            .all(select)
            .await?
            .into_iter()
            .map(to_attempt)
            .collect()
    }

    /// The job's history, in order.
    pub async fn transitions(self, id: &JobId) -> Result<Vec<Transition>, StoreError> {
        let select = job_transition::Entity::find()
            .filter(job_transition::Column::JobId.eq(id.as_str()))
            .order_by_asc(job_transition::Column::Version);
        let to_transition = |row: job_transition::Model| {
            Ok(Transition {
                version: unsigned(row.version)?,
                event: row.event,
                from: row::state(&row.from_state)?,
                to: row::state(&row.to_state)?,
                attempt: unsigned(row.attempt)?,
                at: Timestamp(row.created_at),
            })
        };
        self.0
            .all(select)
            .await?
            .into_iter()
            .map(to_transition)
            .collect()
    }
}

fn of(project: &ProjectId) -> Select<Entity> {
    Entity::find().filter(Column::ProjectId.eq(project.as_str()))
}

pub(crate) fn terminal() -> impl Iterator<Item = &'static str> {
    JobState::ALL
        .into_iter()
        .filter(|state| state.is_terminal())
        .map(JobState::as_str)
}

/// The pairs of the job at hand.
fn pairs() -> SelectStatement {
    let job = Expr::col((job_metadata::Entity, job_metadata::Column::JobId));
    let mut pairs = Query::select();
    pairs
        .expr(Expr::val(1))
        .from(job_metadata::Entity)
        .and_where(job.eq(Expr::col((Entity, Column::Id))));
    pairs
}
