//! Other names for models.

use sea_orm_migration::prelude::*;

use crate::table::{TableSpec, int, text};

pub struct ModelAliases;

impl MigrationName for ModelAliases {
    fn name(&self) -> &str {
        "m20261127_000005_model_aliases"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for ModelAliases {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        model_aliases().create(manager).await
    }
}

fn model_aliases() -> TableSpec {
    TableSpec {
        name: "model_aliases",
        meaning: "Names that stand for models; a model of the same name goes before",
        columns: vec![
            text("scope", "The project whose it is, or installation"),
            text("name", "As clients spell it"),
            text("model", "The base or tuned model it stands for"),
            int("created_at", "Microseconds since the Unix epoch"),
        ],
        primary_key: &["scope", "name"],
        references: &[],
        unique: &[],
        indexes: &[],
    }
}
