//! Service accounts of projects, and their keys.

use domain::api_key::ApiKey;
use domain::audit::AuditEntry;
use domain::id::{ProjectId, ServiceAccountId};
use domain::page::{Page, PageRequest};
use domain::service_account::{ServiceAccount, ServiceAccountRole};
use domain::time::Timestamp;
use sea_orm::{ColumnTrait, EntityTrait, IntoActiveModel, QueryFilter, Select};

use crate::connect::Store;
use crate::convert::{from_code, text};
use crate::entity::api_key;
use crate::entity::service_account::{Column, Entity, Model};
use crate::error::StoreError;
use crate::{api_keys, audit};

#[derive(Clone, Copy)]
pub struct ServiceAccounts<'a>(&'a Store);

impl<'a> ServiceAccounts<'a> {
    pub(crate) fn new(store: &'a Store) -> Self {
        Self(store)
    }

    /// Errors: `UnknownAfter`.
    pub async fn list(
        self,
        project: &ProjectId,
        page: &PageRequest,
    ) -> Result<Page<ServiceAccount>, StoreError> {
        let store = self.0.of(project);
        let page = store.page(of(project), page, Column::CreatedAt, Column::Id);
        page.await?.try_map(to_domain)
    }

    pub async fn find(
        self,
        project: &ProjectId,
        id: &ServiceAccountId,
    ) -> Result<Option<ServiceAccount>, StoreError> {
        let select = of(project).filter(Column::Id.eq(id.as_str()));
        self.0
            .of(project)
            .one(select)
            .await?
            .map(to_domain)
            .transpose()
    }

    /// Stores an account, and with it perhaps its first key.
    pub async fn insert(
        self,
        account: &ServiceAccount,
        key: Option<&ApiKey>,
        entry: &AuditEntry,
    ) -> Result<(), StoreError> {
        let insert = Entity::insert(to_row(account)?.into_active_model());
        let key = key.map(api_keys::insertion).transpose()?;
        let work = async {
            let tx = audit::begin(self.0, &entry.organization_id).await?;
            insert.exec_without_returning(&tx).await?;
            if let Some(key) = key {
                key.exec_without_returning(&tx).await?;
            }
            audit::commit(tx, entry).await
        };
        self.0.bounded(work).await
    }

    /// The account afterwards. `None`: the project has no such account.
    pub async fn modify(
        self,
        project: &ProjectId,
        id: &ServiceAccountId,
        wanted: ServiceAccountChange,
        entry: &AuditEntry,
    ) -> Result<Option<ServiceAccount>, StoreError> {
        let select = of(project).filter(Column::Id.eq(id.as_str()));
        let work = async {
            let tx = audit::begin(self.0, &entry.organization_id).await?;
            let Some(row) = select.one(&tx).await? else {
                return Ok(None);
            };
            let account = wanted.of(to_domain(row)?);
            let row = to_row(&account)?;
            Entity::update_many()
                .col_expr(Column::Name, row.name.into())
                .col_expr(Column::Role, row.role.into())
                .filter(Column::Id.eq(row.id))
                .exec(&tx)
                .await?;
            audit::commit(tx, entry).await?;
            Ok(Some(account))
        };
        self.0.bounded(work).await
    }

    /// Deletes the account and revokes its keys. False: the project has no such account.
    pub async fn delete(
        self,
        project: &ProjectId,
        id: &ServiceAccountId,
        entry: &AuditEntry,
    ) -> Result<bool, StoreError> {
        let delete = Entity::delete_many()
            .filter(Column::ProjectId.eq(project.as_str()))
            .filter(Column::Id.eq(id.as_str()));
        let revoke = api_key::Entity::update_many()
            .col_expr(api_key::Column::RevokedAt, entry.effective_at.0.into())
            .filter(api_key::Column::OwnerServiceAccountId.eq(id.as_str()))
            .filter(api_key::Column::RevokedAt.is_null());
        let work = async {
            let tx = audit::begin(self.0, &entry.organization_id).await?;
            if delete.exec(&tx).await?.rows_affected == 0 {
                return Ok(false);
            }
            revoke.exec(&tx).await?;
            audit::commit(tx, entry).await.map(|()| true)
        };
        self.0.bounded(work).await
    }
}

/// What of an account becomes what; `None` leaves it as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServiceAccountChange {
    pub name: Option<String>,
    pub role: Option<ServiceAccountRole>,
}

impl ServiceAccountChange {
    fn of(self, account: ServiceAccount) -> ServiceAccount {
        ServiceAccount {
            name: self.name.unwrap_or(account.name),
            role: self.role.unwrap_or(account.role),
            ..account
        }
    }
}

fn of(project: &ProjectId) -> Select<Entity> {
    Entity::find().filter(Column::ProjectId.eq(project.as_str()))
}

fn to_row(account: &ServiceAccount) -> Result<Model, StoreError> {
    Ok(Model {
        id: account.id.to_string(),
        project_id: account.project_id.to_string(),
        name: text("name", &account.name)?,
        role: account.role.as_str().to_owned(),
        created_at: account.created_at.0,
    })
}

pub(crate) fn to_domain(row: Model) -> Result<ServiceAccount, StoreError> {
    Ok(ServiceAccount {
        id: ServiceAccountId::parse(&row.id)?,
        project_id: ProjectId::parse(&row.project_id)?,
        name: row.name,
        role: from_code("role", &row.role)?,
        created_at: Timestamp(row.created_at),
    })
}
