//! What answers took, minute by minute.

use sea_orm_migration::prelude::*;

use crate::table::{TableSpec, int, text};

pub struct ServedUsage;

impl MigrationName for ServedUsage {
    fn name(&self) -> &str {
        "m20261127_000005_served_usage"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for ServedUsage {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        served_usage().create(manager).await
    }
}

fn served_usage() -> TableSpec {
    TableSpec {
        name: "served_usage",
        meaning: "What answers took; every process adds to the row of its minute",
        columns: vec![
            text("project_id", "Who consumed it"),
            int(
                "minute_s",
                "Where the minute begins in which the requests did, Unix seconds",
            ),
            text("api_key_id", "The key they came with; empty: of a batch"),
            text("model", "Its own name, not an alias"),
            text("service", "completions, embeddings or moderations"),
            int("is_batch", "1: of a batch; else 0"),
            int("n_requests", "How many"),
            int("input_tokens", "Of their prompts"),
            int("cached_tokens", "Of these not computed again"),
            int("output_tokens", "Of their answers"),
        ],
        primary_key: &[
            "project_id",
            "minute_s",
            "api_key_id",
            "model",
            "service",
            "is_batch",
        ],
        references: &[("project_id", "projects", "id")],
        unique: &[],
        indexes: &[],
    }
}
