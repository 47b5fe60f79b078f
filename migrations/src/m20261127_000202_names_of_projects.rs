//! Each organisation names its projects as it likes.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::ConnectionTrait;

pub struct NamesOfProjects;

impl MigrationName for NamesOfProjects {
    fn name(&self) -> &str {
        "m20261127_000202_names_of_projects"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for NamesOfProjects {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let db = manager.get_connection();
        db.execute_unprepared(NAMES_OF_LIVE_PROJECTS)
            .await
            .map(drop)
    }
}

const NAMES_OF_LIVE_PROJECTS: &str = "DROP INDEX projects_live_name; \
     CREATE UNIQUE INDEX projects_live_name ON projects (organization_id, name) WHERE archived_at IS NULL";
