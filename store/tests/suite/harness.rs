//! One suite, two databases: each test gets a fresh, migrated database of its own and drops it at the end.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::FutureExt;
use sqlx::{Connection, Executor, PgConnection, SqliteConnection};
use store::{Store, StoreConfig, StoreError};

/// Runs each named test once per database.
macro_rules! on_both {
    ($($test:ident),* $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                crate::harness::run_on_sqlite(super::$test).await;
            })*
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                crate::harness::run_on_postgres(super::$test).await;
            })*
        }
    };
}
pub(crate) use on_both;

/// A database of one test.
#[derive(Clone)]
pub struct Db {
    pub store: Store,
    pub url: String,
}

impl Db {
    /// Another process on the same database.
    pub async fn open_again(&self) -> Store {
        Store::connect(&StoreConfig::new(&self.url))
            .await
            .expect("open the test's database again")
    }

    /// Another program on the same database.
    pub async fn other_program(&self) -> Other {
        if self.store.is_embedded() {
            Other::Sqlite(
                SqliteConnection::connect(&self.url)
                    .await
                    .expect("connect beside"),
            )
        } else {
            Other::Postgres(
                PgConnection::connect(&self.url)
                    .await
                    .expect("connect beside"),
            )
        }
    }
}

pub async fn run_on_sqlite<F: Future<Output = ()> + Send + 'static>(test: impl FnOnce(Db) -> F) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let url = format!("sqlite://{}/test.db", folder.path().display());
    run(url, test).await.expect("the test passes");
}

pub async fn run_on_postgres<F: Future<Output = ()> + Send + 'static>(test: impl FnOnce(Db) -> F) {
    on_empty_postgres(|url| async { run(url, test).await.expect("the test passes") }).await;
}

/// A database without a table, by its URL. It is dropped even if the test fails.
pub async fn on_empty_postgres<F: Future<Output = ()>>(test: impl FnOnce(String) -> F) {
    let server = std::env::var("LUTHIER_TEST_POSTGRES_URL")
        .unwrap_or_else(|_| "postgres://root@127.0.0.1:5432/postgres".into());
    let mut admin = PgConnection::connect(&server).await.unwrap_or_else(|e| {
        panic!("PostgreSQL does not answer at LUTHIER_TEST_POSTGRES_URL ({e}); tests/run installs and starts one")
    });
    let name = unique_name();
    let create = sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"));
    admin
        .execute(create)
        .await
        .expect("create a database for the test");
    // No test loses power, and waiting for the disk would be most of its time.
    let hasty = sqlx::AssertSqlSafe(format!(
        "ALTER DATABASE {name} SET synchronous_commit = off"
    ));
    admin
        .execute(hasty)
        .await
        .expect("alter the test's database");
    let (base, _) = server
        .rsplit_once('/')
        .expect("a URL that ends in a database name");
    let outcome = AssertUnwindSafe(test(format!("{base}/{name}")))
        .catch_unwind()
        .await;
    let drop = sqlx::AssertSqlSafe(format!("DROP DATABASE {name} WITH (FORCE)"));
    admin.execute(drop).await.expect("drop the test's database");
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

/// The store of an empty database whose owner is no superuser but a role of its own, to which `grants` were made (SQL, `{}`
/// its name). Both are dropped even if the test fails.
pub async fn on_postgres_of<F: Future<Output = ()> + Send + 'static>(
    attributes: &str,
    grants: &str,
    test: impl FnOnce(Db) -> F,
) {
    on_empty_postgres(|url| async move {
        let mut admin = PgConnection::connect(&url).await.expect("connect beside");
        let (_, name) = url.rsplit_once('/').expect("a database's name");
        let owner = format!("{name}_owner");
        let make = format!(
            "CREATE ROLE {owner} LOGIN PASSWORD 'x' NOSUPERUSER {attributes}; \
             ALTER DATABASE {name} OWNER TO {owner}; ALTER SCHEMA public OWNER TO {owner}; {}",
            grants.replace("{}", &owner)
        );
        admin
            .execute(sqlx::AssertSqlSafe(make))
            .await
            .expect("make the owner");
        let (_, place) = url.rsplit_once('@').expect("a URL with a user");
        let outcome = run(format!("postgres://{owner}:x@{place}"), test).await;
        let drop = format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{owner}'; \
             ALTER DATABASE {name} OWNER TO CURRENT_USER; REASSIGN OWNED BY {owner} TO CURRENT_USER; \
             DROP OWNED BY {owner}; DROP ROLE {owner}"
        );
        admin
            .execute(sqlx::AssertSqlSafe(drop))
            .await
            .expect("drop the owner");
        outcome.expect("the test passes");
    })
    .await;
}

/// In a task of its own, so that a failing test still drops its database.
async fn run<F: Future<Output = ()> + Send + 'static>(
    url: String,
    test: impl FnOnce(Db) -> F,
) -> Result<(), tokio::task::JoinError> {
    let db = async {
        let store = Store::connect(&StoreConfig::new(&url)).await?;
        store.migrate().await?;
        Ok::<_, StoreError>(Db { store, url })
    };
    let db = db
        .await
        .expect("connect to the test's database and migrate it");
    tokio::spawn(test(db)).await
}

fn unique_name() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let since_epoch = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("a clock after 1970");
    let n = COUNT.fetch_add(1, Ordering::Relaxed);
    format!(
        "luthier_test_{}_{}_{n}",
        std::process::id(),
        since_epoch.as_nanos()
    )
}

/// A connection beside the store's, as another program would have it.
pub enum Other {
    Postgres(PgConnection),
    Sqlite(SqliteConnection),
}

impl Other {
    pub async fn execute(&mut self, sql: &str) {
        let sql = sqlx::AssertSqlSafe(sql.to_owned());
        let done = match self {
            Other::Postgres(connection) => connection.execute(sql).await.map(|_| ()),
            Other::Sqlite(connection) => connection.execute(sql).await.map(|_| ()),
        };
        done.expect("the other program's statement");
    }

    /// Ends every other connection to the database, which is PostgreSQL's.
    pub async fn end_all_others(&mut self) {
        let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                   WHERE datname = current_database() AND pid <> pg_backend_pid()";
        self.execute(sql).await;
    }

    /// Lets nobody write into this table, or on SQLite into any, until [`Other::let_go`].
    pub async fn hold(&mut self, table: &str) {
        let sql = match self {
            Other::Postgres(_) => format!("BEGIN; LOCK TABLE {table} IN EXCLUSIVE MODE"),
            Other::Sqlite(_) => "BEGIN IMMEDIATE".to_owned(),
        };
        self.execute(&sql).await;
    }

    /// Once two calls of others wait for a lock, as far as one can tell.
    pub async fn let_go(mut self) {
        self.until_two_wait().await;
        self.execute("ROLLBACK").await;
    }

    /// Waits until two calls of others wait for a lock. Only PostgreSQL can tell.
    pub async fn until_two_wait(&mut self) {
        let Other::Postgres(connection) = self else {
            return;
        };
        let sql = "SELECT count(*) FROM pg_stat_activity \
                   WHERE datname = current_database() AND wait_event_type = 'Lock'";
        loop {
            // A transaction sees what it saw of the others first.
            let forget = connection.execute("SELECT pg_stat_clear_snapshot()");
            forget.await.expect("forget who waited");
            let waiting = sqlx::query_scalar::<_, i64>(sql).fetch_one(&mut *connection);
            if waiting.await.expect("count those who wait") >= 2 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
