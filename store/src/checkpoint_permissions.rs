//! Which projects may use another project's tuned models.

use domain::audit::AuditEntry;
use domain::checkpoint_permission::CheckpointPermission;
use domain::id::{CheckpointPermissionId, OrganizationId, ProjectId};
use domain::model::TunedModel;
use domain::page::{Page, PageRequest};
use domain::time::Timestamp;
use sea_orm::sea_query::{Query, SimpleExpr};
use sea_orm::{ColumnTrait, EntityTrait, IntoActiveModel, QueryFilter, Select};

use crate::connect::Store;
use crate::convert::text;
use crate::entity::checkpoint_permission::{Column, Entity, Model};
use crate::entity::{model, project};
use crate::error::StoreError;
use crate::{audit, models};

#[derive(Clone, Copy)]
pub struct CheckpointPermissions<'a>(&'a Store);

impl<'a> CheckpointPermissions<'a> {
    pub(crate) fn new(store: &'a Store) -> Self {
        Self(store)
    }

    /// A tuned model of any project of the organisation.
    pub async fn find_model(
        self,
        organization: &OrganizationId,
        name: &str,
    ) -> Result<Option<TunedModel>, StoreError> {
        let projects = Query::select()
            .column(project::Column::Id)
            .from(project::Entity)
            .and_where(project::Column::OrganizationId.eq(organization.as_str()))
            .to_owned();
        let select = model::Entity::find()
            .filter(model::Column::Name.eq(name.replace('\0', "")))
            .filter(model::Column::DeletedAt.is_null())
            .filter(model::Column::ProjectId.in_subquery(projects));
        self.0.one(select).await?.map(models::to_domain).transpose()
    }

    /// The permissions on a model, of one project or of all. Errors: `UnknownAfter`.
    pub async fn list(
        self,
        model: &str,
        project: Option<&ProjectId>,
        page: &PageRequest,
    ) -> Result<Page<CheckpointPermission>, StoreError> {
        let mut select = on(model);
        if let Some(project) = project {
            select = select.filter(Column::ProjectId.eq(project.as_str()));
        }
        let page = self.0.page(select, page, Column::CreatedAt, Column::Id);
        page.await?.try_map(to_domain)
    }

    pub async fn find(
        self,
        model: &str,
        id: &CheckpointPermissionId,
    ) -> Result<Option<CheckpointPermission>, StoreError> {
        let select = on(model).filter(Column::Id.eq(id.as_str()));
        self.0.one(select).await?.map(to_domain).transpose()
    }

    /// Grants all of them, each with its entry, or none. What is granted already stays as it was and has no entry.
    /// Answers what holds now, in the order asked for.
    pub async fn grant(
        self,
        organization: &OrganizationId,
        wanted: &[(CheckpointPermission, AuditEntry)],
    ) -> Result<Vec<CheckpointPermission>, StoreError> {
        let work = async {
            let tx = audit::begin(self.0, organization).await?;
            let mut granted = Vec::new();
            for (permission, entry) in wanted {
                let project = permission.project_id.as_str();
                let there = on(&permission.model).filter(Column::ProjectId.eq(project));
                if let Some(row) = there.one(&tx).await? {
                    granted.push(to_domain(row)?);
                    continue;
                }
                Entity::insert(to_row(permission)?.into_active_model())
                    .exec_without_returning(&tx)
                    .await?;
                audit::append(&tx, entry).await?;
                granted.push(permission.clone());
            }
            tx.commit().await?;
            Ok(granted)
        };
        self.0.bounded(work).await
    }

    /// False: the model has no such permission.
    pub async fn delete(
        self,
        model: &str,
        id: &CheckpointPermissionId,
        entry: &AuditEntry,
    ) -> Result<bool, StoreError> {
        let delete = Entity::delete_many()
            .filter(Column::Model.eq(model))
            .filter(Column::Id.eq(id.as_str()));
        self.0.audited_delete(delete, entry).await
    }
}

fn on(model: &str) -> Select<Entity> {
    Entity::find().filter(Column::Model.eq(model.replace('\0', "")))
}

/// Whether the project has a permission on the model of the row, as part of a query on models.
pub(crate) fn is_granted(project: &ProjectId) -> SimpleExpr {
    let granted = Query::select()
        .column(Column::Model)
        .from(Entity)
        .and_where(Column::ProjectId.eq(project.as_str()))
        .to_owned();
    model::Column::Name.in_subquery(granted)
}

fn to_row(permission: &CheckpointPermission) -> Result<Model, StoreError> {
    Ok(Model {
        id: permission.id.to_string(),
        model: text("model", &permission.model)?,
        project_id: permission.project_id.to_string(),
        created_at: permission.created_at.0,
    })
}

fn to_domain(row: Model) -> Result<CheckpointPermission, StoreError> {
    Ok(CheckpointPermission {
        id: CheckpointPermissionId::parse(&row.id)?,
        model: row.model,
        project_id: ProjectId::parse(&row.project_id)?,
        created_at: Timestamp(row.created_at),
    })
}
