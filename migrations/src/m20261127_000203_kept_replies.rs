//! Answers that are kept for requests that come again.

use sea_orm_migration::prelude::*;

use crate::row_security::{Owner, raise};
use crate::table::{TableSpec, identity, int, text};

pub struct KeptReplies;

impl MigrationName for KeptReplies {
    fn name(&self) -> &str {
        "m20261127_000203_kept_replies"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for KeptReplies {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let table = kept_replies();
        table.create(manager).await?;
        raise(manager, table.name, Owner::Column("project_id"), None).await
    }
}

fn kept_replies() -> TableSpec {
    TableSpec {
        name: "kept_replies",
        meaning: "What a POST was answered with, for the same one that comes again",
        columns: vec![
            identity("id", "Order of writing"),
            text(
                "project_id",
                "Whose request; null for one of an administrator",
            )
            .or_null(),
            text("api_key_id", "The key that signed the request"),
            text("endpoint", "Path of the request"),
            text("key", "The client's Idempotency-Key").or_null(),
            text("fingerprint", "Hash of the request"),
            text(
                "reply",
                "The body of the answer, sealed; null while the request is under way",
            )
            .or_null(),
            int("created_at", "Microseconds since the Unix epoch"),
            int("expires_at", "Forgotten after this instant"),
        ],
        primary_key: &[],
        references: &[("project_id", "projects", "id")],
        unique: &[&["api_key_id", "endpoint", "key"]],
        indexes: &[
            &["api_key_id", "endpoint", "fingerprint", "created_at"],
            &["expires_at"],
        ],
    }
}
