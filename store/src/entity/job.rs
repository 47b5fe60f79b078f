//! A row of `jobs`; what the columns mean stands in the migration.

use sea_orm::entity::prelude::*;

#[derive(Debug, Clone, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "jobs")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: String,
    pub project_id: String,
    pub organization_id: String,
    pub organization_slug: String,
    pub model: String,
    pub training_file: String,
    pub validation_file: Option<String>,
    pub model_nonce: String,
    pub spec: String,
    pub created_at: i64,
    pub state: String,
    pub version: i64,
    pub attempt: i64,
    pub worker_id: Option<String>,
    pub dispatch_id: Option<String>,
    pub state_since: i64,
    pub lease_until: Option<i64>,
    pub not_before: Option<i64>,
    pub n_events: i64,
    pub planned_tokens: Option<i64>,
    pub progress: String,
}

#[derive(Debug, Clone, Copy, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
