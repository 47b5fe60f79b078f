//! Connections for reads that stand alone. sqlx's pool asks the server whether a connection lives whenever one comes back, a round trip
//! more for each query. Readers keep theirs instead: one whose query has ended is whole, and acts for whom it did. Any other one goes back to
//! the pool, which looks at it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sea_orm::{
    ConnectionTrait, DbBackend, DbErr, ExecResult, QueryResult, RuntimeErr, Statement, Values,
};
use sea_query_sqlx::SqlxValues;
use sqlx::pool::PoolConnection;
use sqlx::{
    AssertSqlSafe, Database, Error, Executor, IntoArguments, Pool, Postgres, Sqlite, query_with,
};
use tokio::sync::Semaphore;
use tokio::time::{timeout, timeout_at};

use crate::wall::{Acting, Gate};

/// A network may have forgotten a connection that rested for longer, and tells neither side.
const FRESH: Duration = Duration::from_secs(1);

/// The database for single statements that only read. sea-orm takes it as a connection.
#[derive(Clone, Debug)]
pub(crate) enum Reads {
    Sqlite(Arc<Readers<Sqlite>>),
    Postgres(Arc<Readers<Postgres>>),
}

/// Readers of a pool, who take turns.
#[derive(Debug)]
pub(crate) struct Readers<DB: Database> {
    pool: Pool<DB>,
    gate: Gate,
    /// `None`: there are too few connections to keep any.
    turns: Option<Semaphore>,
    /// At most as many as there are turns.
    kept: Mutex<Vec<Kept<DB>>>,
}

/// A connection that reads.
#[derive(Debug)]
struct Kept<DB: Database> {
    connection: PoolConnection<DB>,
    acting: Acting,
    /// When it came from the pool.
    taken: Instant,
    /// When its last query ended.
    rested: Instant,
}

/// How a connection begins to act for somebody else.
pub(crate) trait Begin: Database {
    /// Proves that the server answers, too. Errors: the connection cannot be used.
    fn begin(
        connection: &mut Self::Connection,
        acting: &Acting,
    ) -> impl Future<Output = Result<(), Error>> + Send;
}

impl Begin for Sqlite {
    async fn begin(_: &mut Self::Connection, _: &Acting) -> Result<(), Error> {
        Ok(())
    }
}

impl Begin for Postgres {
    async fn begin(connection: &mut Self::Connection, acting: &Acting) -> Result<(), Error> {
        acting.begin(connection).await
    }
}

