//! Orders of jobs that are judged and never made.

use sea_orm_migration::prelude::*;

use crate::table::{TableSpec, int, text};

pub struct DryRuns;

impl MigrationName for DryRuns {
    fn name(&self) -> &str {
        "m20261127_000101_dry_runs"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for DryRuns {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        dry_runs().create(manager).await
    }
}

fn dry_runs() -> TableSpec {
    TableSpec {
        name: "dry_runs",
        meaning: "Orders of jobs that are judged and never made; kept for a day",
        columns: vec![
            text("id", "dryrun_…"),
            text("project_id", "Whose it is"),
            text("spec", "JSON: what the job would be, as in jobs"),
            int("created_at", "Microseconds since the Unix epoch"),
            text("report", "JSON: what the scheduler found; null: not yet").or_null(),
        ],
        primary_key: &["id"],
        references: &[("project_id", "projects", "id")],
        unique: &[],
        indexes: &[&["project_id"], &["created_at"]],
    }
}
