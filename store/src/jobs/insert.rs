//! Making a job: its row, its metadata, its first events and the request that asked for it, all or none.

use std::collections::BTreeSet;

use domain::event::NewEvent;
use domain::job::FineTuningJob;
use sea_orm::{
    ColumnTrait, DatabaseTransaction, EntityTrait, IntoActiveModel, PaginatorTrait, QueryFilter,
    QuerySelect,
};

use super::{Jobs, effects, of, row, terminal};
use crate::convert::text;
use crate::entity::{file, job, job_metadata};
use crate::error::StoreError;
use crate::idempotency::{self, IdempotencyEntry};
use crate::projects;

/// What a project may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct InsertLimits {
    /// Jobs that are not over, the new one included.
    pub max_active: Option<u64>,
}

impl Jobs<'_> {
    /// Stores a new job with its first events.
    /// Errors: `NotFound` when a file is not (or no longer) the project's, `JobLimit`, `Repeated` when the request
    /// made a job before, `KeyReused`.
    pub async fn insert(
        self,
        job: &FineTuningJob,
        events: Vec<NewEvent>,
        limits: &InsertLimits,
        request: Option<&IdempotencyEntry>,
    ) -> Result<(), StoreError> {
        let store = self.0.of(&job.project_id);
        let n_events = events.len() as i64;
        let row = row::from_domain(job, n_events)?;
        let metadata = metadata_rows(job)?;
        let work = async {
            let (project, id, now) = (&job.project_id, job.id.as_str(), job.created_at);
            let tx = idempotency::begin(&store, project, request, id, now).await?;
            check_limit(&tx, job, limits).await?;
            check_files(&tx, job).await?;
            job::Entity::insert(row.into_active_model())
                .exec_without_returning(&tx)
                .await?;
            if !metadata.is_empty() {
                job_metadata::Entity::insert_many(metadata)
                    .exec_without_returning(&tx)
                    .await?;
            }
            effects::append_events(&tx, &job.id, 0, events, now).await?;
            Ok(tx.commit().await?)
        };
        store.bounded(work).await
    }
}

fn metadata_rows(job: &FineTuningJob) -> Result<Vec<job_metadata::ActiveModel>, StoreError> {
    let pairs = job.spec.metadata.iter().flatten();
    pairs
        .map(|(key, value)| {
            let row = job_metadata::Model {
                job_id: job.id.to_string(),
                key: text("metadata", key)?,
                value: text("metadata", value)?,
            };
            Ok(row.into_active_model())
        })
        .collect()
}

/// Errors: `JobLimit`.
async fn check_limit(
    tx: &DatabaseTransaction,
    job: &FineTuningJob,
    limits: &InsertLimits,
) -> Result<(), StoreError> {
    let Some(limit) = limits.max_active else {
        return Ok(());
    };
    projects::hold(tx, &job.project_id).await?;
    let active = of(&job.project_id).filter(job::Column::State.is_not_in(terminal()));
    if active.count(tx).await? >= limit {
        return Err(StoreError::JobLimit { limit });
    }
    Ok(())
}

/// Locks the files against deletion until the job's row pins them.
async fn check_files(tx: &DatabaseTransaction, job: &FineTuningJob) -> Result<(), StoreError> {
    let spec = &job.spec;
    let needed: BTreeSet<&str> = [Some(&spec.training_file), spec.validation_file.as_ref()]
        .into_iter()
        .flatten()
        .map(|id| id.as_str())
        .collect();
    let n_needed = needed.len();
    let found = file::Entity::find()
        .filter(file::Column::ProjectId.eq(job.project_id.as_str()))
        .filter(file::Column::Id.is_in(needed))
        .filter(file::Column::DeletedAt.is_null())
        .lock_shared()
        .all(tx)
        .await?;
    if found.len() == n_needed {
        Ok(())
    } else {
        Err(StoreError::NotFound)
    }
}
