//! The second wall on PostgreSQL, as another program sees it that acts as the role of requests.

use std::collections::BTreeSet;
use std::path::Path;

use domain::api_key::ApiKey;
use domain::audit::AuditKind;
use domain::checkpoint_permission::CheckpointPermission;
use domain::dry_run::DryRun;
use domain::id::{CheckpointPermissionId, DryRunId, KeyId, ProjectId};
use domain::job::JobSpec;
use domain::project::Project;
use domain::webhook::WebhookEventType;
use sqlx::{Connection, Executor, PgConnection, Row};
use store::{Claim, InsertLimits, KeptRequest, Store};

use crate::harness::{Db, on_postgres_of, run_on_postgres};
use crate::sample::{self, at};
use crate::{chat_completions, kept_replies, rate_limits, responses, tenancy};

/// S48: tables whose rows are a project's, by a column of their own or by the row they belong to.
const OF_PROJECTS: &str = "WITH direct AS (\
       SELECT c.oid FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid \
       WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') \
         AND (a.attname = 'project_id' OR c.relname IN ('projects', 'model_aliases'))) \
     SELECT oid FROM direct UNION \
     SELECT r.conrelid FROM pg_constraint r WHERE r.contype = 'f' AND r.confrelid IN (SELECT oid FROM direct)";

#[tokio::test]
async fn s48_every_table_with_rows_of_projects_is_behind_the_wall() {
    run_on_postgres(|db: Db| async move {
        let mut connection = PgConnection::connect(&db.url).await.unwrap();
        let tables = format!("SELECT count(*) FROM ({OF_PROJECTS}) t");
        let n: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(tables))
            .fetch_one(&mut connection)
            .await
            .unwrap();
        assert!(n >= 32, "{n} tables");
        let sql = format!(
            "SELECT c.relname FROM pg_class c WHERE c.oid IN ({OF_PROJECTS}) AND NOT (\
               c.relrowsecurity AND c.relforcerowsecurity AND EXISTS (\
                 SELECT 1 FROM pg_policy p WHERE p.polrelid = c.oid AND p.polcmd = '*' \
                   AND p.polqual IS NOT NULL AND p.polwithcheck IS NOT NULL))"
        );
        assert_eq!(names(&mut connection, &sql).await, NONE);
        // A policy without a check of what is written would let rows be given away.
        let sql = "SELECT polrelid::regclass::text FROM pg_policy WHERE polcmd <> 'r' AND polwithcheck IS NULL";
        assert_eq!(names(&mut connection, sql).await, NONE);
    })
    .await;
}

#[tokio::test]
async fn the_role_of_requests_has_no_way_around() {
    run_on_postgres(|db: Db| async move {
        let mut connection = PgConnection::connect(&db.url).await.unwrap();
        let sql = "SELECT rolname::text FROM pg_roles WHERE rolname = 'luthier_app' \
                   AND (rolsuper OR rolbypassrls OR rolcanlogin OR rolcreaterole OR rolcreatedb)";
        assert_eq!(names(&mut connection, sql).await, NONE);
        let sql = "SELECT relname::text FROM pg_class WHERE relowner = 'luthier_app'::regrole";
        assert_eq!(names(&mut connection, sql).await, NONE);
        let sql = "SELECT roleid::regrole::text FROM pg_auth_members WHERE member = 'luthier_app'::regrole";
        assert_eq!(names(&mut connection, sql).await, NONE);
        // Functions and views that act as their owner would see what that one sees.
        let sql = "SELECT proname::text FROM pg_proc WHERE prosecdef AND pronamespace = 'public'::regnamespace \
                   UNION SELECT relname::text FROM pg_class \
                   WHERE relkind IN ('v', 'm') AND relnamespace = 'public'::regnamespace";
        assert_eq!(names(&mut connection, sql).await, NONE);
        // What it may read is behind the wall.
        let sql = "SELECT relname::text FROM pg_class c WHERE relnamespace = 'public'::regnamespace \
                   AND relkind = 'r' AND NOT relrowsecurity AND has_table_privilege('luthier_app', c.oid, 'SELECT')";
        assert_eq!(names(&mut connection, sql).await, NONE);
    })
    .await;
}

