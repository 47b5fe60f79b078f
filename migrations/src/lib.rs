//! The schema, step by step. Migrations only ever expand; what is no longer used is dropped a release later.
//! All pending steps are applied in one transaction under a lock, by `store::Store::migrate`.

use sea_orm_migration::{MigrationTrait, MigratorTrait};

mod m20261123_000001_first;
mod m20261125_000001_models_without_a_job;
mod m20261125_000002_frozen_weights;
mod m20261127_000001_uploads;
mod m20261127_000002_stored_answers;
mod m20261127_000003_batches;
mod m20261127_000004_administration;
mod m20261127_000005_model_aliases;
mod m20261127_000005_served_usage;
mod m20261127_000005_webhooks;
mod m20261127_000006_rate_limits;
mod m20261127_000101_dry_runs;
mod m20261127_000102_training_speeds;
mod m20261127_000201_row_level_security;
mod m20261127_000202_names_of_projects;
mod m20261127_000203_kept_replies;
mod m20261127_000301_caps;
mod m20261127_000302_overtaken_requests;
pub mod row_security;
mod table;

/// Every migration, oldest first.
pub struct Migrator;

impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m20261123_000001_first::First),
            Box::new(m20261125_000001_models_without_a_job::ModelsWithoutAJob),
            Box::new(m20261125_000002_frozen_weights::FrozenWeights),
            Box::new(m20261127_000001_uploads::Uploads),
            Box::new(m20261127_000002_stored_answers::StoredAnswers),
            Box::new(m20261127_000003_batches::Batches),
            Box::new(m20261127_000004_administration::Administration),
            Box::new(m20261127_000005_model_aliases::ModelAliases),
            Box::new(m20261127_000005_served_usage::ServedUsage),
            Box::new(m20261127_000005_webhooks::Webhooks),
            Box::new(m20261127_000006_rate_limits::RateLimits),
            Box::new(m20261127_000101_dry_runs::DryRuns),
            Box::new(m20261127_000102_training_speeds::TrainingSpeeds),
            Box::new(m20261127_000201_row_level_security::RowLevelSecurity),
            Box::new(m20261127_000202_names_of_projects::NamesOfProjects),
            Box::new(m20261127_000203_kept_replies::KeptReplies),
            Box::new(m20261127_000301_caps::Caps),
            Box::new(m20261127_000302_overtaken_requests::OvertakenRequests),
        ]
    }
}
