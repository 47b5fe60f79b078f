//! A row of `uploads`; what the columns mean stands in the migration.

use sea_orm::entity::prelude::*;

#[derive(Debug, Clone, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "uploads")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: String,
    pub project_id: String,
    pub filename: String,
    pub purpose: String,
    pub size_bytes: i64,
    pub file_lifetime_s: Option<i64>,
    pub created_at: i64,
    pub expires_at: i64,
    pub state: String,
    pub file_id: Option<String>,
}

#[derive(Debug, Clone, Copy, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
