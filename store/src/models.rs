//! Tuned models. Made by the transaction that ends their job, or around an adapter that a client brought.

use domain::id::{JobId, ProjectId};
use domain::model::{AdapterRef, TunedModel};
use domain::time::Timestamp;
use sea_orm::sea_query::ExprTrait;
use sea_orm::{ColumnTrait, EntityTrait, IntoActiveModel, QueryFilter, QueryOrder};

use crate::checkpoint_permissions;
use crate::connect::Store;
use crate::convert::{code, from_code, int, text, unsigned};
use crate::entity::model::{Column, Entity, Model};
use crate::error::StoreError;
use crate::idempotency::{self, IdempotencyEntry};

#[derive(Clone, Copy)]
pub struct Models<'a>(&'a Store);

impl<'a> Models<'a> {
    pub(crate) fn new(store: &'a Store) -> Self {
        Self(store)
    }

    /// Stores a model around an adapter whose objects are complete, and with it which request made it.
    /// Errors: `Conflict` when the name is already there, `Repeated` when the request made a model before, `KeyReused`.
    pub async fn insert(
        self,
        model: &TunedModel,
        request: Option<&IdempotencyEntry>,
    ) -> Result<(), StoreError> {
        let store = self.0.of(&model.project_id);
        let insert = Entity::insert(to_row(model)?.into_active_model());
        let work = async {
            let (project, name, now) = (&model.project_id, &model.name, model.created_at);
            let tx = idempotency::begin(&store, project, request, name, now).await?;
            insert.exec_without_returning(&tx).await?;
            Ok(tx.commit().await?)
        };
        store.bounded(work).await
    }

    /// Whether any model, deleted or not, has its adapter in this folder of the bucket.
    pub async fn names_adapter(self, object_prefix: &str) -> Result<bool, StoreError> {
        let select = Entity::find().filter(Column::AdapterObjectPrefix.eq(object_prefix));
        Ok(self.0.count(select).await? > 0)
    }

    /// Every model that the project may use, its own and those it was permitted, oldest first.
    pub async fn list(self, project: &ProjectId) -> Result<Vec<TunedModel>, StoreError> {
        let select = usable(project)
            .order_by_asc(Column::CreatedAt)
            .order_by_asc(Column::Name);
        self.0
            .of(project)
            .all(select)
            .await?
            .into_iter()
            .map(to_domain)
            .collect()
    }

    /// A model that the project may use: its own, or one it was permitted.
    pub async fn find(
        self,
        project: &ProjectId,
        name: &str,
    ) -> Result<Option<TunedModel>, StoreError> {
        if name.contains('\0') {
            return Ok(None);
        }
        let row = self
            .0
            .of(project)
            .one(usable(project).filter(Column::Name.eq(name)))
            .await?;
        row.map(to_domain).transpose()
    }

    /// False: the project has no such model. The name is never used again.
    pub async fn delete(
        self,
        project: &ProjectId,
        name: &str,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        if name.contains('\0') {
            return Ok(false);
        }
        let update = Entity::update_many()
            .col_expr(Column::DeletedAt, now.0.into())
            .filter(Column::ProjectId.eq(project.as_str()))
            .filter(Column::Name.eq(name))
            .filter(Column::DeletedAt.is_null());
        Ok(self.0.of(project).update(update).await? == 1)
    }
}

fn usable(project: &ProjectId) -> sea_orm::Select<Entity> {
    let is_own = Column::ProjectId.eq(project.as_str());
    Entity::find()
        .filter(is_own.or(checkpoint_permissions::is_granted(project)))
        .filter(Column::DeletedAt.is_null())
}

pub(crate) fn to_row(model: &TunedModel) -> Result<Model, StoreError> {
    Ok(Model {
        name: text("name", &model.name)?,
        project_id: model.project_id.to_string(),
        job_id: model.job_id.as_ref().map(ToString::to_string),
        base_model: model.base_model.clone(),
        adapter_object_prefix: text("adapter.object_prefix", &model.adapter.object_prefix)?,
        adapter_sha256: text("adapter.sha256", &model.adapter.sha256)?,
        adapter_size_bytes: int(model.adapter.size_bytes)?,
        adapter_frozen_weights: code(&model.adapter.frozen_weights),
        owned_by: model.owned_by.clone(),
        created_at: model.created_at.0,
        deleted_at: None,
    })
}

pub(crate) fn to_domain(row: Model) -> Result<TunedModel, StoreError> {
    Ok(TunedModel {
        name: row.name,
        project_id: ProjectId::parse(&row.project_id)?,
        job_id: row.job_id.as_deref().map(JobId::parse).transpose()?,
        base_model: row.base_model,
        adapter: AdapterRef {
            object_prefix: row.adapter_object_prefix,
            sha256: row.adapter_sha256,
            size_bytes: unsigned(row.adapter_size_bytes)?,
            frozen_weights: from_code("adapter_frozen_weights", &row.adapter_frozen_weights)?,
        },
        owned_by: row.owned_by,
        created_at: Timestamp(row.created_at),
    })
}
