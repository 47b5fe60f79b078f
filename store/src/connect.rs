//! The two databases behind one handle: how to open them, how a call begins and how long it may take.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use domain::time::Timestamp;
use migrations::{Migrator, row_security};
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, EntityTrait,
    SqliteTransactionMode, SqlxPostgresConnector, SqlxSqliteConnector, Statement,
    TransactionOptions, TransactionTrait,
};
use sea_orm_migration::{MigratorTrait, SchemaManager, seaql_migrations};
use sqlx::ConnectOptions as _;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};

use crate::error::StoreError;
use crate::reads::{Readers, Reads};
use crate::wall::{Gate, Scope};

/// A call that has no answer by then is given up; above the sum of waiting for a connection and for one statement.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);
/// Waiting for another process that migrates, and migrating.
const MIGRATE_TIMEOUT: Duration = Duration::from_secs(300);
/// Any number that nobody else uses in this database.
const MIGRATION_LOCK: i64 = 0x4c75_7468_6965_7201;
/// One statement, one lock, one forgotten transaction: none may hold the others up for long. The schemas are written out,
/// because `"$user"` among them would be another one for the role of requests.
const AT_FIRST: &str = "SET statement_timeout = '10s'; SET lock_timeout = '8s'; \
     SET idle_in_transaction_session_timeout = '30s'; \
     SELECT set_config('search_path', string_agg(quote_ident(s), ', '), false) \
     FROM unnest(current_schemas(false)) s HAVING count(*) > 0";
/// Readers beside SQLite's one writer.
const SQLITE_READERS: u32 = 4;

/// Where the rows are.
#[derive(Clone)]
pub struct StoreConfig {
    /// `postgres://…` or `sqlite://path` (made when missing).
    pub url: String,
    pub max_connections: u32,
    pub acquire_timeout_s: u64,
}

impl StoreConfig {
    /// 16 connections, 5 seconds to get one.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            max_connections: 16,
            acquire_timeout_s: 5,
        }
    }
}

impl fmt::Debug for StoreConfig {
    /// The URL may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreConfig")
            .field("max_connections", &self.max_connections)
            .field("acquire_timeout_s", &self.acquire_timeout_s)
            .finish_non_exhaustive()
    }
}

/// A handle on the database; cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    /// On SQLite one connection, so that writers queue here and not at the file's lock.
    pub(crate) write: DatabaseConnection,
    /// On PostgreSQL they share its pool.
    pub(crate) read: Reads,
    /// Whose rows calls through this handle see.
    pub(crate) scope: Scope,
    pub(crate) gate: Gate,
}

impl Store {
    /// Opens the database and proves that it answers.
    /// Errors: `Invalid` for a URL that is neither PostgreSQL nor SQLite, `Unavailable`.
    pub async fn connect(config: &StoreConfig) -> Result<Self, StoreError> {
        let acquire = Duration::from_secs(config.acquire_timeout_s.max(1));
        let store = if config.url.starts_with("sqlite:") {
            connect_sqlite(config, acquire).await?
        } else if config.url.starts_with("postgres:") || config.url.starts_with("postgresql:") {
            connect_postgres(config, acquire).await?
        } else {
            let scheme = config.url.split(':').next().unwrap_or_default();
            let reason = format!("database URL begins with {scheme:?}, not postgres: or sqlite:");
            return Err(StoreError::Invalid(reason));
        };
        store.ping().await?;
        store.second_wall().await?;
        Ok(store)
    }