impl<DB> Readers<DB>
where
    DB: Begin,
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
    SqlxValues: IntoArguments<DB>,
    QueryResult: From<DB::Row>,
{
    /// `n` readers at a time; with none, reads take connections of `pool` as everything does.
    pub fn new(pool: Pool<DB>, n: u32, gate: Gate) -> Self {
        Self {
            pool,
            gate,
            turns: (n > 0).then(|| Semaphore::new(n as usize)),
            kept: Mutex::default(),
        }
    }

    /// Errors: `Conn` where there is no connection in the pool's time; what the database says.
    async fn rows(&self, statement: &Statement) -> Result<Vec<QueryResult>, DbErr> {
        let limit = self.pool.options().get_acquire_timeout();
        let deadline = (Instant::now() + limit).into();
        let late = |_| DbErr::Conn(runtime_error(Error::PoolTimedOut));
        let _turn = match &self.turns {
            Some(turns) => {
                let turn = timeout_at(deadline, turns.acquire()).await;
                Some(turn.map_err(late)?.expect("nobody closes it"))
            }
            None => None,
        };
        let acting = self.gate.acting();
        while let Some(mut kept) = self.take(&acting) {
            match timeout(limit / 2, kept.begin(&acting)).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => {
                    // Without the pool's look at it, which has no limit.
                    kept.connection.close_on_drop();
                    continue;
                }
                Err(_) => {
                    // A network that forgot this one forgot the others; half of the time is left for the pool.
                    kept.connection.close_on_drop();
                    self.close_rested(FRESH);
                    break;
                }
            }
            match Self::ask(&mut kept, statement).await {
                // It died since.
                Err(error) if is_about_connection(&error) => kept.connection.close_on_drop(),
                Err(error) => return Err(DbErr::Query(runtime_error(error))),
                Ok(rows) => {
                    self.keep(kept);
                    return Ok(rows);
                }
            }
        }
        let connection = timeout_at(deadline, self.pool.acquire()).await;
        let connection = connection.map_err(late)?;
        let now = Instant::now();
        let mut taken = Kept {
            connection: connection.map_err(|error| DbErr::Conn(runtime_error(error)))?,
            // The pool had it pass the gate.
            acting,
            taken: now,
            rested: now,
        };
        let rows = Self::ask(&mut taken, statement).await;
        let rows = rows.map_err(|error| DbErr::Query(runtime_error(error)))?;
        self.keep(taken);
        Ok(rows)
    }

    async fn ask(kept: &mut Kept<DB>, statement: &Statement) -> Result<Vec<QueryResult>, Error> {
        let values = SqlxValues(statement.values.clone().unwrap_or(Values(Vec::new())));
        let query = query_with(AssertSqlSafe(statement.sql.as_str()), values);
        let rows = query.fetch_all(&mut *kept.connection).await?;
        Ok(rows.into_iter().map(QueryResult::from).collect())
    }

    /// One that was kept: if there is one that acts for the same already, that one, or else the one that rested longest.
    fn take(&self, acting: &Acting) -> Option<Kept<DB>> {
        if let Some(limit) = self.pool.options().get_idle_timeout() {
            self.close_rested(limit);
        }
        let mut kept = self.lock();
        let same = kept.iter().rposition(|kept| kept.acting == *acting);
        (!kept.is_empty()).then(|| kept.remove(same.unwrap_or(0)))
    }

    /// Closes those that rested for longer.
    fn close_rested(&self, limit: Duration) {
        let mut kept = self.lock();
        let rested = kept.extract_if(.., |kept| kept.rested.elapsed() > limit);
        rested.for_each(|mut kept| kept.connection.close_on_drop());
    }

    /// An old one goes back to the pool, which closes it.
    fn keep(&self, mut kept: Kept<DB>) {
        let lifetime = self.pool.options().get_max_lifetime();
        let is_old = lifetime.is_some_and(|lifetime| kept.taken.elapsed() > lifetime);
        if self.turns.is_some() && !is_old {
            kept.rested = Instant::now();
            self.lock().push(kept);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Kept<DB>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<DB: Begin> Kept<DB> {
    /// Begins to act for somebody else, or proves that it lives. Errors: it cannot be used.
    async fn begin(&mut self, acting: &Acting) -> Result<(), Error> {
        if self.acting != *acting || self.rested.elapsed() > FRESH {
            DB::begin(&mut self.connection, acting).await?;
            self.acting = acting.clone();
        }
        Ok(())
    }
}

/// Whether another connection may have an answer.
fn is_about_connection(error: &Error) -> bool {
    match error {
        // The server shuts down or ended the session; a connection exception.
        // https://www.postgresql.org/docs/current/errcodes-appendix.html
        Error::Database(error) => {
            let code = error.code().unwrap_or_default();
            code.starts_with("57P") || code.starts_with("08")
        }
        Error::Io(_) | Error::Tls(_) | Error::WorkerCrashed => true,
        _ => false,
    }
}

fn runtime_error(error: Error) -> RuntimeErr {
    RuntimeErr::SqlxError(Arc::new(error))
}

fn not_a_read(sql: &str) -> DbErr {
    DbErr::Custom(format!("a reader changes nothing: {sql}"))
}

#[async_trait::async_trait]
impl ConnectionTrait for Reads {
    fn get_database_backend(&self) -> DbBackend {
        match self {
            Reads::Sqlite(_) => DbBackend::Sqlite,
            Reads::Postgres(_) => DbBackend::Postgres,
        }
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        Err(not_a_read(&statement.sql))
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        Err(not_a_read(sql))
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        let rows = self.query_all_raw(statement).await?;
        Ok(rows.into_iter().next())
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        match self {
            Reads::Sqlite(readers) => readers.rows(&statement).await,
            Reads::Postgres(readers) => readers.rows(&statement).await,
        }
    }
}
