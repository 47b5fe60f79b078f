//! Members of projects.

use domain::audit::AuditEntry;
use domain::id::{ProjectId, UserId};
use domain::page::{Page, PageRequest};
use domain::project_user::{ProjectRole, ProjectUser};
use domain::time::Timestamp;
use sea_orm::{ColumnTrait, EntityTrait, IntoActiveModel, QueryFilter, Select};

use crate::connect::Store;
use crate::convert::from_code;
use crate::entity::project_user::{Column, Entity, Model};
use crate::entity::user;
use crate::error::StoreError;
use crate::users;

#[derive(Clone, Copy)]
pub struct ProjectUsers<'a>(&'a Store);

impl<'a> ProjectUsers<'a> {
    pub(crate) fn new(store: &'a Store) -> Self {
        Self(store)
    }

    /// Errors: `UnknownAfter`.
    pub async fn list(
        self,
        project: &ProjectId,
        page: &PageRequest,
    ) -> Result<Page<ProjectUser>, StoreError> {
        let store = self.0.of(project);
        let page = store.page(of(project), page, Column::AddedAt, Column::UserId);
        let page = page.await?;
        let ids = page.items.iter().map(|row| row.user_id.as_str());
        let users = user::Entity::find().filter(user::Column::Id.is_in(ids));
        let users = store.all(users).await?;
        page.try_map(|row| {
            let user = users.iter().find(|user| user.id == row.user_id).cloned();
            to_domain(row, user)
        })
    }

    pub async fn find(
        self,
        project: &ProjectId,
        id: &UserId,
    ) -> Result<Option<ProjectUser>, StoreError> {
        let store = self.0.of(project);
        let select = of(project)
            .filter(Column::UserId.eq(id.as_str()))
            .find_also_related(user::Entity);
        let row = store
            .bounded(async { Ok::<_, StoreError>(select.one(&store.read).await?) })
            .await?;
        row.map(|(row, user)| to_domain(row, user)).transpose()
    }

    /// Errors: `Conflict` when the user is a member already.
    pub async fn insert(self, member: &ProjectUser, entry: &AuditEntry) -> Result<(), StoreError> {
        let row = Model {
            project_id: member.project_id.to_string(),
            user_id: member.user.id.to_string(),
            role: member.role.as_str().to_owned(),
            added_at: member.added_at.0,
        };
        let insert = Entity::insert(row.into_active_model());
        self.0.audited_insert(insert, entry).await
    }

    /// False: the project has no such member.
    pub async fn set_role(
        self,
        project: &ProjectId,
        id: &UserId,
        role: ProjectRole,
        entry: &AuditEntry,
    ) -> Result<bool, StoreError> {
        let update = Entity::update_many()
            .col_expr(Column::Role, role.as_str().into())
            .filter(Column::ProjectId.eq(project.as_str()))
            .filter(Column::UserId.eq(id.as_str()));
        self.0.audited_update(update, entry).await
    }

    /// Its keys of this project open nothing from now on. False: the project has no such member.
    pub async fn delete(
        self,
        project: &ProjectId,
        id: &UserId,
        entry: &AuditEntry,
    ) -> Result<bool, StoreError> {
        let delete = Entity::delete_many()
            .filter(Column::ProjectId.eq(project.as_str()))
            .filter(Column::UserId.eq(id.as_str()));
        self.0.audited_delete(delete, entry).await
    }
}

fn of(project: &ProjectId) -> Select<Entity> {
    Entity::find().filter(Column::ProjectId.eq(project.as_str()))
}

fn to_domain(row: Model, user: Option<user::Model>) -> Result<ProjectUser, StoreError> {
    let lost = || StoreError::Corrupt(format!("member {} is no user", row.user_id));
    Ok(ProjectUser {
        project_id: ProjectId::parse(&row.project_id)?,
        user: users::to_domain(user.ok_or_else(lost)?)?,
        role: from_code("role", &row.role)?,
        added_at: Timestamp(row.added_at),
    })
}
