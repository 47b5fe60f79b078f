//! What messages are signed with. The text is sealed before it comes here, for its own row.

use domain::id::{ProjectId, WebhookEndpointId, WebhookSecretId};
use domain::time::Timestamp;
use sea_orm::sea_query::Expr;
use sea_orm::{ColumnTrait, Condition, EntityTrait, IntoActiveModel, QueryFilter, QueryOrder};

use super::Webhooks;
use crate::connect::Store;
use crate::entity::webhook_endpoint;
use crate::entity::webhook_secret::{Column, Entity, Model};
use crate::error::StoreError;

/// A secret that nobody reads here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedSecret {
    pub id: WebhookSecretId,
    pub sealed: String,
}

impl Webhooks<'_> {
    /// Those that sign the endpoint's messages at `now`, the current one first. Empty: the project has no such endpoint.
    pub async fn secrets(
        self,
        project: &ProjectId,
        endpoint: &WebhookEndpointId,
        now: Timestamp,
    ) -> Result<Vec<SealedSecret>, StoreError> {
        let Some(own) = self.find(project, endpoint).await? else {
            return Ok(Vec::new());
        };
        let rows = active(&self.0.of(project), [own.id.as_str()], now).await?;
        rows.iter().map(to_domain).collect()
    }

    /// Gives the endpoint another secret. The current one signs beside it until `old_until`, if that is given; those
    /// before it no longer do. False: the project has no such endpoint.
    pub async fn rotate_secret(
        self,
        project: &ProjectId,
        endpoint: &WebhookEndpointId,
        new: &SealedSecret,
        hint: &str,
        old_until: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let store = self.0.of(project);
        let of_endpoint = || Column::EndpointId.eq(endpoint.as_str());
        let superseded = match old_until {
            Some(_) => Condition::all()
                .add(of_endpoint())
                .add(Column::ActiveUntil.is_not_null()),
            None => Condition::all().add(of_endpoint()),
        };
        let work = async {
            let tx = store.begin().await?;
            let touched = webhook_endpoint::Entity::update_many()
                .col_expr(webhook_endpoint::Column::SecretHint, hint.into())
                .col_expr(webhook_endpoint::Column::UpdatedAt, now.0.into())
                .filter(webhook_endpoint::Column::ProjectId.eq(project.as_str()))
                .filter(webhook_endpoint::Column::Id.eq(endpoint.as_str()))
                .exec(&tx)
                .await?;
            if touched.rows_affected == 0 {
                return Ok(false);
            }
            Entity::delete_many().filter(superseded).exec(&tx).await?;
            if let Some(until) = old_until {
                Entity::update_many()
                    .col_expr(Column::ActiveUntil, until.0.into())
                    .filter(of_endpoint())
                    .exec(&tx)
                    .await?;
            }
            Entity::insert(to_row(endpoint, new).into_active_model())
                .exec_without_returning(&tx)
                .await?;
            tx.commit().await?;
            Ok::<_, StoreError>(true)
        };
        store.bounded(work).await
    }

    /// Every secret of the installation, for whoever seals them anew.
    pub async fn all_secrets(self) -> Result<Vec<SealedSecret>, StoreError> {
        let rows = self.0.all(Entity::find().order_by_asc(Column::Id)).await?;
        rows.iter().map(to_domain).collect()
    }

    /// Puts `sealed` in the place of what was read. False: somebody was faster.
    pub async fn reseal(self, read: &SealedSecret, sealed: &str) -> Result<bool, StoreError> {
        let update = Entity::update_many()
            .col_expr(Column::Sealed, Expr::val(sealed))
            .filter(Column::Id.eq(read.id.as_str()))
            .filter(Column::Sealed.eq(read.sealed.as_str()));
        Ok(self.0.update(update).await? == 1)
    }

    /// Forgets secrets that no longer sign; how many.
    pub async fn purge_secrets(self, now: Timestamp) -> Result<u64, StoreError> {
        let over = Entity::delete_many().filter(Column::ActiveUntil.lte(now.0));
        self.0.delete(over).await
    }
}

/// The rows that sign at `now`, current ones first.
pub(super) async fn active<'a>(
    store: &Store,
    endpoints: impl IntoIterator<Item = &'a str>,
    now: Timestamp,
) -> Result<Vec<Model>, StoreError> {
    let signs = Condition::any()
        .add(Column::ActiveUntil.is_null())
        .add(Column::ActiveUntil.gt(now.0));
    let select = Entity::find()
        .filter(Column::EndpointId.is_in(endpoints))
        .filter(signs)
        .order_by_asc(Column::Id);
    let mut rows = store.all(select).await?;
    rows.sort_by_key(|row| row.active_until.is_some());
    Ok(rows)
}

pub(super) fn to_row(endpoint: &WebhookEndpointId, secret: &SealedSecret) -> Model {
    Model {
        id: secret.id.to_string(),
        endpoint_id: endpoint.to_string(),
        sealed: secret.sealed.clone(),
        active_until: None,
    }
}

pub(super) fn to_domain(row: &Model) -> Result<SealedSecret, StoreError> {
    Ok(SealedSecret {
        id: WebhookSecretId::parse(&row.id)?,
        sealed: row.sealed.clone(),
    })
}
