//! Batches of requests, and the outcome of each request until the batch's files are written.

use sea_orm_migration::prelude::*;

use crate::table::{TableSpec, int, text};

pub struct Batches;

impl MigrationName for Batches {
    fn name(&self) -> &str {
        "m20261127_000003_batches"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Batches {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        batches().create(manager).await?;
        batch_results().create(manager).await
    }
}

fn batches() -> TableSpec {
    TableSpec {
        name: "batches",
        meaning: "Files of requests that are answered beside the live ones",
        columns: vec![
            text("id", "batch_…"),
            text("project_id", "Whose it is"),
            text(
                "input_file",
                "The file of its requests; kept until the batch is over",
            ),
            text("spec", "What was asked for, as JSON"),
            int("created_at", "Microseconds since the Unix epoch"),
            int("expires_at", "When nothing more of it is begun"),
            text("status", "Where it stands, in OpenAI's words"),
            int(
                "run",
                "How often a process has taken it; a process that is not the last one changes nothing",
            ),
            int(
                "lease_until",
                "Until when it belongs to the process that took it last; null: to nobody",
            )
            .or_null(),
            text("progress", "Everything else that changes, as JSON"),
        ],
        primary_key: &["id"],
        references: &[("project_id", "projects", "id")],
        unique: &[],
        indexes: &[
            &["project_id", "created_at"],
            &["status", "lease_until"],
            &["input_file"],
        ],
    }
}

fn batch_results() -> TableSpec {
    TableSpec {
        name: "batch_results",
        meaning: "Outcomes of requests of batches that are not over; a request has one at most",
        columns: vec![
            text("batch_id", "The batch"),
            int("line", "Where the request stands in the input file, from 1"),
            text("file", "output or error: where the outcome goes"),
            text("body", "The line of that file, as JSON"),
        ],
        primary_key: &["batch_id", "line"],
        references: &[("batch_id", "batches", "id")],
        unique: &[],
        indexes: &[],
    }
}