    /// Applies all pending migrations, or none. Any number of processes may do so at once.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        let work = async {
            let tx = self.begin().await?;
            if tx.get_database_backend() == DbBackend::Postgres {
                tx.execute_unprepared("SET LOCAL statement_timeout = 0")
                    .await?;
                tx.execute_unprepared(&format!("SELECT pg_advisory_xact_lock({MIGRATION_LOCK})"))
                    .await?;
            }
            Migrator::up(&tx, None).await?;
            if tx.get_database_backend() == DbBackend::Postgres {
                row_security::ensure_request_role(&tx).await?;
            }
            Ok::<_, StoreError>(tx.commit().await?)
        };
        within(MIGRATE_TIMEOUT, self.scope.clone().enter(work)).await?;
        self.second_wall().await.map(drop)
    }

    /// Errors: `Schema`, naming the migrations that are still to be applied.
    pub async fn check_schema(&self) -> Result<(), StoreError> {
        let applied: Vec<String> = self
            .bounded(async {
                if !SchemaManager::new(&self.write)
                    .has_table("seaql_migrations")
                    .await?
                {
                    return Ok(Vec::new());
                }
                let rows = seaql_migrations::Entity::find().all(&self.read).await?;
                Ok::<_, StoreError>(rows.into_iter().map(|row| row.version).collect())
            })
            .await?;
        let known = Migrator::migrations();
        let pending: Vec<&str> = known
            .iter()
            .map(|m| m.name())
            .filter(|name| !applied.iter().any(|a| a == name))
            .collect();
        if pending.is_empty() {
            return Ok(());
        }
        let list = pending.join(", ");
        Err(StoreError::Schema(format!(
            "the database lacks the migrations {list}: run `luthier migrate`"
        )))
    }

    /// The database answers.
    pub async fn ping(&self) -> Result<(), StoreError> {
        let statement = Statement::from_string(self.backend(), "SELECT 1");
        self.bounded(async { Ok(self.read.query_one_raw(statement).await.map(drop)?) })
            .await
    }

    /// The database's clock: the one that all schedulers share. On SQLite that is this machine's.
    pub async fn now(&self) -> Result<Timestamp, StoreError> {
        let sql = match self.backend() {
            DbBackend::Postgres => {
                "SELECT (EXTRACT(EPOCH FROM clock_timestamp()) * 1000000)::bigint AS micros"
            }
            _ => {
                "SELECT CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) * 1000 AS micros"
            }
        };
        self.bounded(async {
            let row = self
                .read
                .query_one_raw(Statement::from_string(self.backend(), sql))
                .await?;
            let row = row.ok_or(StoreError::NotFound)?;
            Ok::<_, StoreError>(Timestamp(row.try_get("", "micros")?))
        })
        .await
    }

    /// One file, one process of each kind: no other machine can share it.
    pub fn is_embedded(&self) -> bool {
        self.backend() == DbBackend::Sqlite
    }

    pub(crate) fn backend(&self) -> DbBackend {
        self.read.get_database_backend()
    }

    /// Begins a transaction that writes. On SQLite it takes the write lock at once, so that what it reads cannot
    /// be outdated when it writes.
    pub(crate) async fn begin(&self) -> Result<DatabaseTransaction, StoreError> {
        let options = TransactionOptions {
            sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
            ..TransactionOptions::default()
        };
        Ok(self.write.begin_with_options(options).await?)
    }

    /// Runs a call as whom this handle is for, and ends one that takes too long, for whatever reason the database's own
    /// limits did not. A query outside of it sees nothing of any project on PostgreSQL.
    pub(crate) async fn bounded<T, E: From<StoreError>>(
        &self,
        call: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        within(CALL_TIMEOUT, self.scope.clone().enter(call)).await
    }
}

async fn within<T, E: From<StoreError>>(
    limit: Duration,
    call: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    match tokio::time::timeout(limit, call).await {
        Ok(result) => result,
        Err(_) => {
            let reason = format!("no answer within {} s", limit.as_secs());
            Err(StoreError::Unavailable(reason).into())
        }
    }
}

fn bad_url(error: sqlx::Error) -> StoreError {
    StoreError::Invalid(format!("database URL: {error}"))
}

async fn connect_sqlite(config: &StoreConfig, acquire: Duration) -> Result<Store, StoreError> {
    let options = SqliteConnectOptions::from_str(&config.url)
        .map_err(bad_url)?
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(Duration::from_secs(5))
        .disable_statement_logging();
    let pool = |n: u32| {
        SqlitePoolOptions::new()
            .max_connections(n)
            .acquire_timeout(acquire)
            // A file does not go away: asking each time would be as much as most queries.
            .test_before_acquire(false)
            .max_lifetime(None)
    };
    let write = pool(1).connect_with(options.clone()).await?;
    let read = pool(SQLITE_READERS).connect_with(options).await?;
    let gate = Gate::default();
    let readers = Readers::new(read, SQLITE_READERS, gate.clone());
    Ok(Store {
        write: SqlxSqliteConnector::from_sqlx_sqlite_pool(write),
        read: Reads::Sqlite(Arc::new(readers)),
        scope: Scope::Operator,
        gate,
    })
}

async fn connect_postgres(config: &StoreConfig, acquire: Duration) -> Result<Store, StoreError> {
    let options = PgConnectOptions::from_str(&config.url)
        .map_err(bad_url)?
        .application_name("luthier")
        .disable_statement_logging();
    let gate = Gate::default();
    let (opening, passing) = (gate.clone(), gate.clone());
    let pool = PgPoolOptions::new()
        .max_connections(config.max_connections.max(1))
        .acquire_timeout(acquire)
        .after_connect(move |connection, _| {
            let gate = opening.clone();
            Box::pin(async move {
                sqlx::Executor::execute(&mut *connection, AT_FIRST).await?;
                gate.pass(connection).await
            })
        })
        // Passing the gate asks the server something, so it also proves that the connection lives.
        .test_before_acquire(false)
        .before_acquire(move |connection, _| {
            let gate = passing.clone();
            Box::pin(async move { gate.pass(connection).await.map(|()| true) })
        })
        .connect_with(options)
        .await?;
    let readers = Readers::new(pool.clone(), config.max_connections / 2, gate.clone());
    Ok(Store {
        write: SqlxPostgresConnector::from_sqlx_postgres_pool(pool),
        read: Reads::Postgres(Arc::new(readers)),
        scope: Scope::Operator,
        gate,
    })
}
