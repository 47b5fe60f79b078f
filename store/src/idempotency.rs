//! Which request made which object, so that its repetition makes none.

use domain::id::{KeyId, ProjectId};
use domain::time::Timestamp;
use sea_orm::sea_query::Expr;
use sea_orm::{
    ActiveValue, ColumnTrait, ConnectionTrait, DatabaseTransaction, DbBackend, EntityTrait,
    QueryFilter, QueryOrder, Select, Statement, Value,
};

use crate::connect::Store;
use crate::convert::text;
use crate::entity::idempotency_key::{ActiveModel, Column, Entity, Model};
use crate::error::StoreError;

/// The request that makes an object; stored in the object's own transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyEntry {
    /// e.g. `POST /fine_tuning/jobs`.
    pub endpoint: String,
    /// The client's `Idempotency-Key`, unique within project and endpoint.
    pub key: Option<String>,
    pub api_key_id: KeyId,
    /// Hash of the request.
    pub fingerprint: String,
    pub began_at: Timestamp,
    /// The client says that it sends the request again, and asks for what it made then or later. `None`: for the first time, so it is
    /// a new one, unless a repetition of it was faster. A key goes before both.
    pub repeats_since: Option<Timestamp>,
    pub expires_at: Timestamp,
}

/// What an earlier request made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replay {
    pub fingerprint: String,
    pub object_id: String,
}

#[derive(Clone, Copy)]
pub struct Idempotency<'a>(&'a Store);

impl<'a> Idempotency<'a> {
    pub(crate) fn new(store: &'a Store) -> Self {
        Self(store)
    }

    /// What the request with this key made, unless that is forgotten by `now`.
    pub async fn find(
        self,
        project: &ProjectId,
        endpoint: &str,
        key: &str,
        now: Timestamp,
    ) -> Result<Option<Replay>, StoreError> {
        let select = of_key(project, endpoint, key)?.filter(Column::ExpiresAt.gt(now.0));
        Ok(self.0.of(project).one(select).await?.map(replay))
    }

    /// What the same request by the same API key made last, not before `since`: for clients that repeat a request
    /// without saying so by a key.
    pub async fn find_retry(
        self,
        project: &ProjectId,
        endpoint: &str,
        api_key: &KeyId,
        fingerprint: &str,
        since: Timestamp,
    ) -> Result<Option<Replay>, StoreError> {
        let same = same(project, endpoint, api_key, fingerprint);
        let select = same.filter(Column::CreatedAt.gte(since.0));
        Ok(self.0.of(project).one(select).await?.map(replay))
    }

    /// Forgets that the request made this object, which is gone: a repetition makes another one.
    pub async fn forget(
        self,
        project: &ProjectId,
        request: &IdempotencyEntry,
        object_id: &str,
    ) -> Result<(), StoreError> {
        let delete = Entity::delete_many()
            .filter(Column::ProjectId.eq(project.as_str()))
            .filter(Column::Endpoint.eq(request.endpoint.as_str()))
            .filter(Column::Fingerprint.eq(request.fingerprint.as_str()))
            .filter(Column::ObjectId.eq(object_id))
            .filter(Column::Key.is_null());
        self.0.of(project).delete(delete).await.map(drop)
    }

    /// Forgets what is over; how many.
    pub async fn purge(self, now: Timestamp) -> Result<u64, StoreError> {
        self.0
            .delete(Entity::delete_many().filter(Column::ExpiresAt.lte(now.0)))
            .await
    }
}

/// Begins the transaction in which a request makes an object, and remembers in it that it does. Of the same requests each
/// waits here until the one before has ended.
/// Errors: `Repeated` when the request made an object before, `KeyReused`.
pub(crate) async fn begin(
    store: &Store,
    project: &ProjectId,
    request: Option<&IdempotencyEntry>,
    object_id: &str,
    now: Timestamp,
) -> Result<DatabaseTransaction, StoreError> {
    let tx = store.begin().await?;
    let Some(request) = request else {
        return Ok(tx);
    };
    take_turn(&tx, project, request).await?;
    if let Some(earlier) = earlier(project, request, now)?.one(&tx).await? {
        if request.key.is_some() && earlier.fingerprint != request.fingerprint {
            return Err(StoreError::KeyReused);
        }
        if earlier.first_due_before.is_some() && request.repeats_since.is_none() {
            // The object is this sending's from now on: the next first one makes another.
            Entity::update_many()
                .col_expr(Column::FirstDueBefore, Expr::val(Value::BigInt(None)))
                .filter(Column::Id.eq(earlier.id))
                .exec(&tx)
                .await?;
            tx.commit().await?;
        }
        return Err(StoreError::Repeated {
            object_id: earlier.object_id,
        });
    }
    remember(&tx, project, request, object_id, now).await?;
    Ok(tx)
}

