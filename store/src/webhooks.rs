//! Webhooks: the endpoints of a project, what their messages are signed with, and what is on its way to them.

mod deliveries;
mod secrets;

use domain::id::{ProjectId, WebhookEndpointId};
use domain::page::{Page, PageRequest};
use domain::time::Timestamp;
use domain::webhook::{MAX_ENDPOINTS, WebhookEndpoint, WebhookEventType};
use sea_orm::sea_query::{Expr, Value};
use sea_orm::{
    ColumnTrait, EntityTrait, IntoActiveModel, PaginatorTrait, QueryFilter, QuerySelect, Select,
};

pub use deliveries::DueDelivery;
pub(crate) use deliveries::raise;
pub use secrets::SealedSecret;

use crate::connect::Store;
use crate::convert::{from_json, json, optional, text};
use crate::entity::webhook_endpoint::{Column, Entity, Model};
use crate::entity::{webhook_delivery, webhook_secret};
use crate::error::StoreError;
use crate::projects;

/// What a client may change of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhookChange {
    pub name: String,
    pub url: String,
    pub event_types: Vec<WebhookEventType>,
    pub updated_at: Timestamp,
}

#[derive(Clone, Copy)]
pub struct Webhooks<'a>(&'a Store);

impl<'a> Webhooks<'a> {
    pub(crate) fn new(store: &'a Store) -> Self {
        Self(store)
    }

    /// Stores an endpoint with its first secret. False: the project has [`MAX_ENDPOINTS`] already.
    pub async fn insert(
        self,
        endpoint: &WebhookEndpoint,
        secret: &SealedSecret,
    ) -> Result<bool, StoreError> {
        let project = &endpoint.project_id;
        let store = self.0.of(project);
        let row = to_row(endpoint)?.into_active_model();
        let secret = secrets::to_row(&endpoint.id, secret).into_active_model();
        let work = async {
            let tx = store.begin().await?;
            projects::hold(&tx, project).await?;
            if of(project).count(&tx).await? >= MAX_ENDPOINTS {
                return Ok(false);
            }
            Entity::insert(row).exec_without_returning(&tx).await?;
            webhook_secret::Entity::insert(secret)
                .exec_without_returning(&tx)
                .await?;
            tx.commit().await?;
            Ok::<_, StoreError>(true)
        };
        store.bounded(work).await
    }

    pub async fn find(
        self,
        project: &ProjectId,
        id: &WebhookEndpointId,
    ) -> Result<Option<WebhookEndpoint>, StoreError> {
        let select = of(project).filter(Column::Id.eq(id.as_str()));
        self.0
            .of(project)
            .one(select)
            .await?
            .map(to_domain)
            .transpose()
    }

    /// Errors: `UnknownAfter`.
    pub async fn list(
        self,
        project: &ProjectId,
        page: &PageRequest,
    ) -> Result<Page<WebhookEndpoint>, StoreError> {
        let store = self.0.of(project);
        let listed = store.page(of(project), page, Column::CreatedAt, Column::Id);
        listed.await?.try_map(to_domain)
    }

    /// Changes an endpoint, and enables it again. False: the project has no such endpoint.
    pub async fn update(
        self,
        project: &ProjectId,
        id: &WebhookEndpointId,
        change: &WebhookChange,
    ) -> Result<bool, StoreError> {
        let null = || Expr::val(Value::BigInt(None));
        let update = Entity::update_many()
            .col_expr(Column::Name, text("name", &change.name)?.into())
            .col_expr(Column::Url, text("url", &change.url)?.into())
            .col_expr(Column::EventTypes, json(&change.event_types).into())
            .col_expr(Column::UpdatedAt, change.updated_at.0.into())
            .col_expr(Column::FailingSince, null())
            .col_expr(Column::DisabledAt, null())
            .filter(Column::ProjectId.eq(project.as_str()))
            .filter(Column::Id.eq(id.as_str()));
        Ok(self.0.of(project).update(update).await? == 1)
    }

    /// Drops an endpoint, its secrets and what is on its way there. False: the project has no such endpoint.
    pub async fn delete(
        self,
        project: &ProjectId,
        id: &WebhookEndpointId,
    ) -> Result<bool, StoreError> {
        let store = self.0.of(project);
        let work = async {
            let tx = store.begin().await?;
            let found = of(project)
                .filter(Column::Id.eq(id.as_str()))
                .lock_exclusive();
            if found.one(&tx).await?.is_none() {
                return Ok(false);
            }
            webhook_delivery::Entity::delete_many()
                .filter(webhook_delivery::Column::EndpointId.eq(id.as_str()))
                .exec(&tx)
                .await?;
            webhook_secret::Entity::delete_many()
                .filter(webhook_secret::Column::EndpointId.eq(id.as_str()))
                .exec(&tx)
                .await?;
            Entity::delete_by_id(id.as_str()).exec(&tx).await?;
            tx.commit().await?;
            Ok::<_, StoreError>(true)
        };
        store.bounded(work).await
    }
}

fn of(project: &ProjectId) -> Select<Entity> {
    Entity::find().filter(Column::ProjectId.eq(project.as_str()))
}

fn to_row(endpoint: &WebhookEndpoint) -> Result<Model, StoreError> {
    Ok(Model {
        id: endpoint.id.to_string(),
        project_id: endpoint.project_id.to_string(),
        name: text("name", &endpoint.name)?,
        url: text("url", &endpoint.url)?,
        event_types: json(&endpoint.event_types),
        secret_hint: endpoint.secret_hint.clone(),
        created_at: endpoint.created_at.0,
        updated_at: endpoint.updated_at.0,
        failing_since: None,
        disabled_at: optional(endpoint.disabled_at),
    })
}

fn to_domain(row: Model) -> Result<WebhookEndpoint, StoreError> {
    Ok(WebhookEndpoint {
        id: WebhookEndpointId::parse(&row.id)?,
        project_id: ProjectId::parse(&row.project_id)?,
        name: row.name,
        url: row.url,
        event_types: from_json("webhook_endpoints.event_types", &row.event_types)?,
        secret_hint: row.secret_hint,
        created_at: Timestamp(row.created_at),
        updated_at: Timestamp(row.updated_at),
        disabled_at: row.disabled_at.map(Timestamp),
    })
}
