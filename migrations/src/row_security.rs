//! The second wall between projects, on PostgreSQL: policies that show a request the rows of its own project alone, even
//! where a query forgets to ask for them. docs/decisions/0017 says how requests come to be bound by them.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::{ConnectionTrait, DbBackend, Statement};

/// The role that requests of a project act as. It owns nothing, cannot log in, and passes by no policy.
pub const REQUEST_ROLE: &str = "luthier_app";
/// Names the project that a request acts for; [`OPERATOR`] for work across projects. What is neither sees nothing.
pub const PROJECT_SETTING: &str = "luthier.project";
/// What [`PROJECT_SETTING`] is for work across projects; no project's id is spelled so.
pub const OPERATOR: &str = "*";

/// How a table tells whose its rows are.
#[derive(Clone, Copy)]
pub enum Owner {
    /// By a column that holds the project's id.
    Column(&'static str),
    /// By the row that `column` names in another table, which has a `project_id`.
    Through {
        column: &'static str,
        table: &'static str,
    },
    /// By the organisation of the project.
    Organization,
}

/// What a request may see of a table beyond its own rows, never change.
pub type AlsoVisible = &'static str;

/// The project at hand; null: none. A query of its own, so that it is computed once for each statement, not for each row.
/// A setting of a transaction that is over reads as an empty text.
const PROJECT: &str = "(SELECT NULLIF(current_setting('luthier.project', true), ''))";

/// Work across projects: by another role than that of requests, in a session that names no project. Sessions that know
/// nothing of the setting (older programs, `psql`, `pg_dump`) are such.
const IS_OPERATOR: &str = "(SELECT current_user <> 'luthier_app' \
     AND COALESCE(current_setting('luthier.project', true), '*') = '*')";

/// Puts `table` behind the wall, for its owner, too. Nothing on SQLite, which has no such policies.
pub async fn raise(
    manager: &SchemaManager<'_>,
    table: &str,
    owner: Owner,
    also_visible: Option<AlsoVisible>,
) -> Result<(), DbErr> {
    let db = manager.get_connection();
    if db.get_database_backend() != DbBackend::Postgres {
        return Ok(());
    }
    // One condition and not two policies: those are tried in no promised order, and here the cheap one goes first.
    let may = format!("{IS_OPERATOR} OR {}", owner.condition(table));
    let mut sql = format!(
        "ALTER TABLE {table} ENABLE ROW LEVEL SECURITY; \
         ALTER TABLE {table} FORCE ROW LEVEL SECURITY; \
         CREATE POLICY of_project ON {table} USING ({may}) WITH CHECK ({may});"
    );
    if let Some(visible) = also_visible {
        sql += &format!("CREATE POLICY also_visible ON {table} FOR SELECT USING ({visible});");
    }
    db.execute_unprepared(&sql).await.map(drop)
}

impl Owner {
    fn condition(self, table: &str) -> String {
        match self {
            Owner::Column(column) => format!("{column} = {PROJECT}"),
            // As a value and not as EXISTS, which may be turned into a scan of the other table; this is one look at its
            // index for each row.
            Owner::Through {
                column,
                table: other,
            } => format!(
                "(SELECT o.project_id FROM {other} o WHERE o.id = {table}.{column}) = {PROJECT}"
            ),
            Owner::Organization => {
                format!(
                    "organization_id = (SELECT organization_id FROM projects WHERE id = {PROJECT})"
                )
            }
        }
    }
}

/// What requests do with each table: everything else the database refuses them.
const GRANTS: &[(&str, &str)] = &[
    ("api_keys", "SELECT"),
    ("attempts", "SELECT, INSERT, UPDATE"),
    ("batches", "SELECT, INSERT, UPDATE"),
    ("chat_completion_metadata", "SELECT, INSERT, DELETE"),
    ("chat_completions", "SELECT, INSERT, UPDATE, DELETE"),
    ("checkpoint_permissions", "SELECT"),
    ("checkpoints", "SELECT"),
    ("dry_runs", "SELECT, INSERT"),
    ("events", "SELECT, INSERT"),
    ("files", "SELECT, INSERT, UPDATE"),
    ("idempotency_keys", "SELECT, INSERT, UPDATE, DELETE"),
    ("job_metadata", "SELECT, INSERT"),
    ("job_transitions", "SELECT, INSERT"),
    ("jobs", "SELECT, INSERT, UPDATE"),
    ("kept_replies", "SELECT, INSERT, UPDATE, DELETE"),
    ("model_aliases", "SELECT, INSERT, DELETE"),
    ("models", "SELECT, INSERT, UPDATE"),
    ("outbox", "INSERT"),
    ("project_users", "SELECT"),
    // To lock the row; the policy lets the id be nothing but what it is.
    ("projects", "SELECT, UPDATE (id)"),
    ("rate_buckets", "SELECT, INSERT, UPDATE"),
    ("rate_limits", "SELECT"),
    ("responses", "SELECT, INSERT, DELETE"),
    ("service_accounts", "SELECT"),
    ("upload_parts", "SELECT, INSERT"),
    ("uploads", "SELECT, INSERT, UPDATE"),
    ("usage", "SELECT"),
    ("users", "SELECT"),
    ("webhook_deliveries", "SELECT, INSERT, DELETE"),
    ("webhook_endpoints", "SELECT, INSERT, UPDATE, DELETE"),
    ("webhook_secrets", "SELECT, INSERT, UPDATE, DELETE"),
];

/// Tables whose keys the database counts up.
const COUNTED: &[&str] = &["idempotency_keys", "kept_replies", "outbox"];

/// The tables that requests read.
pub fn read_by_requests() -> Vec<String> {
    let read = GRANTS.iter().filter(|(_, may)| may.starts_with("SELECT"));
    read.map(|(table, _)| (*table).to_owned()).collect()
}

/// Makes the role of requests where it is missing, and gives it what it lacks. What this session may not do is left
/// undone: the wall then binds requests as the role that they connect with. For PostgreSQL; safe to repeat.
pub async fn ensure_request_role(db: &impl ConnectionTrait) -> Result<(), DbErr> {
    db.execute_unprepared(MAKE_ROLE).await?;
    let sql = "SELECT 1 AS one FROM pg_roles WHERE rolname = 'luthier_app'";
    let role = Statement::from_string(DbBackend::Postgres, sql);
    if db.query_one_raw(role).await?.is_some() {
        db.execute_unprepared(&grants()).await?;
    }
    Ok(())
}

/// A role belongs to the whole server, so another database's migration may be making it, too. Whoever is no superuser acts
/// as it only if it is a member; `set_option` came with PostgreSQL 16.
const MAKE_ROLE: &str = "DO $$ BEGIN \
     IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = 'luthier_app') THEN \
       BEGIN \
         CREATE ROLE luthier_app NOLOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS; \
       EXCEPTION WHEN insufficient_privilege OR duplicate_object OR unique_violation THEN NULL; \
       END; \
     END IF; \
     IF EXISTS (SELECT 1 FROM pg_roles WHERE rolname = 'luthier_app') \
        AND NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = current_user AND rolsuper) \
        AND NOT EXISTS (SELECT 1 FROM pg_auth_members m \
          JOIN pg_roles r ON r.oid = m.member AND r.rolname = current_user \
          WHERE m.roleid = 'luthier_app'::regrole \
            AND COALESCE((to_jsonb(m) ->> 'set_option')::boolean, true)) THEN \
       BEGIN \
         GRANT luthier_app TO CURRENT_USER; \
       EXCEPTION WHEN insufficient_privilege OR unique_violation OR internal_error THEN NULL; \
       END; \
     END IF; \
     END $$";

/// Where something is missing only: a grant that changes nothing still writes to the catalog, at the start of every process.
fn grants() -> String {
    let mut sql = String::from("DO $$ BEGIN ");
    sql += "IF NOT has_schema_privilege('luthier_app', current_schema(), 'USAGE') THEN \
            EXECUTE format('GRANT USAGE ON SCHEMA %I TO luthier_app', current_schema()); END IF; ";
    for (table, may) in GRANTS {
        let lacks: Vec<String> = may
            .split(", ")
            .map(|privilege| match privilege.strip_suffix(" (id)") {
                Some(p) => {
                    format!("NOT has_column_privilege('luthier_app', '{table}', 'id', '{p}')")
                }
                None => format!("NOT has_table_privilege('luthier_app', '{table}', '{privilege}')"),
            })
            .collect();
        let lacks = lacks.join(" OR ");
        sql += &format!("IF {lacks} THEN GRANT {may} ON {table} TO luthier_app; END IF; ");
    }
    for table in COUNTED {
        let sequence = format!("pg_get_serial_sequence('{table}', 'id')");
        sql += &format!(
            "IF NOT has_sequence_privilege('luthier_app', {sequence}, 'USAGE') THEN \
             EXECUTE 'GRANT USAGE ON SEQUENCE ' || {sequence} || ' TO luthier_app'; END IF; "
        );
    }
    sql + "EXCEPTION WHEN insufficient_privilege THEN NULL; END $$"
}
