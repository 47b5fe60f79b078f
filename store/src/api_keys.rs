//! API keys of projects, found by the HMAC of their secret.

use domain::api_key::{ApiKey, KeyOwner, OwnerAccess};
use domain::id::{KeyId, ProjectId, ServiceAccountId, UserId};
use domain::project::Project;
use domain::service_account::ServiceAccountRole;
use domain::time::Timestamp;
use sea_orm::{ColumnTrait, EntityTrait, IntoActiveModel, QueryFilter, QueryOrder};

use crate::connect::Store;
use crate::convert::{from_json, json, optional, text};
use crate::entity::{api_key, organization, project, project_user, service_account};
use crate::error::StoreError;
use crate::projects;

#[derive(Clone, Copy)]
pub struct ApiKeys<'a>(&'a Store);

/// A key that is not revoked, with what else decides whether it opens anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundKey {
    pub key: ApiKey,
    /// Perhaps an archived one.
    pub project: Project,
    pub access: OwnerAccess,
}

impl<'a> ApiKeys<'a> {
    pub(crate) fn new(store: &'a Store) -> Self {
        Self(store)
    }

    pub async fn insert(self, key: &ApiKey) -> Result<(), StoreError> {
        let insert = api_key::Entity::insert(to_row(key)?.into_active_model());
        self.0.insert(insert).await
    }

    /// A revoked key is not found.
    pub async fn find_by_hmac(self, hmac: &str) -> Result<Option<FoundKey>, StoreError> {
        let select = api_key::Entity::find()
            .filter(api_key::Column::Hmac.eq(hmac))
            .filter(api_key::Column::RevokedAt.is_null())
            .find_also_related(project::Entity)
            .find_also(project::Entity, organization::Entity);
        let row = self
            .0
            .bounded(async { Ok::<_, StoreError>(select.one(&self.0.read).await?) })
            .await?;
        let Some((key, Some(project), organization)) = row else {
            return Ok(None);
        };
        let key = to_domain(key)?;
        Ok(Some(FoundKey {
            access: self.access(&key).await?,
            key,
            project: projects::to_domain(project, organization)?,
        }))
    }

    /// Whether the key's owner may use the key's project.
    async fn access(self, key: &ApiKey) -> Result<OwnerAccess, StoreError> {
        Ok(match &key.owner {
            KeyOwner::Installation => OwnerAccess::Active,
            KeyOwner::User(user) => {
                let membership = (key.project_id.to_string(), user.to_string());
                let select = project_user::Entity::find_by_id(membership);
                match self.0.one(select).await? {
                    Some(_) => OwnerAccess::Active,
                    None => OwnerAccess::Removed,
                }
            }
            KeyOwner::ServiceAccount(account) => {
                let select = service_account::Entity::find_by_id(account.as_str());
                match self.0.one(select).await? {
                    Some(row) if row.role == ServiceAccountRole::None.as_str() => {
                        OwnerAccess::NoRole
                    }
                    Some(_) => OwnerAccess::Active,
                    None => OwnerAccess::Removed,
                }
            }
        })
    }

    /// Every key of the project, oldest first; revoked ones too.
    pub async fn list(self, project: &ProjectId) -> Result<Vec<ApiKey>, StoreError> {
        let select = api_key::Entity::find()
            .filter(api_key::Column::ProjectId.eq(project.as_str()))
            .order_by_asc(api_key::Column::CreatedAt)
            .order_by_asc(api_key::Column::Id);
        let rows = self.0.all(select).await?;
        rows.into_iter().map(to_domain).collect()
    }

    /// Notes the last use. The caller does so rarely: it is a write.
    pub async fn touch(self, id: &KeyId, now: Timestamp) -> Result<(), StoreError> {
        let update = api_key::Entity::update_many()
            .col_expr(api_key::Column::LastUsedAt, now.0.into())
            .filter(api_key::Column::Id.eq(id.as_str()));
        self.0.update(update).await.map(|_| ())
    }

    /// False: the project has no such key that still opens.
    pub async fn revoke(
        self,
        project: &ProjectId,
        id: &KeyId,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let update = api_key::Entity::update_many()
            .col_expr(api_key::Column::RevokedAt, now.0.into())
            .filter(api_key::Column::ProjectId.eq(project.as_str()))
            .filter(api_key::Column::Id.eq(id.as_str()))
            .filter(api_key::Column::RevokedAt.is_null());
        Ok(self.0.update(update).await? == 1)
    }
}

fn to_row(key: &ApiKey) -> Result<api_key::Model, StoreError> {
    let (user, service_account) = match &key.owner {
        KeyOwner::Installation => (None, None),
        KeyOwner::User(id) => (Some(id.to_string()), None),
        KeyOwner::ServiceAccount(id) => (None, Some(id.to_string())),
    };
    Ok(api_key::Model {
        id: key.id.to_string(),
        project_id: key.project_id.to_string(),
        name: text("name", &key.name)?,
        hmac: key.hmac.clone(),
        redacted: text("redacted", &key.redacted)?,
        created_at: key.created_at.0,
        last_used_at: optional(key.last_used_at),
        revoked_at: optional(key.revoked_at),
        scopes: json(&key.scopes),
        owner_user_id: user,
        owner_service_account_id: service_account,
        expires_at: optional(key.expires_at),
    })
}

fn to_domain(row: api_key::Model) -> Result<ApiKey, StoreError> {
    let owner = match (&row.owner_user_id, &row.owner_service_account_id) {
        (Some(user), _) => KeyOwner::User(UserId::parse(user)?),
        (None, Some(account)) => KeyOwner::ServiceAccount(ServiceAccountId::parse(account)?),
        (None, None) => KeyOwner::Installation,
    };
    Ok(ApiKey {
        id: KeyId::parse(&row.id)?,
        project_id: ProjectId::parse(&row.project_id)?,
        name: row.name,
        hmac: row.hmac,
        redacted: row.redacted,
        scopes: from_json("scopes", &row.scopes)?,
        owner,
        created_at: Timestamp(row.created_at),
        expires_at: row.expires_at.map(Timestamp),
        last_used_at: row.last_used_at.map(Timestamp),
        revoked_at: row.revoked_at.map(Timestamp),
    })
}
