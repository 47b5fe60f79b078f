//! Who may do what: users, service accounts and admin keys beside keys of projects, and what administrators did.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::ConnectionTrait;

use crate::table::{TableSpec, add_columns, int, text};

pub struct Administration;

impl MigrationName for Administration {
    fn name(&self) -> &str {
        "m20261127_000004_administration"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Administration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for table in [
            users(),
            project_users(),
            service_accounts(),
            admin_api_keys(),
            invites(),
            checkpoint_permissions(),
            audit_log(),
        ] {
            table.create(manager).await?;
        }
        widen_api_keys(manager).await?;
        widen_tenants(manager).await?;
        let db = manager.get_connection();
        db.execute_unprepared(NAMES_OF_LIVE_PROJECTS)
            .await
            .map(drop)
    }
}

/// An archived project is never opened again: its name is free.
const NAMES_OF_LIVE_PROJECTS: &str = "DROP INDEX projects_name; \
     CREATE UNIQUE INDEX projects_live_name ON projects (name) WHERE archived_at IS NULL";

async fn widen_api_keys(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let columns = [
        text("scopes", "JSON: what the key may do").or_default("\"all\""),
        text(
            "owner_user_id",
            "Set: opens while this user is a member of the project",
        )
        .or_null(),
        text(
            "owner_service_account_id",
            "Set: opens while this service account has a role",
        )
        .or_null(),
        int("expires_at", "Set: opens nothing from this instant on").or_null(),
    ];
    add_columns(manager, "api_keys", &columns).await
}

async fn widen_tenants(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let policy = text(
        "model_permissions",
        "JSON: which models the project may name; null: all",
    );
    add_columns(manager, "projects", &[policy.or_null()]).await?;
    let head = [
        int("audit_seq", "Number of entries in the audit log").or_default(0),
        text("audit_hash", "Hash of the last entry; empty: there is none").or_default(""),
    ];
    add_columns(manager, "organizations", &head).await
}

fn users() -> TableSpec {
    TableSpec {
        name: "users",
        meaning: "People of organisations",
        columns: vec![
            text("id", "user-…"),
            text("organization_id", "The organisation it belongs to"),
            text("email", "In lower case"),
            text("name", "For people"),
            text("role", "owner or reader"),
            int("added_at", "Microseconds since the Unix epoch"),
        ],
        primary_key: &["id"],
        references: &[("organization_id", "organizations", "id")],
        unique: &[&["organization_id", "email"]],
        indexes: &[&["organization_id", "added_at", "id"]],
    }
}

fn project_users() -> TableSpec {
    TableSpec {
        name: "project_users",
        meaning: "Which users are members of which projects",
        columns: vec![
            text("project_id", "The project"),
            text("user_id", "The user"),
            text("role", "owner or member"),
            int("added_at", "Microseconds since the Unix epoch"),
        ],
        primary_key: &["project_id", "user_id"],
        references: &[("project_id", "projects", "id"), ("user_id", "users", "id")],
        unique: &[],
        indexes: &[&["user_id"]],
    }
}

fn service_accounts() -> TableSpec {
    TableSpec {
        name: "service_accounts",
        meaning: "Programs that have keys of their own in a project",
        columns: vec![
            text("id", "svc_acct_…"),
            text("project_id", "Whose it is"),
            text("name", "For people"),
            text("role", "owner, member or none; none: its keys open nothing"),
            int("created_at", "Microseconds since the Unix epoch"),
        ],
        primary_key: &["id"],
        references: &[("project_id", "projects", "id")],
        unique: &[],
        indexes: &[&["project_id", "created_at", "id"]],
    }
}

fn admin_api_keys() -> TableSpec {
    TableSpec {
        name: "admin_api_keys",
        meaning: "Keys that administer an organisation; never the secret itself",
        columns: vec![
            text("id", "key_…"),
            text("organization_id", "The organisation it administers"),
            text("name", "For people"),
            text(
                "hmac",
                "Hex HMAC-SHA256 of the secret under the installation's pepper",
            ),
            text(
                "redacted",
                "First and last characters of the secret, to recognise it",
            ),
            text(
                "owner_user_id",
                "Set: opens while this user is an owner of the organisation",
            )
            .or_null(),
            int("created_at", "Microseconds since the Unix epoch"),
            int("expires_at", "Set: opens nothing from this instant on").or_null(),
            int("last_used_at", "Last use, coarsely").or_null(),
            int("revoked_at", "Set: opens nothing any more").or_null(),
        ],
        primary_key: &["id"],
        references: &[("organization_id", "organizations", "id")],
        unique: &[&["hmac"]],
        indexes: &[&["organization_id", "created_at", "id"]],
    }
}

fn invites() -> TableSpec {
    TableSpec {
        name: "invites",
        meaning: "Who was asked to join an organisation",
        columns: vec![
            text("id", "invite-…"),
            text("organization_id", "The organisation"),
            text("email", "In lower case"),
            text("role", "owner or reader"),
            text(
                "projects",
                "JSON: projects to be a member of, with the role",
            ),
            int("created_at", "Microseconds since the Unix epoch"),
            int("expires_at", "It cannot be accepted from this instant on"),
        ],
        primary_key: &["id"],
        references: &[("organization_id", "organizations", "id")],
        unique: &[],
        indexes: &[&["organization_id", "created_at", "id"]],
    }
}

fn checkpoint_permissions() -> TableSpec {
    TableSpec {
        name: "checkpoint_permissions",
        meaning: "Which projects may use another project's tuned models",
        columns: vec![
            text("id", "cp_…"),
            text("model", "Name of the tuned model"),
            text("project_id", "The project that may use it"),
            int("created_at", "Microseconds since the Unix epoch"),
        ],
        primary_key: &["id"],
        references: &[
            ("model", "models", "name"),
            ("project_id", "projects", "id"),
        ],
        unique: &[&["model", "project_id"]],
        indexes: &[&["project_id"]],
    }
}

fn audit_log() -> TableSpec {
    TableSpec {
        name: "audit_log",
        meaning: "What administrators did; rows are never changed, and each is chained to the one before",
        columns: vec![
            text("id", "audit_log-…"),
            text("organization_id", "Whose log it is"),
            int(
                "seq",
                "1 for the organisation's first entry, and so on without a gap",
            ),
            int("effective_at", "Microseconds since the Unix epoch"),
            text(
                "type",
                "OpenAI's name of the event, such as project.created",
            ),
            text("resource_id", "What it was done to"),
            text("details", "JSON: what was asked for"),
            text("project_id", "The project it was done in").or_null(),
            text("project_name", "The project's name at that time").or_null(),
            text(
                "actor_key_id",
                "The admin key; null: the operator's command line",
            )
            .or_null(),
            text("actor_user_id", "The user whose key it is").or_null(),
            text("actor_email", "The user's address at that time").or_null(),
            text("ip", "Where the request came from; null: the command line").or_null(),
            text(
                "hash",
                "Hex SHA-256 over this entry and the hash of the one before",
            ),
        ],
        primary_key: &["id"],
        references: &[("organization_id", "organizations", "id")],
        unique: &[&["organization_id", "seq"]],
        indexes: &[
            &["organization_id", "effective_at"],
            &["organization_id", "type"],
        ],
    }
}
