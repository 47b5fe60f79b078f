//! A job's public story. Written only by the transaction that changes the job.

use domain::event::Event;
use domain::id::{EventId, JobId, ProjectId};
use domain::page::{Order, Page, PageRequest};
use domain::time::Timestamp;
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QueryOrder, QuerySelect};

use crate::connect::Store;
use crate::convert::{from_code, from_json, int, unsigned};
use crate::entity::event::{Column, Entity, Model};
use crate::error::StoreError;

#[derive(Clone, Copy)]
pub struct Events<'a>(&'a Store);

impl<'a> Events<'a> {
    pub(crate) fn new(store: &'a Store) -> Self {
        Self(store)
    }

    /// Errors: `NotFound` when the project has no such job, `UnknownAfter`.
    pub async fn list(
        self,
        project: &ProjectId,
        job: &JobId,
        page: &PageRequest,
    ) -> Result<Page<Event>, StoreError> {
        let store = self.0.of(project);
        store.jobs().check_owner(project, job).await?;
        let mut select = Entity::find().filter(Column::JobId.eq(job.as_str()));
        if let Some(after) = &page.after {
            let seq = int(self.seq_of(job, after).await?)?;
            select = select.filter(match page.order {
                Order::NewestFirst => Column::Seq.lt(seq),
                Order::OldestFirst => Column::Seq.gt(seq),
            });
        }
        let select = match page.order {
            Order::NewestFirst => select.order_by_desc(Column::Seq),
            Order::OldestFirst => select.order_by_asc(Column::Seq),
        };
        let rows = store
            .all(select.limit(page.limit.saturating_add(1)))
            .await?;
        let events = rows.into_iter().map(to_domain).collect::<Result<_, _>>()?;
        Ok(Page::from_overfetch(events, page.limit))
    }

    /// The sequence number of one of the job's events. Errors: `UnknownAfter`.
    pub async fn seq_of(self, job: &JobId, event: &str) -> Result<u64, StoreError> {
        let select = Entity::find()
            .filter(Column::JobId.eq(job.as_str()))
            .filter(Column::Id.eq(event.replace('\0', "")));
        let row = self.0.one(select).await?;
        let row = row.ok_or_else(|| StoreError::UnknownAfter(event.to_owned()))?;
        unsigned(row.seq)
    }

    /// The last sequence number of each of these jobs that has events.
    pub async fn last_seqs(self, jobs: &[JobId]) -> Result<Vec<(JobId, u64)>, StoreError> {
        let ids = jobs.iter().map(JobId::as_str);
        let select = Entity::find()
            .select_only()
            .column(Column::JobId)
            .column_as(Column::Seq.max(), "last_seq")
            .filter(Column::JobId.is_in(ids))
            .group_by(Column::JobId)
            .into_tuple::<(String, i64)>();
        let rows = async { Ok::<_, StoreError>(select.all(&self.0.read).await?) };
        let rows = self.0.bounded(rows).await?;
        rows.into_iter()
            .map(|(id, seq)| Ok((JobId::parse(&id)?, unsigned(seq)?)))
            .collect()
    }

    /// The events after `seq` (the first one has 1), oldest first.
    /// Errors: `NotFound` when the project has no such job.
    pub async fn list_after_seq(
        self,
        project: &ProjectId,
        job: &JobId,
        seq: u64,
        limit: u64,
    ) -> Result<Vec<Event>, StoreError> {
        let store = self.0.of(project);
        store.jobs().check_owner(project, job).await?;
        let select = Entity::find()
            .filter(Column::JobId.eq(job.as_str()))
            .filter(Column::Seq.gt(int(seq)?))
            .order_by_asc(Column::Seq)
            .limit(limit);
        store
            .all(select)
            .await?
            .into_iter()
            .map(to_domain)
            .collect()
    }
}

fn to_domain(row: Model) -> Result<Event, StoreError> {
    Ok(Event {
        id: EventId::parse(&row.id)?,
        job_id: JobId::parse(&row.job_id)?,
        seq: unsigned(row.seq)?,
        level: from_code("events.level", &row.level)?,
        event_type: from_code("events.event_type", &row.event_type)?,
        message: row.message,
        data: from_json("events.data", &row.data)?,
        created_at: Timestamp(row.created_at),
    })
}
