//! How fast finished trainings went, over all projects. Written by the transaction that ends the job.

use domain::job::FineTuningJob;
use domain::speed::TrainingSpeed;
use domain::time::Timestamp;
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QueryOrder, QuerySelect};

use crate::connect::Store;
use crate::convert::{code, from_code};
use crate::entity::training_speed::{Column, Entity, Model};
use crate::error::StoreError;

#[derive(Clone, Copy)]
pub struct TrainingSpeeds<'a>(&'a Store);

impl<'a> TrainingSpeeds<'a> {
    pub(crate) fn new(store: &'a Store) -> Self {
        Self(store)
    }

    /// Of the last trainings on the base model by this method, newest first.
    pub async fn latest(
        self,
        base_model: &str,
        method: &str,
        limit: u64,
    ) -> Result<Vec<TrainingSpeed>, StoreError> {
        let select = Entity::find()
            .filter(Column::BaseModel.eq(base_model))
            .filter(Column::Method.eq(method))
            .order_by_desc(Column::CreatedAt)
            .limit(limit);
        let rows = self.0.all(select).await?;
        let to_speed = |row: Model| {
            Ok(TrainingSpeed {
                device: from_code("training_speeds.device", &row.device)?,
                tokens_per_s: row.tokens_per_s,
            })
        };
        rows.into_iter().map(to_speed).collect()
    }
}

pub(crate) fn to_row(job: &FineTuningJob, speed: TrainingSpeed, now: Timestamp) -> Model {
    Model {
        job_id: job.id.to_string(),
        base_model: job.spec.model.clone(),
        method: job.spec.method.name().to_owned(),
        device: code(&speed.device),
        tokens_per_s: speed.tokens_per_s,
        created_at: now.0,
    }
}