/// Holds what makes a request the same as another until the transaction ends. SQLite's writers take turns anyway.
async fn take_turn(
    tx: &DatabaseTransaction,
    project: &ProjectId,
    request: &IdempotencyEntry,
) -> Result<(), StoreError> {
    if tx.get_database_backend() != DbBackend::Postgres {
        return Ok(());
    }
    let endpoint = &request.endpoint;
    let name = match &request.key {
        Some(key) => format!("{project} {endpoint} {}", text("idempotency key", key)?),
        None => format!(
            "{project} {endpoint} {} {}",
            request.api_key_id, request.fingerprint
        ),
    };
    let sql = "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))";
    let lock = Statement::from_sql_and_values(DbBackend::Postgres, sql, [name.into()]);
    tx.execute_raw(lock).await?;
    Ok(())
}

/// The memory of the request's earlier sending, if there is one.
fn earlier(
    project: &ProjectId,
    request: &IdempotencyEntry,
    now: Timestamp,
) -> Result<Select<Entity>, StoreError> {
    if let Some(key) = &request.key {
        let of_key = of_key(project, &request.endpoint, key)?;
        return Ok(of_key.filter(Column::ExpiresAt.gt(now.0)));
    }
    let (endpoint, api_key) = (&request.endpoint, &request.api_key_id);
    let same = same(project, endpoint, api_key, &request.fingerprint);
    Ok(match request.repeats_since {
        Some(since) => same.filter(Column::CreatedAt.gte(since.0)),
        None => same.filter(Column::FirstDueBefore.gte(request.began_at.0)),
    })
}

async fn remember(
    tx: &DatabaseTransaction,
    project: &ProjectId,
    request: &IdempotencyEntry,
    object_id: &str,
    now: Timestamp,
) -> Result<(), StoreError> {
    if let Some(key) = &request.key {
        Entity::delete_many()
            .filter(Column::ProjectId.eq(project.as_str()))
            .filter(Column::Endpoint.eq(request.endpoint.as_str()))
            .filter(Column::Key.eq(text("idempotency key", key)?))
            .filter(Column::ExpiresAt.lte(now.0))
            .exec(tx)
            .await?;
    }
    let is_overtaking = request.key.is_none() && request.repeats_since.is_some();
    let row = ActiveModel {
        id: ActiveValue::NotSet,
        project_id: ActiveValue::Set(project.to_string()),
        endpoint: ActiveValue::Set(request.endpoint.clone()),
        key: ActiveValue::Set(request.key.clone()),
        api_key_id: ActiveValue::Set(request.api_key_id.to_string()),
        fingerprint: ActiveValue::Set(request.fingerprint.clone()),
        object_id: ActiveValue::Set(object_id.to_owned()),
        created_at: ActiveValue::Set(now.0),
        expires_at: ActiveValue::Set(request.expires_at.0),
        first_due_before: ActiveValue::Set(is_overtaking.then_some(request.began_at.0)),
    };
    Entity::insert(row).exec_without_returning(tx).await?;
    Ok(())
}

fn of_key(project: &ProjectId, endpoint: &str, key: &str) -> Result<Select<Entity>, StoreError> {
    Ok(Entity::find()
        .filter(Column::ProjectId.eq(project.as_str()))
        .filter(Column::Endpoint.eq(endpoint))
        .filter(Column::Key.eq(text("idempotency key", key)?)))
}

/// Newest first.
fn same(project: &ProjectId, endpoint: &str, api_key: &KeyId, fingerprint: &str) -> Select<Entity> {
    Entity::find()
        .filter(Column::ProjectId.eq(project.as_str()))
        .filter(Column::Endpoint.eq(endpoint))
        .filter(Column::ApiKeyId.eq(api_key.as_str()))
        .filter(Column::Fingerprint.eq(fingerprint))
        .order_by_desc(Column::CreatedAt)
        .order_by_desc(Column::Id)
}

fn replay(row: Model) -> Replay {
    Replay {
        fingerprint: row.fingerprint,
        object_id: row.object_id,
    }
}
