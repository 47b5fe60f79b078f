//! What requests were answered with, for the same ones that come again: where what they made does not remember them.

use domain::id::{KeyId, ProjectId};
use domain::time::Timestamp;
use sea_orm::sea_query::{Expr, SimpleExpr};
use sea_orm::{ActiveValue, ColumnTrait, EntityTrait, QueryFilter, QueryOrder, Select};

use crate::connect::Store;
use crate::convert::text;
use crate::entity::kept_reply::{ActiveModel, Column, Entity, Model};
use crate::error::StoreError;

/// A request whose answer is to be kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptRequest {
    /// `None`: an administrator's.
    pub project_id: Option<ProjectId>,
    pub api_key_id: KeyId,
    /// Its path.
    pub endpoint: String,
    /// The client's `Idempotency-Key`, unique within API key and endpoint.
    pub key: Option<String>,
    /// Hash of the request.
    pub fingerprint: String,
    /// The client says that it sends the request again; without that and without a key it is a new one.
    pub is_repetition: bool,
}

/// Since when a request may be remembered, and how long this one will be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    pub now: Timestamp,
    /// Repetitions without a key: of nothing older.
    pub repeated_since: Timestamp,
    /// What began before and has no answer has none to come: its process is gone.
    pub under_way_since: Timestamp,
    pub expires_at: Timestamp,
}

/// Which one of its kind a request is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// The first; its answer belongs into this row.
    First { row: i64 },
    /// The first one is not answered yet.
    UnderWay,
    /// This is what the first one was answered with, sealed.
    Answered { row: i64, reply: String },
    /// The key came with another request.
    OtherRequest,
}

#[derive(Clone, Copy)]
pub struct KeptReplies<'a>(&'a Store);

impl<'a> KeptReplies<'a> {
    pub(crate) fn new(store: &'a Store) -> Self {
        Self(store)
    }

    /// Looks for the first request of the kind, or makes this one the first.
    pub async fn claim(self, request: &KeptRequest, memory: &Memory) -> Result<Claim, StoreError> {
        let store = self.of(request.project_id.as_ref());
        if let Some(earlier) = earlier(request, memory)?
            && let Some(earlier) = store.one(earlier).await?
        {
            let is_forgotten = earlier.expires_at <= memory.now.0;
            let is_lost = earlier.reply.is_none() && earlier.created_at < memory.under_way_since.0;
            if !is_forgotten && !is_lost {
                return Ok(claim_of(earlier, request));
            }
            store
                .delete(Entity::delete_many().filter(Column::Id.eq(earlier.id)))
                .await?;
        }
        let key = request
            .key
            .as_deref()
            .map(|key| text("idempotency key", key));
        let row = ActiveModel {
            id: ActiveValue::NotSet,
            project_id: ActiveValue::Set(request.project_id.as_ref().map(ToString::to_string)),
            api_key_id: ActiveValue::Set(request.api_key_id.to_string()),
            endpoint: ActiveValue::Set(text("path", &request.endpoint)?),
            key: ActiveValue::Set(key.transpose()?),
            fingerprint: ActiveValue::Set(request.fingerprint.clone()),
            reply: ActiveValue::Set(None),
            created_at: ActiveValue::Set(memory.now.0),
            expires_at: ActiveValue::Set(memory.expires_at.0),
        };
        let insert = async { Ok(Entity::insert(row).exec(&store.write).await?.last_insert_id) };
        match store.bounded(insert).await {
            Ok(row) => Ok(Claim::First { row }),
            // The same request was a moment faster.
            Err(StoreError::Conflict(_)) => Ok(Claim::UnderWay),
            Err(error) => Err(error),
        }
    }

    /// Keeps the sealed answer to the first request.
    pub async fn keep(
        self,
        project: Option<&ProjectId>,
        row: i64,
        reply: &str,
    ) -> Result<(), StoreError> {
        let update = Entity::update_many()
            .col_expr(Column::Reply, Expr::value(reply))
            .filter(Column::Id.eq(row))
            .filter(is_of(project));
        self.of(project).update(update).await.map(drop)
    }

    /// The request made nothing: the next one is the first.
    pub async fn release(self, project: Option<&ProjectId>, row: i64) -> Result<(), StoreError> {
        let delete = Entity::delete_many()
            .filter(Column::Id.eq(row))
            .filter(is_of(project));
        self.of(project).delete(delete).await.map(drop)
    }

    /// Forgets what is over; how many.
    pub async fn purge(self, now: Timestamp) -> Result<u64, StoreError> {
        self.0
            .delete(Entity::delete_many().filter(Column::ExpiresAt.lte(now.0)))
            .await
    }

    fn of(self, project: Option<&ProjectId>) -> Store {
        project.map_or_else(|| self.0.clone(), |project| self.0.of(project))
    }
}

fn is_of(project: Option<&ProjectId>) -> SimpleExpr {
    match project {
        Some(project) => Column::ProjectId.eq(project.as_str()),
        None => Column::ProjectId.is_null(),
    }
}

/// What may hold the first request of the kind; `None` where this one is new by itself.
fn earlier(request: &KeptRequest, memory: &Memory) -> Result<Option<Select<Entity>>, StoreError> {
    let of_endpoint = Entity::find()
        .filter(Column::ApiKeyId.eq(request.api_key_id.as_str()))
        .filter(Column::Endpoint.eq(text("path", &request.endpoint)?));
    Ok(match &request.key {
        Some(key) => Some(of_endpoint.filter(Column::Key.eq(text("idempotency key", key)?))),
        None if request.is_repetition => Some(
            of_endpoint
                .filter(Column::Fingerprint.eq(request.fingerprint.as_str()))
                .filter(Column::CreatedAt.gte(memory.repeated_since.0))
                .order_by_desc(Column::CreatedAt)
                .order_by_desc(Column::Id),
        ),
        None => None,
    })
}

fn claim_of(earlier: Model, request: &KeptRequest) -> Claim {
    match earlier.reply {
        _ if earlier.fingerprint != request.fingerprint => Claim::OtherRequest,
        Some(reply) => Claim::Answered {
            row: earlier.id,
            reply,
        },
        None => Claim::UnderWay,
    }
}
