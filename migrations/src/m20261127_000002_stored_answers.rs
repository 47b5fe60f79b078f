//! Answers that clients asked to keep: chat completions and responses.

use sea_orm_migration::prelude::*;

use crate::table::{TableSpec, int, text};

pub struct StoredAnswers;

impl MigrationName for StoredAnswers {
    fn name(&self) -> &str {
        "m20261127_000002_stored_answers"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for StoredAnswers {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for table in [chat_completions(), chat_completion_metadata(), responses()] {
            table.create(manager).await?;
        }
        Ok(())
    }
}

fn chat_completions() -> TableSpec {
    TableSpec {
        name: "chat_completions",
        meaning: "Chat completions that a client asked to keep",
        columns: vec![
            text("id", "chatcmpl-…"),
            text("project_id", "Whose it is"),
            text("model", "As it was asked for"),
            text(
                "messages",
                "JSON: the conversation as the client spelled it",
            ),
            text("choices", "JSON: the answers"),
            text("usage", "JSON: tokens"),
            text("metadata", "JSON: pairs in the client's order; null: none").or_null(),
            int("created_at", "Microseconds since the Unix epoch"),
        ],
        primary_key: &["id"],
        references: &[("project_id", "projects", "id")],
        unique: &[],
        indexes: &[&["project_id", "created_at"], &["created_at"]],
    }
}

fn chat_completion_metadata() -> TableSpec {
    TableSpec {
        name: "chat_completion_metadata",
        meaning: "Metadata of stored chat completions, to filter lists by",
        columns: vec![
            text("completion_id", "The completion"),
            text("key", "At most 64 characters"),
            text("value", "At most 512 characters"),
        ],
        primary_key: &["completion_id", "key"],
        references: &[("completion_id", "chat_completions", "id")],
        unique: &[],
        indexes: &[],
    }
}

fn responses() -> TableSpec {
    TableSpec {
        name: "responses",
        meaning: "Responses that are kept, each with the whole conversation it answers",
        columns: vec![
            text("id", "resp_…"),
            text("project_id", "Whose it is"),
            text("input", "JSON: the items it answers, earlier turns first"),
            text("response", "JSON: what was asked of it and what came"),
            int("created_at", "Microseconds since the Unix epoch"),
        ],
        primary_key: &["id"],
        references: &[("project_id", "projects", "id")],
        unique: &[],
        indexes: &[&["created_at"]],
    }
}
