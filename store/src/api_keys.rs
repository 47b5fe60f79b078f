//! API keys of projects, found by the HMAC of their secret.

use std::collections::HashMap;

use domain::api_key::{ApiKey, KeyOwner, OwnerAccess};
use domain::audit::AuditEntry;
use domain::id::{KeyId, ProjectId, ServiceAccountId, UserId};
use domain::page::{Page, PageRequest};
use domain::project::Project;
use domain::project_user::ProjectRole;
use domain::service_account::{ServiceAccount, ServiceAccountRole};
use domain::time::Timestamp;
use domain::user::User;
use sea_orm::sea_query::{Condition, Expr, ExprTrait, Query};
use sea_orm::{ColumnTrait, EntityTrait, Insert, IntoActiveModel, QueryFilter, Select};

use crate::connect::Store;
use crate::convert::{from_code, from_json, json, optional, text};
use crate::entity::api_key::{ActiveModel, Column, Entity};
use crate::entity::{api_key, organization, project, project_user, service_account, user};
use crate::error::StoreError;
use crate::{projects, service_accounts, users};

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

    pub async fn insert(self, key: &ApiKey, entry: &AuditEntry) -> Result<(), StoreError> {
        self.0.audited_insert(insertion(key)?, entry).await
    }

    /// A revoked key is not found.
    pub async fn find_by_hmac(self, hmac: &str) -> Result<Option<FoundKey>, StoreError> {
        let select = Entity::find()
            .filter(Column::Hmac.eq(hmac))
            .filter(Column::RevokedAt.is_null())
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

    /// The project's keys that are not revoked, each with its owner. Errors: `UnknownAfter`.
    pub async fn list(
        self,
        project: &ProjectId,
        access: AccessFilter,
        page: &PageRequest,
    ) -> Result<Page<OwnedKey>, StoreError> {
        let select = live(project).filter(access.condition());
        let store = self.0.of(project);
        let page = store.page(select, page, Column::CreatedAt, Column::Id);
        let page = page.await?;
        let mut owners = self.owners(project, &page.items).await?;
        page.try_map(|row| {
            let key = to_domain(row)?;
            let owner = owners.remove(&key.id).flatten();
            Ok(OwnedKey { key, owner })
        })
    }

    /// A key of the project that is not revoked.
    pub async fn find(
        self,
        project: &ProjectId,
        id: &KeyId,
    ) -> Result<Option<OwnedKey>, StoreError> {
        let select = live(project).filter(Column::Id.eq(id.as_str()));
        let Some(row) = self.0.of(project).one(select).await? else {
            return Ok(None);
        };
        let mut owners = self.owners(project, std::slice::from_ref(&row)).await?;
        let key = to_domain(row)?;
        let owner = owners.remove(&key.id).flatten();
        Ok(Some(OwnedKey { key, owner }))
    }

    /// Who owns each of these keys of the project.
    async fn owners(
        self,
        project: &ProjectId,
        keys: &[api_key::Model],
    ) -> Result<HashMap<KeyId, Option<KeyOwnerShown>>, StoreError> {
        let store = self.0.of(project);
        let ids = keys.iter().filter_map(|key| key.owner_user_id.as_deref());
        let select = user::Entity::find().filter(user::Column::Id.is_in(ids.clone()));
        let users = store.all(select).await?;
        let select = project_user::Entity::find()
            .filter(project_user::Column::ProjectId.eq(project.as_str()))
            .filter(project_user::Column::UserId.is_in(ids));
        let members = store.all(select).await?;
        let ids = keys
            .iter()
            .filter_map(|key| key.owner_service_account_id.as_deref());
        let select = service_account::Entity::find().filter(service_account::Column::Id.is_in(ids));
        let accounts = store.all(select).await?;
        let owner = |key: &api_key::Model| -> Result<Option<KeyOwnerShown>, StoreError> {
            let user = users
                .iter()
                .find(|row| Some(&row.id) == key.owner_user_id.as_ref());
            if let Some(user) = user {
                let member = members.iter().find(|row| row.user_id == user.id);
                let role = member.map(|row| from_code("role", &row.role)).transpose()?;
                return Ok(Some(KeyOwnerShown::User(
                    users::to_domain(user.clone())?,
                    role,
                )));
            }
            let account = accounts
                .iter()
                .find(|row| Some(&row.id) == key.owner_service_account_id.as_ref());
            let account = account
                .cloned()
                .map(service_accounts::to_domain)
                .transpose()?;
            Ok(account.map(KeyOwnerShown::ServiceAccount))
        };
        let pair = |key: &api_key::Model| Ok((KeyId::parse(&key.id)?, owner(key)?));
        keys.iter().map(pair).collect()
    }

    /// Which of these keys open nothing any more, whatever becomes of their projects. An id of no key is not among them.
    pub async fn closed_among(self, ids: &[KeyId]) -> Result<Vec<KeyId>, StoreError> {
        let is_closed = Condition::any()
            .add(Column::RevokedAt.is_not_null())
            .add(has_access().not());
        let select = Entity::find()
            .filter(Column::Id.is_in(ids.iter().map(KeyId::as_str)))
            .filter(is_closed);
        let rows = self.0.all(select).await?.into_iter();
        rows.map(|row| Ok(KeyId::parse(&row.id)?)).collect()
    }

    /// Notes the last use. The caller does so rarely: it is a write.
    pub async fn touch(self, id: &KeyId, now: Timestamp) -> Result<(), StoreError> {
        let update = Entity::update_many()
            .col_expr(Column::LastUsedAt, now.0.into())
            .filter(Column::Id.eq(id.as_str()));
        self.0.update(update).await.map(|_| ())
    }

    /// False: the project has no such key that still opens.
    pub async fn revoke(
        self,
        project: &ProjectId,
        id: &KeyId,
        entry: &AuditEntry,
    ) -> Result<bool, StoreError> {
        let update = Entity::update_many()
            .col_expr(Column::RevokedAt, entry.effective_at.0.into())
            .filter(Column::ProjectId.eq(project.as_str()))
            .filter(Column::Id.eq(id.as_str()))
            .filter(Column::RevokedAt.is_null());
        self.0.audited_update(update, entry).await
    }
}

