//! How fast finished trainings went.

use sea_orm_migration::prelude::*;

use crate::table::{TableSpec, int, real, text};

pub struct TrainingSpeeds;

impl MigrationName for TrainingSpeeds {
    fn name(&self) -> &str {
        "m20261127_000102_training_speeds"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for TrainingSpeeds {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        training_speeds().create(manager).await
    }
}

fn training_speeds() -> TableSpec {
    TableSpec {
        name: "training_speeds",
        meaning: "How fast jobs went that succeeded: what the next ones on the base model may expect",
        columns: vec![
            text("job_id", "The job"),
            text("base_model", "The base model's name"),
            text("method", "supervised or dpo"),
            text("device", "cpu or gpu"),
            real("tokens_per_s", "Of its steps, as its worker measured them"),
            int("created_at", "Microseconds since the Unix epoch"),
        ],
        primary_key: &["job_id"],
        references: &[("job_id", "jobs", "id")],
        unique: &[],
        indexes: &[&["base_model", "method", "created_at"]],
    }
}
