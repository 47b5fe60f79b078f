//! Users of organisations. An organisation that has owners keeps at least one of them.

use domain::audit::AuditEntry;
use domain::id::{OrganizationId, UserId};
use domain::page::{Page, PageRequest};
use domain::time::Timestamp;
use domain::user::{OrganizationRole, User};
use sea_orm::{
    ColumnTrait, DatabaseTransaction, EntityTrait, IntoActiveModel, PaginatorTrait, QueryFilter,
    Select,
};

use crate::audit;
use crate::connect::Store;
use crate::convert::{from_code, text};
use crate::entity::user::{Column, Entity, Model};
use crate::entity::{admin_api_key, api_key, project_user};
use crate::error::StoreError;

#[derive(Clone, Copy)]
pub struct Users<'a>(&'a Store);

impl<'a> Users<'a> {
    pub(crate) fn new(store: &'a Store) -> Self {
        Self(store)
    }

    /// Errors: `Conflict` when the organisation has a user with this address.
    pub async fn insert(self, user: &User, entry: &AuditEntry) -> Result<(), StoreError> {
        let insert = Entity::insert(to_row(user)?.into_active_model());
        self.0.audited_insert(insert, entry).await
    }

    /// With `emails` not empty: those of these addresses. Errors: `UnknownAfter`.
    pub async fn list(
        self,
        organization: &OrganizationId,
        emails: &[String],
        page: &PageRequest,
    ) -> Result<Page<User>, StoreError> {
        let mut select = of(organization);
        if !emails.is_empty() {
            let emails = emails.iter().map(|email| email.replace('\0', ""));
            select = select.filter(Column::Email.is_in(emails));
        }
        let page = self
            .0
            .page(select, page, Column::AddedAt, Column::Id)
            .await?;
        page.try_map(to_domain)
    }

    pub async fn find(
        self,
        organization: &OrganizationId,
        id: &UserId,
    ) -> Result<Option<User>, StoreError> {
        let select = of(organization).filter(Column::Id.eq(id.as_str()));
        self.0.one(select).await?.map(to_domain).transpose()
    }

    pub async fn find_by_email(
        self,
        organization: &OrganizationId,
        email: &str,
    ) -> Result<Option<User>, StoreError> {
        let select = of(organization).filter(Column::Email.eq(email.replace('\0', "")));
        self.0.one(select).await?.map(to_domain).transpose()
    }

    /// False: the organisation has no such user. Errors: `LastOwner`.
    pub async fn set_role(
        self,
        id: &UserId,
        role: OrganizationRole,
        entry: &AuditEntry,
    ) -> Result<bool, StoreError> {
        let organization = &entry.organization_id;
        let update = Entity::update_many()
            .col_expr(Column::Role, role.as_str().into())
            .filter(Column::OrganizationId.eq(organization.as_str()))
            .filter(Column::Id.eq(id.as_str()));
        let work = async {
            let tx = audit::begin(self.0, organization).await?;
            if role != OrganizationRole::Owner {
                keep_an_owner(&tx, organization, id).await?;
            }
            if update.exec(&tx).await?.rows_affected == 0 {
                return Ok(false);
            }
            audit::commit(tx, entry).await.map(|()| true)
        };
        self.0.bounded(work).await
    }

    /// Deletes the user with its memberships, and revokes its keys. False: the organisation has no such user.
    /// Errors: `LastOwner`.
    pub async fn delete(self, id: &UserId, entry: &AuditEntry) -> Result<bool, StoreError> {
        let organization = &entry.organization_id;
        let work = async {
            let tx = audit::begin(self.0, organization).await?;
            let user = of(organization).filter(Column::Id.eq(id.as_str()));
            if user.one(&tx).await?.is_none() {
                return Ok(false);
            }
            keep_an_owner(&tx, organization, id).await?;
            revoke_keys(&tx, id, entry.effective_at).await?;
            project_user::Entity::delete_many()
                .filter(project_user::Column::UserId.eq(id.as_str()))
                .exec(&tx)
                .await?;
            Entity::delete_by_id(id.as_str()).exec(&tx).await?;
            audit::commit(tx, entry).await.map(|()| true)
        };
        self.0.bounded(work).await
    }
}

/// Errors: `LastOwner` when this user is one and nobody else is.
async fn keep_an_owner(
    tx: &DatabaseTransaction,
    organization: &OrganizationId,
    id: &UserId,
) -> Result<(), StoreError> {
    let owners = of(organization).filter(Column::Role.eq(OrganizationRole::Owner.as_str()));
    let this_one = owners.clone().filter(Column::Id.eq(id.as_str()));
    if this_one.count(tx).await? == 1 && owners.count(tx).await? == 1 {
        return Err(StoreError::LastOwner);
    }
    Ok(())
}

async fn revoke_keys(
    tx: &DatabaseTransaction,
    id: &UserId,
    now: Timestamp,
) -> Result<(), StoreError> {
    api_key::Entity::update_many()
        .col_expr(api_key::Column::RevokedAt, now.0.into())
        .filter(api_key::Column::OwnerUserId.eq(id.as_str()))
        .filter(api_key::Column::RevokedAt.is_null())
        .exec(tx)
        .await?;
    admin_api_key::Entity::update_many()
        .col_expr(admin_api_key::Column::RevokedAt, now.0.into())
        .filter(admin_api_key::Column::OwnerUserId.eq(id.as_str()))
        .filter(admin_api_key::Column::RevokedAt.is_null())
        .exec(tx)
        .await?;
    Ok(())
}

fn of(organization: &OrganizationId) -> Select<Entity> {
    Entity::find().filter(Column::OrganizationId.eq(organization.as_str()))
}

fn to_row(user: &User) -> Result<Model, StoreError> {
    Ok(Model {
        id: user.id.to_string(),
        organization_id: user.organization_id.to_string(),
        email: text("email", &user.email)?,
        name: text("name", &user.name)?,
        role: user.role.as_str().to_owned(),
        added_at: user.added_at.0,
    })
}

pub(crate) fn to_domain(row: Model) -> Result<User, StoreError> {
    Ok(User {
        id: UserId::parse(&row.id)?,
        organization_id: OrganizationId::parse(&row.organization_id)?,
        email: row.email,
        name: row.name,
        role: from_code("role", &row.role)?,
        added_at: Timestamp(row.added_at),
    })
}
