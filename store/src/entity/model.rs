//! A row of `models`; what the columns mean stands in the migration.

use sea_orm::entity::prelude::*;

#[derive(Debug, Clone, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "models")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub name: String,
    pub project_id: String,
    pub job_id: Option<String>,
    pub base_model: String,
    pub adapter_object_prefix: String,
    pub adapter_sha256: String,
    pub adapter_size_bytes: i64,
    pub adapter_frozen_weights: String,
    pub owned_by: String,
    pub created_at: i64,
    pub deleted_at: Option<i64>,
}

#[derive(Debug, Clone, Copy, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
