//! Keys that administer an organisation, found by the HMAC of their secret.

use domain::api_key::AdminKey;
use domain::id::{KeyId, OrganizationId, UserId};
use domain::project::Organization;
use domain::time::Timestamp;
use domain::user::User;
use sea_orm::{ColumnTrait, EntityTrait, IntoActiveModel, QueryFilter};

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

impl<'a> AdminKeys<'a> {
    pub(crate) fn new(store: &'a Store) -> Self {
        Self(store)
    }

    pub async fn insert(self, key: &AdminKey) -> Result<(), StoreError> {
        let insert = Entity::insert(to_row(key)?.into_active_model());
        self.0.insert(insert).await
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
        let owner = match &key.owner {
            None => None,
            Some(id) => self.0.one(user::Entity::find_by_id(id.as_str())).await?,
        };
        Ok(Some(FoundAdminKey {
            key,
            organization: projects::organization_to_domain(organization)?,
            owner: owner.map(users::to_domain).transpose()?,
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
