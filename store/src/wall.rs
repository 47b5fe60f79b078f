//! The second wall between projects, on PostgreSQL: who a connection acts for is said anew whenever it is taken from the
//! pool, so nothing of its last use is left, and row-level security keeps the rows of other projects from it. Readers keep theirs, and
//! say it where it changes.
//! docs/decisions/0017 says why so; `migrations::row_security` has the policies.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use domain::id::ProjectId;
use migrations::row_security::{OPERATOR, REQUEST_ROLE, read_by_requests};
use sea_orm::DbBackend;
use sqlx::PgConnection;
use tokio::task::futures::TaskLocalFuture;

use crate::connect::Store;
use crate::error::StoreError;

tokio::task_local! {
    /// Who the call at hand is for. The pool and the readers ask here, because only they see every connection that is taken.
    static SCOPE: Scope;
}

/// Whose rows a handle on the database sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Every project's: the scheduler, administrators, the operator.
    Operator,
    /// This one's: a request of a project.
    Project(Arc<str>),
}

impl Scope {
    /// Runs a call with it. On the heap: a future holds what it may await, and those of callers hold many calls.
    pub fn enter<F: Future>(self, call: F) -> TaskLocalFuture<Scope, Pin<Box<F>>> {
        SCOPE.scope(self, Box::pin(call))
    }
}

/// How the second wall stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecondWall {
    /// Requests act as a role of their own, which passes by no policy.
    OwnRole,
    /// The role that the service connects with is bound itself, while it acts for a request.
    OperatorIsBound,
    /// PostgreSQL has no role for requests, and the one that the service connects with passes by every policy.
    Missing,
    /// SQLite has none.
    NotOffered,
}

/// Says to the server who each connection acts for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Gate {
    /// Requests act as [`REQUEST_ROLE`].
    has_role: Arc<AtomicBool>,
}

/// Who a connection acts for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Acting {
    /// Outside of every scope: a request of no project, which sees nothing.
    scope: Option<Scope>,
    has_role: bool,
}

impl Gate {
    /// Who the call at hand is for.
    pub fn acting(&self) -> Acting {
        Acting {
            scope: SCOPE.try_with(Scope::clone).ok(),
            has_role: self.has_role.load(Ordering::Relaxed),
        }
    }

    /// The connection acts for whom the call at hand is. One round trip.
    pub async fn pass(&self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        self.acting().begin(connection).await
    }
}

impl Acting {
    /// One round trip.
    pub async fn begin(&self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        let (for_requests, project) = match &self.scope {
            Some(Scope::Operator) => (false, OPERATOR),
            Some(Scope::Project(project)) => (true, &**project),
            None => (true, ""),
        };
        let has_role = for_requests && self.has_role;
        let role = if has_role { REQUEST_ROLE } else { "none" };
        become_(connection, role, project).await
    }
}

async fn become_(
    connection: &mut PgConnection,
    role: &str,
    project: &str,
) -> Result<(), sqlx::Error> {
    // For the session and not for a transaction: that would be three round trips more for each read.
    sqlx::query("SELECT set_config('role', $1, false), set_config('luthier.project', $2, false)")
        .bind(role)
        .bind(project)
        .execute(connection)
        .await
        .map(drop)
}

impl Store {
    /// The database as requests of this project see it.
    pub(crate) fn of(&self, project: &ProjectId) -> Store {
        Store {
            scope: Scope::Project(project.as_str().into()),
            ..self.clone()
        }
    }

    /// How the second wall stands; requests stand behind it from now on. Before the first migration there is none.
    pub async fn second_wall(&self) -> Result<SecondWall, StoreError> {
        if self.backend() != DbBackend::Postgres {
            return Ok(SecondWall::NotOffered);
        }
        let look = async {
            let mut connection = self.write.get_postgres_connection_pool().acquire().await?;
            let stands = match become_(&mut connection, REQUEST_ROLE, "").await {
                Ok(()) => is_bound(&mut connection).await?,
                // There is no such role, or it is not this session's to act as.
                Err(sqlx::Error::Database(_)) => false,
                Err(error) => return Err(error.into()),
            };
            self.gate.has_role.store(stands, Ordering::Relaxed);
            if stands {
                return Ok(SecondWall::OwnRole);
            }
            become_(&mut connection, "none", "").await?;
            Ok::<_, StoreError>(match is_bound(&mut connection).await? {
                true => SecondWall::OperatorIsBound,
                false => SecondWall::Missing,
            })
        };
        self.bounded(look).await
    }
}

/// Whether policies bind the current role in every table that requests read, and it may read them.
async fn is_bound(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let sql = "SELECT bool_and(c.oid IS NOT NULL AND has_table_privilege(c.oid, 'SELECT') \
               AND row_security_active(c.oid)) \
               FROM unnest($1) AS t(name) LEFT JOIN pg_class c ON c.oid = to_regclass(t.name)";
    let bound: Option<bool> = sqlx::query_scalar(sql)
        .bind(read_by_requests())
        .fetch_one(connection)
        .await?;
    Ok(bound.unwrap_or(false))
}

#[cfg(test)]
mod tests;
