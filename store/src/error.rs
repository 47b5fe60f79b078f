//! What can go wrong between a caller and its rows.

use std::ops::Deref;

use domain::batch::WrongStatus;
use domain::job_event::Reject;
use sea_orm::{DbErr, RuntimeErr};

/// Why a call on the store has no result. Nothing was changed, except where `Unavailable` hides a lost reply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    #[error("no such row")]
    NotFound,
    /// The cursor of a page names nothing in this list.
    #[error("no item {0:?} to continue after")]
    UnknownAfter(String),
    /// A row with the same key exists.
    #[error("conflicts with what is stored: {0}")]
    Conflict(String),
    /// The request was sent before, and this is what it made.
    #[error("the same request made {object_id}")]
    Repeated { object_id: String },
    /// The client's idempotency key came with another request before.
    #[error("the idempotency key belongs to another request")]
    KeyReused,
    /// A value the database cannot hold.
    #[error("cannot be stored: {0}")]
    Invalid(String),
    /// The project has as many unfinished jobs as it may have.
    #[error("the project already has {limit} unfinished jobs")]
    JobLimit { limit: u64 },
    /// The project has no room for what was to be stored. Bytes.
    #[error("the project stores {stored} of {limit} bytes")]
    StorageLimit { limit: u64, stored: u64 },
    /// The organisation would be left without anybody who may administer it.
    #[error("the user is the last owner of the organisation")]
    LastOwner,
    /// The database is away, busy or slow: the same call may succeed later.
    #[error("the database is unavailable: {0}")]
    Unavailable(String),
    /// A row that this program cannot read.
    #[error("a stored row is unreadable: {0}")]
    Corrupt(String),
    /// The schema is not the one this program needs.
    #[error("{0}")]
    Schema(String),
    #[error("the database refuses the statement: {0}")]
    Bug(String),
}

/// Why an event did not change a job.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    #[error("no such job")]
    NotFound,
    #[error(transparent)]
    Rejected(#[from] Reject),
    #[error(transparent)]
    Store(StoreError),
}

impl From<StoreError> for ApplyError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NotFound => ApplyError::NotFound,
            other => ApplyError::Store(other),
        }
    }
}

impl From<DbErr> for ApplyError {
    fn from(error: DbErr) -> Self {
        StoreError::from(error).into()
    }
}

/// Why a call on a batch has no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// Another process took it: drop everything.
    #[error("the batch belongs to another process")]
    Stale,
    #[error(transparent)]
    WrongStatus(#[from] WrongStatus),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<DbErr> for BatchError {
    fn from(error: DbErr) -> Self {
        StoreError::from(error).into()
    }
}

impl From<DbErr> for StoreError {
    fn from(error: DbErr) -> Self {
        match &error {
            DbErr::ConnectionAcquire(_) | DbErr::Conn(_) => {
                StoreError::Unavailable(error.to_string())
            }
            DbErr::Exec(RuntimeErr::SqlxError(e)) | DbErr::Query(RuntimeErr::SqlxError(e)) => {
                from_sqlx(e.deref())
            }
            DbErr::Type(_) | DbErr::Json(_) | DbErr::TryIntoErr { .. } => {
                StoreError::Corrupt(error.to_string())
            }
            DbErr::RecordNotFound(_) => StoreError::NotFound,
            _ => StoreError::Bug(error.to_string()),
        }
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        from_sqlx(&error)
    }
}

fn from_sqlx(error: &sqlx::Error) -> StoreError {
    use sqlx::Error as E;
    match error {
        E::Database(e) => from_database(e.as_ref()),
        E::Io(_)
        | E::Tls(_)
        | E::Protocol(_)
        | E::PoolTimedOut
        | E::PoolClosed
        | E::WorkerCrashed => StoreError::Unavailable(error.to_string()),
        E::ColumnDecode { .. } | E::Decode(_) | E::TypeNotFound { .. } => {
            StoreError::Corrupt(error.to_string())
        }
        E::RowNotFound => StoreError::NotFound,
        _ => StoreError::Bug(error.to_string()),
    }
}

fn from_database(error: &dyn sqlx::error::DatabaseError) -> StoreError {
    let code = error.code().unwrap_or_default();
    let text = format!("{} ({code})", error.message());
    if error.is_unique_violation() || error.is_foreign_key_violation() {
        StoreError::Conflict(text)
    } else if is_transient(error, &code) {
        StoreError::Unavailable(text)
    } else if matches!(&*code, "22021" | "22P05") {
        StoreError::Invalid(text)
    } else {
        StoreError::Bug(text)
    }
}

/// PostgreSQL speaks SQLSTATE, SQLite result codes; extended ones carry the primary code in the low byte.
fn is_transient(error: &dyn sqlx::error::DatabaseError, code: &str) -> bool {
    if error
        .try_downcast_ref::<sqlx::postgres::PgDatabaseError>()
        .is_some()
    {
        // Connection lost, serialization and deadlock, resources, operator intervention (shutdown, statement
        // timeout), lock timeout, a standby that cannot write.
        let classes = ["08", "40", "53", "57", "58"];
        return classes.iter().any(|class| code.starts_with(class))
            || matches!(code, "55P03" | "25006" | "25P03");
    }
    const BUSY: i64 = 5;
    const LOCKED: i64 = 6;
    const IOERR: i64 = 10;
    const FULL: i64 = 13;
    const CANTOPEN: i64 = 14;
    let primary = code.parse::<i64>().unwrap_or(0) & 0xff;
    matches!(primary, BUSY | LOCKED | IOERR | FULL | CANTOPEN)
}