#[tokio::test]
async fn s47_the_role_of_requests_sees_nothing_without_a_project() {
    run_on_postgres(|db: Db| async move {
        let (a, b) = (
            sample::project(&db.store).await,
            sample::project(&db.store).await,
        );
        for project in [&a, &b] {
            fill(&db.store, project).await;
        }
        let mut connection = PgConnection::connect(&db.url).await.unwrap();
        let tables = readable(&mut connection).await;
        connection.execute("SET ROLE luthier_app").await.unwrap();
        for table in &tables {
            assert_eq!(count(&mut connection, table).await, 0, "{table}, never set");
        }
        // A pool's connection that was somebody's, in a transaction that is over.
        connection.execute("BEGIN").await.unwrap();
        act_for(&mut connection, &a.id, true).await;
        assert!(count(&mut connection, "files").await > 0);
        connection.execute("COMMIT").await.unwrap();
        let setting: Option<String> =
            sqlx::query_scalar("SELECT current_setting('luthier.project', true)")
                .fetch_one(&mut connection)
                .await
                .unwrap();
        assert_eq!(setting.as_deref(), Some(""));
        for table in &tables {
            assert_eq!(
                count(&mut connection, table).await,
                0,
                "{table}, set before"
            );
        }
        // What names the operator's work is no project.
        let operator = "SELECT set_config('luthier.project', '*', false)";
        connection.execute(operator).await.unwrap();
        for table in &tables {
            assert_eq!(
                count(&mut connection, table).await,
                0,
                "{table}, as operator"
            );
        }
    })
    .await;
}

#[tokio::test]
async fn of_every_table_a_request_sees_its_project_s_rows_alone() {
    run_on_postgres(|db: Db| async move {
        let projects = [
            sample::project(&db.store).await,
            sample::project(&db.store).await,
        ];
        for project in &projects {
            fill(&db.store, project).await;
        }
        let mut operator = PgConnection::connect(&db.url).await.unwrap();
        let mut request = PgConnection::connect(&db.url).await.unwrap();
        let tables = readable(&mut operator).await;
        request.execute("SET ROLE luthier_app").await.unwrap();
        for table in &tables {
            let mut seen = 0;
            for project in &projects {
                act_for(&mut request, &project.id, false).await;
                let n = count(&mut request, table).await;
                assert!(
                    n > 0,
                    "of {table} the samples have no row, so this shows nothing"
                );
                seen += n;
            }
            let all = count(&mut operator, table).await;
            // Both projects are of one organisation; the default project is nobody's here.
            let expected = match table.as_str() {
                "users" => 2 * all,
                "projects" => all - 1,
                _ => all,
            };
            assert_eq!(seen, expected, "{table}");
        }
    })
    .await;
}

#[tokio::test]
async fn an_older_program_of_the_owner_sees_and_writes_as_before() {
    on_postgres_of("", "", |db: Db| async move {
        let project = sample::project(&db.store).await;
        fill(&db.store, &project).await;
        let mut older = PgConnection::connect(&db.url).await.unwrap();
        for table in ["files", "events", "models", "users"] {
            assert!(count(&mut older, table).await > 0, "{table}");
        }
        let sql = "UPDATE events SET message = 'older' WHERE seq = 1";
        let updated = older.execute(sql).await.unwrap();
        assert_eq!(updated.rows_affected(), 2);
    })
    .await;
}

#[tokio::test]
async fn a_program_with_a_role_of_its_own_sees_as_before() {
    run_on_postgres(|db: Db| async move {
        let project = sample::project(&db.store).await;
        fill(&db.store, &project).await;
        let mut connection = PgConnection::connect(&db.url).await.unwrap();
        let all = count(&mut connection, "files").await;
        let (_, name) = db.url.rsplit_once('/').unwrap();
        let role = format!("{name}_reader");
        let make = format!("CREATE ROLE {role}; GRANT SELECT ON files TO {role}; SET ROLE {role}");
        connection.execute(sqlx::AssertSqlSafe(make)).await.unwrap();
        let n = count(&mut connection, "files").await;
        let drop = format!("RESET ROLE; DROP OWNED BY {role}; DROP ROLE {role}");
        connection.execute(sqlx::AssertSqlSafe(drop)).await.unwrap();
        assert_eq!(n, all);
    })
    .await;
}

/// What administrators change is written with the organisation's log, by the operator's role; what was spent is read from the
/// ledger, which requests cannot read.
const BY_ADMINISTRATORS: &[&str] = &[
    "api_keys::revoke",
    "checkpoint_permissions::list",
    "project_users::delete",
    "project_users::set_role",
    "projects::archive",
    "projects::find",
    "projects::find_in",
    "projects::modify",
    "projects::set_model_permissions",
    "projects::set_spend_limit",
    "rate_limits::modify",
    "service_accounts::delete",
    "service_accounts::modify",
    "usage/spending::spending",
];

#[test]
fn every_function_that_takes_a_project_stands_behind_the_wall() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let before: BTreeSet<String> = tenancy::WALKED
        .iter()
        .filter(|name| {
            let (module, function) = name.rsplit_once("::").unwrap();
            let text = std::fs::read_to_string(src.join(format!("{module}.rs"))).unwrap();
            let declared = format!("pub async fn {function}(");
            let (_, rest) = text.split_once(&declared).unwrap();
            let body = rest.split("\n    }\n").next().unwrap();
            // `apply_in_project` passes its project on to the function that both doors share.
            !body.contains(".of(project)") && !body.contains("apply_scoped(Some(project)")
        })
        .map(|name| (*name).to_owned())
        .collect();
    let expected = BY_ADMINISTRATORS.iter().map(|name| (*name).to_owned());
    assert_eq!(before, expected.collect());
}

