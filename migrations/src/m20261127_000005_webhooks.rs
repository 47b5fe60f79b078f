//! Webhooks: where projects are told of what happened, what their messages are signed with, and what is on its way.

use sea_orm_migration::prelude::*;

use crate::table::{TableSpec, int, text};

pub struct Webhooks;

impl MigrationName for Webhooks {
    fn name(&self) -> &str {
        "m20261127_000005_webhooks"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Webhooks {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for table in [endpoints(), secrets(), deliveries()] {
            table.create(manager).await?;
        }
        Ok(())
    }
}

fn endpoints() -> TableSpec {
    TableSpec {
        name: "webhook_endpoints",
        meaning: "Where projects are told of what happened",
        columns: vec![
            text("id", "we_…"),
            text("project_id", "Whose it is"),
            text("name", "For people"),
            text("url", "Where to"),
            text("event_types", "JSON: the types it is told of"),
            text(
                "secret_hint",
                "Last characters of the signing secret, to recognise it",
            ),
            int("created_at", "Microseconds since the Unix epoch"),
            int("updated_at", "When the client last changed it"),
            int("failing_since", "Set: nothing got through since then").or_null(),
            int(
                "disabled_at",
                "Set: is told of nothing until the client updates it",
            )
            .or_null(),
        ],
        primary_key: &["id"],
        references: &[("project_id", "projects", "id")],
        unique: &[],
        indexes: &[&["project_id", "created_at", "id"]],
    }
}

fn secrets() -> TableSpec {
    TableSpec {
        name: "webhook_secrets",
        meaning: "What messages are signed with: the current secret of each endpoint, and for a day the one before",
        columns: vec![
            text("id", "wkey_…; the secret is sealed for this row"),
            text("endpoint_id", "Whose messages it signs"),
            text(
                "sealed",
                "The secret under the installation's encryption key",
            ),
            int(
                "active_until",
                "Null: the current one; else it signs until then",
            )
            .or_null(),
        ],
        primary_key: &["id"],
        references: &[("endpoint_id", "webhook_endpoints", "id")],
        unique: &[],
        indexes: &[&["endpoint_id"]],
    }
}

fn deliveries() -> TableSpec {
    TableSpec {
        name: "webhook_deliveries",
        meaning: "Events on their way; written with the change they tell of, for each endpoint that is told",
        columns: vec![
            text(
                "id",
                "wh_…: of the event and the endpoint, the same at each try",
            ),
            text("endpoint_id", "Where to"),
            text("event_type", "e.g. fine_tuning.job.succeeded"),
            text("body", "JSON: what is sent"),
            int("created_at", "When it happened, microseconds"),
            int("n_tries", "Tries that have ended"),
            int(
                "next_try_at",
                "Tried from then on; moved ahead while somebody tries; null: delivered or given up",
            )
            .or_null(),
            int("delivered_at", "Set: the receiver took it").or_null(),
            text("last_failure", "Why the last try failed").or_null(),
        ],
        primary_key: &["id"],
        references: &[("endpoint_id", "webhook_endpoints", "id")],
        unique: &[],
        indexes: &[&["next_try_at"], &["endpoint_id", "next_try_at"]],
    }
}
