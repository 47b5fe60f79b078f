//! A row of `idempotency_keys`; what the columns mean stands in the migration.

use sea_orm::entity::prelude::*;

#[derive(Debug, Clone, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "idempotency_keys")]
pub struct Model {
    #[sea_orm(primary_key)]
    pub id: i64,
    pub project_id: String,
    pub endpoint: String,
    pub key: Option<String>,
    pub api_key_id: String,
    pub fingerprint: String,
    pub object_id: String,
    pub created_at: i64,
    pub expires_at: i64,
    pub first_due_before: Option<i64>,
}

#[derive(Debug, Clone, Copy, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