const NONE: [&str; 0] = [];

async fn names(connection: &mut PgConnection, sql: &str) -> Vec<String> {
    let rows = connection
        .fetch_all(sqlx::AssertSqlSafe(sql.to_owned()))
        .await
        .unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

/// The tables that the role of requests may read.
async fn readable(connection: &mut PgConnection) -> Vec<String> {
    let sql = "SELECT relname::text FROM pg_class c WHERE relnamespace = 'public'::regnamespace \
               AND relkind = 'r' AND has_table_privilege('luthier_app', c.oid, 'SELECT') ORDER BY 1";
    let tables = names(connection, sql).await;
    assert!(tables.len() >= 29, "{tables:?}");
    tables
}

async fn count(connection: &mut PgConnection, table: &str) -> i64 {
    let sql = format!("SELECT count(*) FROM {table}");
    sqlx::query_scalar(sqlx::AssertSqlSafe(sql))
        .fetch_one(connection)
        .await
        .unwrap()
}

async fn act_for(connection: &mut PgConnection, project: &ProjectId, in_transaction: bool) {
    sqlx::query("SELECT set_config('luthier.project', $1, $2)")
        .bind(project.as_str())
        .bind(in_transaction)
        .execute(connection)
        .await
        .unwrap();
}

/// A row at least of every table that requests read.
async fn fill(store: &Store, project: &Project) {
    let id = &project.id;
    let file = sample::file(id, at(0));
    let request = sample::request("POST /files", "k");
    store.files().insert(&file, Some(&request)).await.unwrap();
    // The endpoint is told of the job that succeeds.
    let types = [WebhookEventType::FineTuningJobSucceeded];
    sample::endpoint(store, project, &types).await;
    let job = sample::succeeded_job(store, project, at(0)).await;
    let spec = JobSpec {
        metadata: Some(vec![("k".into(), "v".into())]),
        ..sample::spec(&file.id)
    };
    let (job_with_metadata, events) = sample::new_job(project, spec, at(0));
    let none = InsertLimits::default();
    let jobs = store.jobs();
    jobs.insert(&job_with_metadata, events, &none, None)
        .await
        .unwrap();
    sample::stored_batch(store, project, at(0)).await;
    let stored = chat_completions::stored(id, 0, &[("k", "v")]);
    store.chat_completions().insert(&stored, &[]).await.unwrap();
    let turn = responses::stored(id, 0);
    store.responses().insert(&turn).await.unwrap();
    let dry_run = DryRun {
        id: DryRunId::mint(sample::entropy()),
        project_id: id.clone(),
        spec: sample::spec(&file.id),
        created_at: at(1),
        report: None,
    };
    assert_eq!(store.dry_runs().insert(&dry_run).await, Ok(true));
    let upload = sample::upload(id, at(0));
    let request = sample::request("POST /uploads", "u");
    store.uploads().insert(&upload, &request).await.unwrap();
    let part = sample::part(&upload, at(1));
    let limits = sample::up_to(100);
    store.uploads().add_part(id, &part, limits).await.unwrap();
    let alias = sample::alias(Some(project), "gpt-4o");
    store.model_aliases().insert(&alias).await.unwrap();
    let asked = KeptRequest {
        // Keys are of projects, so no two share one.
        api_key_id: KeyId::mint(sample::entropy()),
        ..kept_replies::request(Some(id), Some("k"))
    };
    let memory = kept_replies::memory(at(0));
    let claimed = store.kept_replies().claim(&asked, &memory).await;
    assert!(matches!(claimed, Ok(Claim::First { .. })));
    administer(store, project, &job.tuned_model_name()).await;
    rate_limits::draw_all(store, id, "tiny").await;
}

/// What administrators make in a project.
async fn administer(store: &Store, project: &Project, model: &str) {
    let key: ApiKey = sample::api_key(&project.id);
    sample::insert_key(store, project, &key).await;
    tenancy::Administered::make(store, project, model).await;
    rate_limits::set(store, project, &rate_limits::of_model("tiny")).await;
    // On a model of its own: one of another project would be seen by both.
    let permission = CheckpointPermission {
        id: CheckpointPermissionId::mint(sample::entropy()),
        model: model.to_owned(),
        project_id: project.id.clone(),
        created_at: at(0),
    };
    let organization = &project.organization_id;
    let kind = AuditKind::CheckpointPermissionCreated;
    let wanted = [(permission, sample::entry(organization, kind, "made"))];
    let permissions = store.checkpoint_permissions();
    permissions.grant(organization, &wanted).await.unwrap();
}
