//! Checkpoints: from where a job goes on, and the few of them that clients see.

use domain::checkpoint::{Checkpoint, StateRef, VISIBLE_CHECKPOINTS};
use domain::id::{CheckpointId, JobId, ProjectId};
use domain::model::AdapterRef;
use domain::page::{Order, Page, PageRequest};
use domain::time::Timestamp;
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QueryOrder, QuerySelect};

use crate::connect::Store;
use crate::convert::{Measurements, code, from_code, int, text, unsigned};
use crate::entity::checkpoint::{Column, Entity, Model};
use crate::error::StoreError;

/// How many of the newest are kept for a resume: one, and one in case its objects are damaged.
const KEPT_FOR_RESUME: usize = 2;

#[derive(Clone, Copy)]
pub struct Checkpoints<'a>(&'a Store);

impl<'a> Checkpoints<'a> {
    pub(crate) fn new(store: &'a Store) -> Self {
        Self(store)
    }

    /// The checkpoints a client may see: those at the end of an epoch, the last three.
    /// Errors: `NotFound` when the project has no such job, `UnknownAfter`.
    pub async fn list_visible(
        self,
        project: &ProjectId,
        job: &JobId,
        page: &PageRequest,
    ) -> Result<Page<Checkpoint>, StoreError> {
        let store = self.0.of(project);
        store.jobs().check_owner(project, job).await?;
        let select = of(job)
            .filter(Column::Epoch.is_not_null())
            .order_by_desc(Column::Step)
            .limit(VISIBLE_CHECKPOINTS as u64);
        let mut visible = to_domains(store.all(select).await?)?;
        if page.order == Order::OldestFirst {
            visible.reverse();
        }
        if let Some(after) = &page.after {
            let seen = visible.iter().position(|c| c.id.as_str() == after);
            let seen = seen.ok_or_else(|| StoreError::UnknownAfter(after.clone()))?;
            visible.drain(..=seen);
        }
        Ok(Page::from_overfetch(visible, page.limit))
    }

    /// From where the job goes on.
    pub async fn latest(self, job: &JobId) -> Result<Option<Checkpoint>, StoreError> {
        let row = self.0.one(of(job).order_by_desc(Column::Step)).await?;
        row.map(to_domain).transpose()
    }

    /// Every checkpoint of the job, by step.
    pub async fn all(self, job: &JobId) -> Result<Vec<Checkpoint>, StoreError> {
        to_domains(self.0.all(of(job).order_by_asc(Column::Step)).await?)
    }

    /// Those neither a client sees nor a resume needs: delete the objects, then [`Checkpoints::remove`].
    pub async fn superseded(self, job: &JobId) -> Result<Vec<Checkpoint>, StoreError> {
        let all = self.all(job).await?;
        let newest_first = || all.iter().rev();
        let shown = newest_first()
            .filter(|c| c.epoch.is_some())
            .take(VISIBLE_CHECKPOINTS);
        let kept: Vec<&CheckpointId> = newest_first()
            .take(KEPT_FOR_RESUME)
            .chain(shown)
            .map(|c| &c.id)
            .collect();
        Ok(all
            .iter()
            .filter(|c| !kept.contains(&&c.id))
            .cloned()
            .collect())
    }

    /// Drops the row; safe to repeat.
    pub async fn remove(self, id: &CheckpointId) -> Result<(), StoreError> {
        let delete = Entity::delete_many().filter(Column::Id.eq(id.as_str()));
        self.0.delete(delete).await.map(|_| ())
    }
}

fn of(job: &JobId) -> sea_orm::Select<Entity> {
    Entity::find().filter(Column::JobId.eq(job.as_str()))
}

pub(crate) fn to_row(checkpoint: &Checkpoint) -> Result<Model, StoreError> {
    let m = Measurements::try_from(&checkpoint.metrics)?;
    Ok(Model {
        id: checkpoint.id.to_string(),
        job_id: checkpoint.job_id.to_string(),
        attempt: i64::from(checkpoint.attempt),
        step: int(checkpoint.step)?,
        epoch: checkpoint.epoch.map(i64::from),
        name: checkpoint.name.clone(),
        state_object_key: text("state.object_key", &checkpoint.state.object_key)?,
        state_sha256: text("state.sha256", &checkpoint.state.sha256)?,
        state_size_bytes: int(checkpoint.state.size_bytes)?,
        adapter_object_prefix: text("adapter.object_prefix", &checkpoint.adapter.object_prefix)?,
        adapter_sha256: text("adapter.sha256", &checkpoint.adapter.sha256)?,
        adapter_size_bytes: int(checkpoint.adapter.size_bytes)?,
        adapter_frozen_weights: code(&checkpoint.adapter.frozen_weights),
        created_at: checkpoint.created_at.0,
        n_tokens: m.n_tokens,
        train_loss: m.train_loss,
        train_mean_token_accuracy: m.train_mean_token_accuracy,
        valid_loss: m.valid_loss,
        valid_mean_token_accuracy: m.valid_mean_token_accuracy,
        full_valid_loss: m.full_valid_loss,
        full_valid_mean_token_accuracy: m.full_valid_mean_token_accuracy,
    })
}

fn to_domains(rows: Vec<Model>) -> Result<Vec<Checkpoint>, StoreError> {
    rows.into_iter().map(to_domain).collect()
}

fn to_domain(row: Model) -> Result<Checkpoint, StoreError> {
    let metrics = Measurements {
        n_tokens: row.n_tokens,
        train_loss: row.train_loss,
        train_mean_token_accuracy: row.train_mean_token_accuracy,
        valid_loss: row.valid_loss,
        valid_mean_token_accuracy: row.valid_mean_token_accuracy,
        full_valid_loss: row.full_valid_loss,
        full_valid_mean_token_accuracy: row.full_valid_mean_token_accuracy,
    };
    Ok(Checkpoint {
        id: CheckpointId::parse(&row.id)?,
        job_id: JobId::parse(&row.job_id)?,
        attempt: unsigned(row.attempt)?,
        step: unsigned(row.step)?,
        epoch: row.epoch.map(unsigned).transpose()?,
        state: StateRef {
            object_key: row.state_object_key,
            sha256: row.state_sha256,
            size_bytes: unsigned(row.state_size_bytes)?,
        },
        adapter: AdapterRef {
            object_prefix: row.adapter_object_prefix,
            sha256: row.adapter_sha256,
            size_bytes: unsigned(row.adapter_size_bytes)?,
            frozen_weights: from_code("adapter_frozen_weights", &row.adapter_frozen_weights)?,
        },
        name: row.name,
        metrics: metrics.into_step(row.step)?,
        created_at: Timestamp(row.created_at),
    })
}
