//! Events on their way. A row is written with the change it tells of and goes on being tried until the receiver took
//! it or it is given up: an event may arrive twice, with the same id, never not at all.

use std::collections::HashMap;

use domain::id::{ProjectId, WebhookDeliveryId, WebhookEndpointId};
use domain::time::Timestamp;
use domain::webhook::WebhookEvent;
use sea_orm::sea_query::{Expr, ExprTrait, Func, OnConflict, Value};
use sea_orm::{
    ColumnTrait, DatabaseTransaction, EntityTrait, IntoActiveModel, QueryFilter, QuerySelect,
    QueryTrait, Statement,
};

use super::secrets::{self, SealedSecret};
use super::{Webhooks, of, to_domain};
use crate::convert::{int, shown, unsigned};
use crate::entity::webhook_delivery::{Column, Entity, Model};
use crate::entity::webhook_endpoint;
use crate::error::StoreError;

/// Events of one endpoint that are taken before the first of another one's next turn.
const TURNS: i64 = 8;

/// A delivery that its holder must try now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DueDelivery {
    pub id: WebhookDeliveryId,
    pub endpoint_id: WebhookEndpointId,
    pub project_id: ProjectId,
    pub url: String,
    pub body: String,
    /// Tries that failed.
    pub n_tries: u32,
    /// All that sign it.
    pub secrets: Vec<SealedSecret>,
}

/// Stores that something happened, for each endpoint that wants to know; raising it again changes nothing. The one
/// call for whoever ends an object, inside the transaction that ends it.
pub(crate) async fn raise(
    tx: &DatabaseTransaction,
    project: &ProjectId,
    event: &WebhookEvent,
) -> Result<(), StoreError> {
    // Locked, so that none is deleted before its deliveries are there to be deleted with it.
    let listening = of(project)
        .filter(webhook_endpoint::Column::DisabledAt.is_null())
        .lock_shared();
    let mut rows = Vec::new();
    for row in listening.all(tx).await? {
        let endpoint = to_domain(row)?;
        if endpoint.event_types.contains(&event.event_type) {
            rows.push(to_row(event, &endpoint.id)?.into_active_model());
        }
    }
    if rows.is_empty() {
        return Ok(());
    }
    let known = OnConflict::column(Column::Id).do_nothing().to_owned();
    Entity::insert_many(rows)
        .on_conflict(known)
        .exec_without_returning(tx)
        .await?;
    Ok(())
}

