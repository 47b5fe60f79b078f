//! Keys that administer an organisation, found by the HMAC of their secret.

use domain::api_key::AdminKey;
use domain::audit::AuditEntry;
use domain::id::{KeyId, OrganizationId, UserId};
use domain::page::{Page, PageRequest};
use domain::project::Organization;
use domain::time::Timestamp;
use domain::user::User;
use sea_orm::{ColumnTrait, EntityTrait, IntoActiveModel, QueryFilter, Select};

use crate::connect::Store;
use crate::convert::{optional, text};
use crate::entity::admin_api_key::{Column, Entity, Model};
use crate::entity::{organization, user};
use crate::error::StoreError;
use crate::{projects, users};

#[derive(Clone, Copy)]
pub struct AdminKeys<'a>(&'a Store);

/// A key that is not revoked, with what else decides whether it opens anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundAdminKey {
    pub key: AdminKey,
    pub organization: Organization,
    /// `None` where the key has no owner, or its owner is gone.
    pub owner: Option<User>,
}

/// A key, and the user whose it is, where it is somebody's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnedAdminKey {
    pub key: AdminKey,
    pub owner: Option<User>,
}

impl<'a> AdminKeys<'a> {
    pub(crate) fn new(store: &'a Store) -> Self {
        Self(store)
    }

    pub async fn insert(self, key: &AdminKey, entry: &AuditEntry) -> Result<(), StoreError> {
        let insert = Entity::insert(to_row(key)?.into_active_model());
        self.0.audited_insert(insert, entry).await
    }

    /// The organisation's keys that are not revoked, each with its owner. Errors: `UnknownAfter`.
    pub async fn list(
        self,
        organization: &OrganizationId,
        page: &PageRequest,
    ) -> Result<Page<OwnedAdminKey>, StoreError> {
        let page = self
            .0
            .page(live(organization), page, Column::CreatedAt, Column::Id);
        let page = page.await?;
        let ids = page
            .items
            .iter()
            .filter_map(|row| row.owner_user_id.as_deref());
        let users = user::Entity::find().filter(user::Column::Id.is_in(ids));
        let users = self.0.all(users).await?;
        page.try_map(|row| {
            let owner = users
                .iter()
                .find(|user| Some(&user.id) == row.owner_user_id.as_ref());
            let owner = owner.cloned().map(users::to_domain).transpose()?;
            Ok(OwnedAdminKey {
                key: to_domain(row)?,
                owner,
            })
        })
    }

    /// A key of the organisation that is not revoked.
    pub async fn find(
        self,
        organization: &OrganizationId,
        id: &KeyId,
    ) -> Result<Option<OwnedAdminKey>, StoreError> {
        let select = live(organization).filter(Column::Id.eq(id.as_str()));
        let Some(row) = self.0.one(select).await? else {
            return Ok(None);
        };
        let key = to_domain(row)?;
        let owner = self.owner(&key).await?;
        Ok(Some(OwnedAdminKey { key, owner }))
    }

    /// False: the organisation has no such key that still opens.
    pub async fn revoke(self, id: &KeyId, entry: &AuditEntry) -> Result<bool, StoreError> {
        let update = Entity::update_many()
            .col_expr(Column::RevokedAt, entry.effective_at.0.into())
            .filter(Column::OrganizationId.eq(entry.organization_id.as_str()))
            .filter(Column::Id.eq(id.as_str()))
            .filter(Column::RevokedAt.is_null());
        self.0.audited_update(update, entry).await
    }

    async fn owner(self, key: &AdminKey) -> Result<Option<User>, StoreError> {
        let Some(id) = &key.owner else {
            return Ok(None);
        };
        let user = self.0.one(user::Entity::find_by_id(id.as_str())).await?;
        user.map(users::to_domain).transpose()
    }

    /// A revoked key is not found.
    pub async fn find_by_hmac(self, hmac: &str) -> Result<Option<FoundAdminKey>, StoreError> {
        let select = Entity::find()
            .filter(Column::Hmac.eq(hmac))
            .filter(Column::RevokedAt.is_null())
            .find_also_related(organization::Entity);
        let row = self
            .0
            .bounded(async { Ok::<_, StoreError>(select.one(&self.0.read).await?) })
            .await?;
        let Some((key, Some(organization))) = row else {
            return Ok(None);
        };
        let key = to_domain(key)?;
        Ok(Some(FoundAdminKey {
            owner: self.owner(&key).await?,
            key,
            organization: projects::organization_to_domain(organization)?,
        }))
    }

    /// Notes the last use. The caller does so rarely: it is a write.
    pub async fn touch(self, id: &KeyId, now: Timestamp) -> Result<(), StoreError> {
        let update = Entity::update_many()
            .col_expr(Column::LastUsedAt, now.0.into())
            .filter(Column::Id.eq(id.as_str()));
        self.0.update(update).await.map(|_| ())
    }
}

fn live(organization: &OrganizationId) -> Select<Entity> {
    Entity::find()
        .filter(Column::OrganizationId.eq(organization.as_str()))
        .filter(Column::RevokedAt.is_null())
}

fn to_row(key: &AdminKey) -> Result<Model, StoreError> {
    Ok(Model {
        id: key.id.to_string(),
        organization_id: key.organization_id.to_string(),
        name: text("name", &key.name)?,
        hmac: key.hmac.clone(),
        redacted: text("redacted", &key.redacted)?,
        owner_user_id: key.owner.as_ref().map(ToString::to_string),
        created_at: key.created_at.0,
        expires_at: optional(key.expires_at),
        last_used_at: optional(key.last_used_at),
        revoked_at: optional(key.revoked_at),
    })
}

fn to_domain(row: Model) -> Result<AdminKey, StoreError> {
    Ok(AdminKey {
        id: KeyId::parse(&row.id)?,
        organization_id: OrganizationId::parse(&row.organization_id)?,
        name: row.name,
        hmac: row.hmac,
        redacted: row.redacted,
        owner: row
            .owner_user_id
            .as_deref()
            .map(UserId::parse)
            .transpose()?,
        created_at: Timestamp(row.created_at),
        expires_at: row.expires_at.map(Timestamp),
        last_used_at: row.last_used_at.map(Timestamp),
        revoked_at: row.revoked_at.map(Timestamp),
    })
}
