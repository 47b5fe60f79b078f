//! How much a project may ask of a model, and what is left of it.

use sea_orm_migration::prelude::*;

use crate::table::{TableSpec, int, real, text};

pub struct RateLimits;

impl MigrationName for RateLimits {
    fn name(&self) -> &str {
        "m20261127_000006_rate_limits"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for RateLimits {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        limits().create(manager).await?;
        buckets().create(manager).await
    }
}

fn limits() -> TableSpec {
    TableSpec {
        name: "rate_limits",
        meaning: "Limits that differ from the installation's default",
        columns: vec![
            text("project_id", "Whose it is"),
            text("model", "Name of the base model"),
            int(
                "requests_per_minute",
                "Requests of all processes together, at least 1",
            ),
            int("tokens_per_minute", "Tokens read and written, at least 1"),
            int("updated_at", "Microseconds since the Unix epoch"),
        ],
        primary_key: &["project_id", "model"],
        references: &[("project_id", "projects", "id")],
        unique: &[],
        indexes: &[],
    }
}

fn buckets() -> TableSpec {
    TableSpec {
        name: "rate_buckets",
        meaning: "What is left of each limit, less what processes have drawn and not spent yet",
        columns: vec![
            text("project_id", "Whose it is"),
            text("model", "Name of the base model"),
            real("requests_left", "As of updated_at"),
            real(
                "tokens_left",
                "As of updated_at; below 0 after answers longer than reckoned",
            ),
            int("updated_at", "Microseconds since the Unix epoch"),
        ],
        primary_key: &["project_id", "model"],
        references: &[("project_id", "projects", "id")],
        unique: &[],
        indexes: &[],
    }
}