fn live(project: &ProjectId) -> Select<Entity> {
    Entity::find()
        .filter(Column::ProjectId.eq(project.as_str()))
        .filter(Column::RevokedAt.is_null())
}

/// A key, and who owns it; `None`: nobody, or somebody who is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnedKey {
    pub key: ApiKey,
    pub owner: Option<KeyOwnerShown>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyOwnerShown {
    /// With its role in the project; `None`: it is not a member any more.
    User(User, Option<ProjectRole>),
    ServiceAccount(ServiceAccount),
}

impl OwnedKey {
    /// Whether the owner may use the project.
    pub fn access(&self) -> OwnerAccess {
        match (&self.owner, &self.key.owner) {
            (None, KeyOwner::Installation) => OwnerAccess::Active,
            (Some(KeyOwnerShown::User(_, Some(_))), _) => OwnerAccess::Active,
            (Some(KeyOwnerShown::ServiceAccount(account)), _) => match account.role {
                ServiceAccountRole::None => OwnerAccess::NoRole,
                _ => OwnerAccess::Active,
            },
            _ => OwnerAccess::Removed,
        }
    }
}

/// Whose keys: by what their owners may do in the project.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessFilter {
    Any,
    Active,
    Inactive,
}

impl AccessFilter {
    fn condition(self) -> Condition {
        match self {
            AccessFilter::Any => Condition::all(),
            AccessFilter::Active => has_access(),
            AccessFilter::Inactive => has_access().not(),
        }
    }
}

/// The owner may use the key's project; the same as [`OwnedKey::access`] says.
fn has_access() -> Condition {
    let key = |column: Column| Expr::col((Entity, column));
    let members = Query::select()
        .expr(Expr::val(1))
        .from(project_user::Entity)
        .and_where(
            project_user::Column::ProjectId
                .into_expr()
                .eq(key(Column::ProjectId)),
        )
        .and_where(
            project_user::Column::UserId
                .into_expr()
                .eq(key(Column::OwnerUserId)),
        )
        .to_owned();
    let accounts = Query::select()
        .expr(Expr::val(1))
        .from(service_account::Entity)
        .and_where(
            service_account::Column::Id
                .into_expr()
                .eq(key(Column::OwnerServiceAccountId)),
        )
        .and_where(service_account::Column::Role.ne(ServiceAccountRole::None.as_str()))
        .to_owned();
    let nobody = Condition::all()
        .add(Column::OwnerUserId.is_null())
        .add(Column::OwnerServiceAccountId.is_null());
    Condition::any()
        .add(nobody)
        .add(Expr::exists(members))
        .add(Expr::exists(accounts))
}

/// The statement that stores a key.
pub(crate) fn insertion(key: &ApiKey) -> Result<Insert<ActiveModel>, StoreError> {
    Ok(Entity::insert(to_row(key)?.into_active_model()))
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
