//! A model may stand on an adapter that a client brought: then no job made it.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::{ConnectionTrait, DbBackend};

use crate::table::{TableSpec, int, text};

pub struct ModelsWithoutAJob;

impl MigrationName for ModelsWithoutAJob {
    fn name(&self) -> &str {
        "m20261125_000001_models_without_a_job"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for ModelsWithoutAJob {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let db = manager.get_connection();
        if db.get_database_backend() == DbBackend::Postgres {
            return db.execute_unprepared(POSTGRES).await.map(drop);
        }
        // SQLite cannot loosen a column: the table is made anew around its rows.
        db.execute_unprepared(SQLITE_ASIDE).await?;
        models().create(manager).await?;
        db.execute_unprepared(SQLITE_BACK).await.map(drop)
    }
}

const POSTGRES: &str = "ALTER TABLE models ALTER COLUMN job_id DROP NOT NULL; \
     COMMENT ON COLUMN models.job_id IS 'The job that made it; null: a client brought the adapter'; \
     COMMENT ON TABLE models IS \
     'Tuned models and servable checkpoints of jobs that succeeded, and adapters that clients brought'";

const SQLITE_ASIDE: &str = "ALTER TABLE models RENAME TO models_before; \
     DROP INDEX models_project_id_created_at; \
     DROP INDEX models_job_id";

const SQLITE_BACK: &str = "INSERT INTO models \
     SELECT name, project_id, job_id, base_model, adapter_object_prefix, adapter_sha256, adapter_size_bytes, owned_by, \
     created_at, deleted_at FROM models_before; \
     DROP TABLE models_before";

fn models() -> TableSpec {
    TableSpec {
        name: "models",
        meaning: "Tuned models and servable checkpoints of jobs that succeeded, and adapters that clients brought",
        columns: vec![
            text("name", "ft:base:org:suffix:nonce, perhaps :ckpt-step-n"),
            text("project_id", "Whose it is"),
            text(
                "job_id",
                "The job that made it; null: a client brought the adapter",
            )
            .or_null(),
            text("base_model", "Name of the base it stands on"),
            text(
                "adapter_object_prefix",
                "Folder of the adapter in the bucket",
            ),
            text("adapter_sha256", "Hex hash of the adapter's weights"),
            int("adapter_size_bytes", "Size of the adapter's weights"),
            text("owned_by", "The organisation's slug"),
            int("created_at", "Microseconds since the Unix epoch"),
            int(
                "deleted_at",
                "Set: gone for clients; the name is never used again",
            )
            .or_null(),
        ],
        primary_key: &["name"],
        references: &[("project_id", "projects", "id"), ("job_id", "jobs", "id")],
        unique: &[],
        indexes: &[&["project_id", "created_at"], &["job_id"]],
    }
}
