//! The second wall between projects: every table with rows of projects is put behind it.

use sea_orm_migration::prelude::*;

use crate::row_security::{Owner, raise};

pub struct RowLevelSecurity;

impl MigrationName for RowLevelSecurity {
    fn name(&self) -> &str {
        "m20261127_000201_row_level_security"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for RowLevelSecurity {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        // Each is locked until the end: first what refers to others, in the order in which requests lock them.
        for (table, column, of) in OF_ROWS_WITH_PROJECT_ID {
            let owner = Owner::Through { column, table: of };
            raise(manager, table, owner, None).await?;
        }
        for table in WITH_PROJECT_ID {
            raise(manager, table, Owner::Column("project_id"), None).await?;
        }
        let own = Owner::Column("project_id");
        raise(manager, "models", own, Some(PERMITTED_MODELS)).await?;
        let own = Owner::Column("scope");
        raise(manager, "model_aliases", own, Some(ALIASES_OF_ALL)).await?;
        raise(manager, "projects", Owner::Column("id"), None).await?;
        raise(manager, "users", Owner::Organization, None).await
    }
}

const WITH_PROJECT_ID: [&str; 18] = [
    "api_keys",
    "audit_log",
    "batches",
    "chat_completions",
    "checkpoint_permissions",
    "dry_runs",
    "files",
    "idempotency_keys",
    "jobs",
    "project_users",
    "rate_buckets",
    "rate_limits",
    "responses",
    "served_usage",
    "service_accounts",
    "uploads",
    "usage",
    "webhook_endpoints",
];

/// A table, the column that names whose its rows are, and the table with that row.
const OF_ROWS_WITH_PROJECT_ID: [(&str, &str, &str); 12] = [
    ("attempts", "job_id", "jobs"),
    ("batch_results", "batch_id", "batches"),
    (
        "chat_completion_metadata",
        "completion_id",
        "chat_completions",
    ),
    ("checkpoints", "job_id", "jobs"),
    ("events", "job_id", "jobs"),
    ("job_metadata", "job_id", "jobs"),
    ("job_transitions", "job_id", "jobs"),
    ("metrics", "job_id", "jobs"),
    ("training_speeds", "job_id", "jobs"),
    ("upload_parts", "upload_id", "uploads"),
    ("webhook_deliveries", "endpoint_id", "webhook_endpoints"),
    ("webhook_secrets", "endpoint_id", "webhook_endpoints"),
];

/// Models that other projects let this one use; of permissions a request sees its own project's alone.
const PERMITTED_MODELS: &str = "name IN (SELECT p.model FROM checkpoint_permissions p \
     WHERE p.project_id = (SELECT NULLIF(current_setting('luthier.project', true), '')))";

const ALIASES_OF_ALL: &str = "scope = 'installation'";