impl Webhooks<'_> {
    /// Takes up to `limit` deliveries that are due, in turns over the endpoints. Until `until` nobody else is given
    /// them, and afterwards they are due again.
    pub async fn claim_due(
        self,
        now: Timestamp,
        limit: u64,
        until: Timestamp,
    ) -> Result<Vec<DueDelivery>, StoreError> {
        let due = due_statement(self.0.backend(), now, limit)?;
        let due = self
            .0
            .bounded(async {
                let rows = Entity::find().from_raw_sql(due).all(&self.0.read).await?;
                Ok::<_, StoreError>(rows)
            })
            .await?;
        if due.is_empty() {
            return Ok(Vec::new());
        }
        // Whom another one was faster with is no longer due.
        let claim = Entity::update_many()
            .col_expr(Column::NextTryAt, until.0.into())
            .filter(Column::Id.is_in(due.iter().map(|row| row.id.as_str())))
            .filter(Column::NextTryAt.lte(now.0));
        let claimed = self
            .0
            .bounded(async { Ok::<_, StoreError>(claim.exec_with_returning(&self.0.write).await?) })
            .await?;
        self.with_endpoints(claimed, now).await
    }

    async fn with_endpoints(
        self,
        claimed: Vec<Model>,
        now: Timestamp,
    ) -> Result<Vec<DueDelivery>, StoreError> {
        let ids = || claimed.iter().map(|row| row.endpoint_id.as_str());
        let select =
            webhook_endpoint::Entity::find().filter(webhook_endpoint::Column::Id.is_in(ids()));
        let endpoints = self.0.all(select).await?;
        let endpoints: HashMap<&str, _> = endpoints.iter().map(|e| (e.id.as_str(), e)).collect();
        let signing = secrets::active(self.0, ids(), now).await?;
        let mut due = Vec::new();
        for row in &claimed {
            // One that was deleted since took its deliveries along.
            let Some(endpoint) = endpoints.get(row.endpoint_id.as_str()) else {
                continue;
            };
            let own = signing.iter().filter(|s| s.endpoint_id == row.endpoint_id);
            due.push(DueDelivery {
                id: WebhookDeliveryId::parse(&row.id)?,
                endpoint_id: WebhookEndpointId::parse(&row.endpoint_id)?,
                project_id: ProjectId::parse(&endpoint.project_id)?,
                url: endpoint.url.clone(),
                body: row.body.clone(),
                n_tries: unsigned(row.n_tries)?,
                secrets: own.map(secrets::to_domain).collect::<Result<_, _>>()?,
            });
        }
        Ok(due)
    }

    /// The receiver took it.
    pub async fn delivered(self, due: &DueDelivery, now: Timestamp) -> Result<(), StoreError> {
        let delivery = ended(due)
            .col_expr(Column::NextTryAt, null())
            .col_expr(Column::DeliveredAt, now.0.into());
        let endpoint = endpoint(due).col_expr(webhook_endpoint::Column::FailingSince, null());
        let work = async {
            let tx = self.0.begin().await?;
            // The endpoint first, as whoever deletes it does: two orders would wait for each other.
            endpoint.exec(&tx).await?;
            delivery.exec(&tx).await?;
            Ok(tx.commit().await?)
        };
        self.0.bounded(work).await
    }

    /// The receiver did not take it: it is tried again at `next`, or given up. An endpoint where nothing got through
    /// since `given_up_since` is disabled, and with it all that is on its way there; whether it was.
    pub async fn failed(
        self,
        due: &DueDelivery,
        reason: &str,
        next: Option<Timestamp>,
        given_up_since: Timestamp,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        use webhook_endpoint::Column as E;
        let next = Value::BigInt(next.map(|at| at.0));
        let delivery = ended(due)
            .col_expr(Column::NextTryAt, Expr::val(next))
            .col_expr(Column::LastFailure, shown(reason).into());
        let since = Func::coalesce([Expr::col(E::FailingSince), now.0.into()]);
        let failing = endpoint(due).col_expr(E::FailingSince, since.into());
        let disable = endpoint(due)
            .col_expr(E::DisabledAt, now.0.into())
            .filter(E::FailingSince.lte(given_up_since.0))
            .filter(E::DisabledAt.is_null());
        let give_up = Entity::update_many()
            .col_expr(Column::NextTryAt, null())
            .filter(Column::EndpointId.eq(due.endpoint_id.as_str()))
            .filter(Column::NextTryAt.is_not_null());
        let work = async {
            let tx = self.0.begin().await?;
            failing.exec(&tx).await?;
            delivery.exec(&tx).await?;
            let is_disabled = disable.exec(&tx).await?.rows_affected == 1;
            if is_disabled {
                give_up.exec(&tx).await?;
            }
            tx.commit().await?;
            Ok::<_, StoreError>(is_disabled)
        };
        self.0.bounded(work).await
    }

    /// Forgets what was delivered or given up and happened before, so many at most; how many.
    pub async fn purge_deliveries(self, before: Timestamp, limit: u64) -> Result<u64, StoreError> {
        let over = Entity::find()
            .select_only()
            .column(Column::Id)
            .filter(Column::NextTryAt.is_null())
            .filter(Column::CreatedAt.lt(before.0))
            .limit(limit)
            .into_query();
        let delete = Entity::delete_many().filter(Column::Id.in_subquery(over));
        self.0.delete(delete).await
    }
}

/// One more try of this delivery has ended; nothing where it is no longer the holder's.
fn ended(due: &DueDelivery) -> sea_orm::UpdateMany<Entity> {
    Entity::update_many()
        .col_expr(Column::NTries, Expr::col(Column::NTries).add(1))
        .filter(Column::Id.eq(due.id.as_str()))
        .filter(Column::NTries.eq(due.n_tries))
}

fn endpoint(due: &DueDelivery) -> sea_orm::UpdateMany<webhook_endpoint::Entity> {
    webhook_endpoint::Entity::update_many()
        .filter(webhook_endpoint::Column::Id.eq(due.endpoint_id.as_str()))
}

fn null() -> Expr {
    Expr::val(Value::BigInt(None))
}

fn to_row(event: &WebhookEvent, endpoint: &WebhookEndpointId) -> Result<Model, StoreError> {
    Ok(Model {
        id: event.delivery_id(endpoint)?.to_string(),
        endpoint_id: endpoint.to_string(),
        event_type: event.event_type.as_str().to_owned(),
        body: event.body(),
        created_at: event.created_at.0,
        n_tries: 0,
        next_try_at: Some(event.created_at.0),
        delivered_at: None,
        last_failure: None,
    })
}

/// Plain SQL, because the query builder cannot filter by a window; the same text on both databases.
fn due_statement(
    backend: sea_orm::DbBackend,
    now: Timestamp,
    limit: u64,
) -> Result<Statement, StoreError> {
    let sql = "SELECT * FROM (SELECT d.*, \
               ROW_NUMBER() OVER (PARTITION BY endpoint_id ORDER BY next_try_at, id) AS turn \
               FROM webhook_deliveries d WHERE next_try_at <= $1) due \
               WHERE turn <= $2 ORDER BY turn, next_try_at, id LIMIT $3";
    let values: Vec<Value> = vec![now.0.into(), TURNS.into(), int(limit)?.into()];
    Ok(Statement::from_sql_and_values(backend, sql, values))
}
