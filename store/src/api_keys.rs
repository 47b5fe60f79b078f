//! API keys, found by the HMAC of their secret.

use domain::api_key::ApiKey;
use domain::id::{KeyId, ProjectId};
use domain::project::Project;
use domain::time::Timestamp;
use sea_orm::{ColumnTrait, EntityTrait, IntoActiveModel, QueryFilter, QueryOrder};

use crate::connect::Store;
use crate::convert::{optional, text};
use crate::entity::{api_key, organization, project};
use crate::error::StoreError;
use crate::projects;

#[derive(Clone, Copy)]
pub struct ApiKeys<'a>(&'a Store);

impl<'a> ApiKeys<'a> {
    pub(crate) fn new(store: &'a Store) -> Self {
        Self(store)
    }

    pub async fn insert(self, key: &ApiKey) -> Result<(), StoreError> {
        let row = api_key::Model {
            id: key.id.to_string(),
            project_id: key.project_id.to_string(),
            name: text("name", &key.name)?,
            hmac: key.hmac.clone(),
            redacted: text("redacted", &key.redacted)?,
            created_at: key.created_at.0,
            last_used_at: optional(key.last_used_at),
            revoked_at: optional(key.revoked_at),
        };
        let insert = api_key::Entity::insert(row.into_active_model());
        self.0.insert(insert).await
    }

    /// The key and what it opens. A revoked key and an archived project open nothing.
    pub async fn find_by_hmac(self, hmac: &str) -> Result<Option<(ApiKey, Project)>, StoreError> {
        let select = api_key::Entity::find()
            .filter(api_key::Column::Hmac.eq(hmac))
            .filter(api_key::Column::RevokedAt.is_null())
            .filter(project::Column::ArchivedAt.is_null())
            .find_also_related(project::Entity)
            .find_also(project::Entity, organization::Entity);
        let row = self
            .0
            .bounded(async { Ok::<_, StoreError>(select.one(&self.0.read).await?) })
            .await?;
        let Some((key, Some(project), organization)) = row else {
            return Ok(None);
        };
        Ok(Some((
            to_domain(key)?,
            projects::to_domain(project, organization)?,
        )))
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

fn to_domain(row: api_key::Model) -> Result<ApiKey, StoreError> {
    Ok(ApiKey {
        id: KeyId::parse(&row.id)?,
        project_id: ProjectId::parse(&row.project_id)?,
        name: row.name,
        hmac: row.hmac,
        redacted: row.redacted,
        created_at: Timestamp(row.created_at),
        last_used_at: row.last_used_at.map(Timestamp),
        revoked_at: row.revoked_at.map(Timestamp),
    })
}
