//! What each step of a job measured. Written only by the transaction that changes the job.

use domain::id::JobId;
use domain::metrics::StepMetrics;
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QueryOrder};

use crate::connect::Store;
use crate::convert::{Measurements, int};
use crate::entity::metric::{Column, Entity, Model};
use crate::error::StoreError;

#[derive(Clone, Copy)]
pub struct Metrics<'a>(&'a Store);

impl<'a> Metrics<'a> {
    pub(crate) fn new(store: &'a Store) -> Self {
        Self(store)
    }

    /// Every step's measurements, by step.
    pub async fn list(self, job: &JobId) -> Result<Vec<StepMetrics>, StoreError> {
        let select = Entity::find()
            .filter(Column::JobId.eq(job.as_str()))
            .order_by_asc(Column::Step);
        self.0
            .all(select)
            .await?
            .into_iter()
            .map(to_domain)
            .collect()
    }
}

pub(crate) fn to_row(job: &JobId, metrics: &StepMetrics) -> Result<Model, StoreError> {
    let m = Measurements::try_from(metrics)?;
    Ok(Model {
        job_id: job.to_string(),
        step: int(metrics.step)?,
        n_tokens: m.n_tokens,
        train_loss: m.train_loss,
        train_mean_token_accuracy: m.train_mean_token_accuracy,
        valid_loss: m.valid_loss,
        valid_mean_token_accuracy: m.valid_mean_token_accuracy,
        full_valid_loss: m.full_valid_loss,
        full_valid_mean_token_accuracy: m.full_valid_mean_token_accuracy,
    })
}

fn to_domain(row: Model) -> Result<StepMetrics, StoreError> {
    let measurements = Measurements {
        n_tokens: row.n_tokens,
        train_loss: row.train_loss,
        train_mean_token_accuracy: row.train_mean_token_accuracy,
        valid_loss: row.valid_loss,
        valid_mean_token_accuracy: row.valid_mean_token_accuracy,
        full_valid_loss: row.full_valid_loss,
        full_valid_mean_token_accuracy: row.full_valid_mean_token_accuracy,
    };
    measurements.into_step(row.step)
}
