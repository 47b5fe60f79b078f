//! An adapter knows how its base's weights were held when it was trained. Until now they were held as stored.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::{ConnectionTrait, DbBackend};

pub struct FrozenWeights;

impl MigrationName for FrozenWeights {
    fn name(&self) -> &str {
        "m20261125_000002_frozen_weights"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for FrozenWeights {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let db = manager.get_connection();
        for table in ["models", "checkpoints"] {
            let mut column = ColumnDef::new("adapter_frozen_weights");
            let column = column.text().not_null().default("stored");
            let alter = Table::alter().table(table).add_column(column).take();
            manager.alter_table(alter).await?;
            if db.get_database_backend() == DbBackend::Postgres {
                let comment = format!(
                    "COMMENT ON COLUMN {table}.adapter_frozen_weights IS \
                     'How the base''s weights were held when the adapter was trained'"
                );
                db.execute_unprepared(&comment).await?;
            }
        }
        Ok(())
    }
}
