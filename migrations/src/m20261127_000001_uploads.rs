//! Files that come in parts.

use sea_orm_migration::prelude::*;

use crate::table::{TableSpec, int, text};

pub struct Uploads;

impl MigrationName for Uploads {
    fn name(&self) -> &str {
        "m20261127_000001_uploads"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Uploads {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for table in [uploads(), upload_parts()] {
            table.create(manager).await?;
        }
        Ok(())
    }
}

fn uploads() -> TableSpec {
    TableSpec {
        name: "uploads",
        meaning: "Files that are announced and come in parts",
        columns: vec![
            text("id", "upload_…"),
            text("project_id", "Whose it is"),
            text("filename", "Of the file to be; never part of a path"),
            text("purpose", "OpenAI's purpose of the file to be"),
            int("size_bytes", "What the parts must sum up to"),
            int(
                "file_lifetime_s",
                "How long the file is kept once it is made; null: until deleted",
            )
            .or_null(),
            int("created_at", "Microseconds since the Unix epoch"),
            int("expires_at", "Until when parts are taken"),
            text("state", "pending, completed or cancelled"),
            text(
                "file_id",
                "What the parts became; set with the state completed",
            )
            .or_null(),
        ],
        primary_key: &["id"],
        references: &[("project_id", "projects", "id")],
        unique: &[],
        indexes: &[&["expires_at"], &["state"]],
    }
}

fn upload_parts() -> TableSpec {
    TableSpec {
        name: "upload_parts",
        meaning: "Parts of uploads; the object is in the bucket before the row is here",
        columns: vec![
            text("id", "part_…"),
            text("upload_id", "The upload it is a part of"),
            int("size_bytes", "Size of the object"),
            text("object_key", "Where the bytes are in the bucket"),
            int("created_at", "Microseconds since the Unix epoch"),
        ],
        primary_key: &["id"],
        references: &[("upload_id", "uploads", "id")],
        unique: &[],
        indexes: &[&["upload_id"]],
    }
}
