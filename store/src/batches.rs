//! Batches. A batch is made by `insert` and changes by the domain's state machine alone: at its client's wish, or by the
//! one process that holds its lease.

mod lease;
mod results;

use domain::batch::{Batch, BatchEvent, BatchStatus, Progress};
use domain::id::{BatchId, ProjectId};
use domain::page::{Page, PageRequest};
use domain::time::Timestamp;
use domain::webhook::{WebhookEvent, WebhookEventType};
use sea_orm::{
    ColumnTrait, DatabaseTransaction, EntityTrait, IntoActiveModel, QueryFilter, QuerySelect,
    Select,
};

pub use lease::Lease;

use crate::connect::Store;
use crate::convert::{from_json, json};
use crate::entity::batch::{Column, Entity, Model};
use crate::entity::file;
use crate::error::{BatchError, StoreError};
use crate::idempotency::{self, IdempotencyEntry};
use crate::webhooks;

#[derive(Clone, Copy)]
pub struct Batches<'a>(&'a Store);

impl<'a> Batches<'a> {
    pub(crate) fn new(store: &'a Store) -> Self {
        Self(store)
    }

    /// Stores a new batch. Errors: `NotFound` when its input is not (or no longer) a file of the project, `Repeated` when
    /// the request made a batch before, `KeyReused`.
    pub async fn insert(
        self,
        batch: &Batch,
        request: Option<&IdempotencyEntry>,
    ) -> Result<(), StoreError> {
        let store = self.0.of(&batch.project_id);
        let row = to_row(batch).into_active_model();
        // Locked against deletion until the batch's row keeps it.
        let input = file::Entity::find_by_id(batch.spec.input_file.as_str())
            .filter(file::Column::ProjectId.eq(batch.project_id.as_str()))
            .filter(file::Column::DeletedAt.is_null())
            .lock_shared();
        let work = async {
            let (project, id, now) = (&batch.project_id, batch.id.as_str(), batch.created_at);
            let tx = idempotency::begin(&store, project, request, id, now).await?;
            input.one(&tx).await?.ok_or(StoreError::NotFound)?;
            Entity::insert(row).exec_without_returning(&tx).await?;
            Ok(tx.commit().await?)
        };
        store.bounded(work).await
    }

    pub async fn find(
        self,
        project: &ProjectId,
        id: &BatchId,
    ) -> Result<Option<Batch>, StoreError> {
        let select = of(project).filter(Column::Id.eq(id.as_str()));
        self.0
            .of(project)
            .one(select)
            .await?
            .map(to_domain)
            .transpose()
    }

    /// Errors: `UnknownAfter`.
    pub async fn list(
        self,
        project: &ProjectId,
        page: &PageRequest,
    ) -> Result<Page<Batch>, StoreError> {
        let store = self.0.of(project);
        let listed = store.page(of(project), page, Column::CreatedAt, Column::Id);
        listed.await?.try_map(to_domain)
    }

    /// The client wants no more of it. Errors: `WrongStatus`, `NotFound` when the project has no such batch.
    pub async fn cancel(
        self,
        project: &ProjectId,
        id: &BatchId,
        now: Timestamp,
    ) -> Result<Batch, BatchError> {
        let store = self.0.of(project);
        let select = of(project).filter(Column::Id.eq(id.as_str()));
        let work = async {
            let tx = store.begin().await?;
            let row = select.lock_exclusive().one(&tx).await?;
            let row = row.ok_or(StoreError::NotFound)?;
            let batch = change(&tx, row, BatchEvent::CancelRequested, now).await?;
            tx.commit().await?;
            Ok::<_, BatchError>(batch)
        };
        store.bounded(work).await
    }
}

fn of(project: &ProjectId) -> Select<Entity> {
    Entity::find().filter(Column::ProjectId.eq(project.as_str()))
}

/// Statuses after which something follows.
pub(crate) fn open() -> impl Iterator<Item = &'static str> {
    let open = BatchStatus::ALL.into_iter().filter(|s| !s.is_over());
    open.map(BatchStatus::as_str)
}

/// Applies `event` to a row that this transaction has locked; whoever wants to know of an end is told of it.
async fn change(
    tx: &DatabaseTransaction,
    locked: Model,
    event: BatchEvent,
    now: Timestamp,
) -> Result<Batch, BatchError> {
    let next = to_domain(locked)?.apply(event, now)?;
    Entity::update_many()
        .col_expr(Column::Status, next.status().as_str().into())
        .col_expr(Column::Progress, json(&next.progress).into())
        .filter(Column::Id.eq(next.id.as_str()))
        .exec(tx)
        .await?;
    if let Some(event_type) = WebhookEventType::of_batch(next.status()) {
        let ended = WebhookEvent::new(event_type, next.id.as_str(), now);
        let ended = ended.map_err(StoreError::from)?;
        webhooks::raise(tx, &next.project_id, &ended).await?;
    }
    Ok(next)
}

fn to_row(batch: &Batch) -> Model {
    Model {
        id: batch.id.to_string(),
        project_id: batch.project_id.to_string(),
        input_file: batch.spec.input_file.to_string(),
        spec: json(&batch.spec),
        created_at: batch.created_at.0,
        expires_at: batch.expires_at.0,
        status: batch.status().as_str().to_owned(),
        run: 0,
        lease_until: None,
        progress: json(&batch.progress),
    }
}

fn to_domain(row: Model) -> Result<Batch, StoreError> {
    let progress: Progress = from_json("batches.progress", &row.progress)?;
    if progress.status.as_str() != row.status {
        let reason = format!("batch {}: columns and progress disagree", row.id);
        return Err(StoreError::Corrupt(reason));
    }
    Ok(Batch {
        id: BatchId::parse(&row.id)?,
        project_id: ProjectId::parse(&row.project_id)?,
        spec: from_json("batches.spec", &row.spec)?,
        created_at: Timestamp(row.created_at),
        expires_at: Timestamp(row.expires_at),
        progress,
    })
}
