//! How much a project may spend, store and train at the same time.

use sea_orm_migration::prelude::*;

use crate::table::{add_columns, int};

pub struct Caps;

impl MigrationName for Caps {
    fn name(&self) -> &str {
        "m20261127_000301_caps"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Caps {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let of_projects = [
            int(
                "spend_limit_cents",
                "What the project may spend in a calendar month (UTC), US cents; null: no limit",
            )
            .or_null(),
            int(
                "max_stored_bytes",
                "Bytes of its files and of parts of pending uploads; null: the installation's limit",
            )
            .or_null(),
            int(
                "max_unfinished_jobs",
                "Fine-tuning jobs that have not ended, at least 1; null: the installation's limit",
            )
            .or_null(),
            int(
                "max_running_jobs",
                "Fine-tuning jobs offered to workers or held by them, at least 1; null: the installation's limit",
            )
            .or_null(),
        ];
        add_columns(manager, "projects", &of_projects).await?;
        let of_jobs = [int(
            "planned_tokens",
            "Tokens that the job trains on if it succeeds; null: not validated yet",
        )
        .or_null()];
        add_columns(manager, "jobs", &of_jobs).await
    }
}
