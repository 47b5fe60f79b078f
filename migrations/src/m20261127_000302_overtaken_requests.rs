//! Requests without a key whose repetition was faster than their first sending.

use sea_orm_migration::prelude::*;

use crate::table::{add_columns, int};

pub struct OvertakenRequests;

impl MigrationName for OvertakenRequests {
    fn name(&self) -> &str {
        "m20261127_000302_overtaken_requests"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for OvertakenRequests {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let column = int(
            "first_due_before",
            "When the repetition without a key began that made the object, until the request's first sending asks for it, which \
             began before; else null",
        );
        add_columns(manager, "idempotency_keys", &[column.or_null()]).await
    }
}
