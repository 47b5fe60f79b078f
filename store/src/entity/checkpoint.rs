//! A row of `checkpoints`; what the columns mean stands in the migration.

use sea_orm::entity::prelude::*;

#[derive(Debug, Clone, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "checkpoints")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: String,
    pub job_id: String,
    pub attempt: i64,
    pub step: i64,
    pub epoch: Option<i64>,
    pub name: String,
    pub state_object_key: String,
    pub state_sha256: String,
    pub state_size_bytes: i64,
    pub adapter_object_prefix: String,
    pub adapter_sha256: String,
    pub adapter_size_bytes: i64,
    pub adapter_frozen_weights: String,
    pub created_at: i64,
    pub n_tokens: i64,
    pub train_loss: Option<f64>,
    pub train_mean_token_accuracy: Option<f64>,
    pub valid_loss: Option<f64>,
    pub valid_mean_token_accuracy: Option<f64>,
    pub full_valid_loss: Option<f64>,
    pub full_valid_mean_token_accuracy: Option<f64>,
}

#[derive(Debug, Clone, Copy, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
