//! Other names for models: of a project, and of the operator for every project.

use domain::id::ProjectId;
use domain::model_alias::{MAX_ALIASES, ModelAlias};
use domain::time::Timestamp;
use sea_orm::{ColumnTrait, EntityTrait, IntoActiveModel, PaginatorTrait, QueryFilter, QueryOrder};

use crate::connect::Store;
use crate::convert::text;
use crate::entity::model_alias::{Column, Entity, Model};
use crate::error::StoreError;
use crate::projects;

/// The scope of the operator's; no project's id is spelled so.
const INSTALLATION: &str = "installation";

#[derive(Clone, Copy)]
pub struct ModelAliases<'a>(&'a Store);

impl<'a> ModelAliases<'a> {
    pub(crate) fn new(store: &'a Store) -> Self {
        Self(store)
    }

    /// False: the project has [`MAX_ALIASES`] already; the operator may have any number.
    /// Errors: `Conflict` when the project, or the operator, has one of this name.
    pub async fn insert(self, alias: &ModelAlias) -> Result<bool, StoreError> {
        let row = Model {
            scope: scope(alias.project_id.as_ref()).to_owned(),
            name: text("name", &alias.name)?,
            model: text("model", &alias.model)?,
            created_at: alias.created_at.0,
        };
        let insert = Entity::insert(row.into_active_model());
        let Some(project) = &alias.project_id else {
            return self.0.insert(insert).await.map(|()| true);
        };
        let store = self.0.of(project);
        let own = Entity::find().filter(Column::Scope.eq(project.as_str()));
        let work = async {
            let tx = store.begin().await?;
            projects::hold(&tx, project).await?;
            if own.count(&tx).await? >= MAX_ALIASES {
                return Ok(false);
            }
            insert.exec_without_returning(&tx).await?;
            tx.commit().await?;
            Ok::<_, StoreError>(true)
        };
        store.bounded(work).await
    }

    /// The project's own before the operator's.
    pub async fn find(
        self,
        project: &ProjectId,
        name: &str,
    ) -> Result<Option<ModelAlias>, StoreError> {
        if name.contains('\0') {
            return Ok(None);
        }
        let select = Entity::find()
            .filter(Column::Scope.is_in([project.as_str(), INSTALLATION]))
            .filter(Column::Name.eq(name));
        let mut found = self.0.of(project).all(select).await?;
        found.sort_by_key(|row| row.scope == INSTALLATION);
        found.into_iter().next().map(to_domain).transpose()
    }

    /// By name; of two of the same name the project's own.
    pub async fn list(self, project: &ProjectId) -> Result<Vec<ModelAlias>, StoreError> {
        let store = self.0.of(project);
        let own = of(&store, project.as_str()).await?;
        let operators = of(&store, INSTALLATION).await?;
        let is_hidden = |alias: &ModelAlias| own.iter().any(|o| o.name == alias.name);
        let mut all: Vec<ModelAlias> = operators.into_iter().filter(|a| !is_hidden(a)).collect();
        all.extend(own);
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    /// False: the project has none of its own of this name.
    pub async fn delete(self, project: &ProjectId, name: &str) -> Result<bool, StoreError> {
        drop_one(&self.0.of(project), project.as_str(), name).await
    }

    /// The operator's, by name.
    pub async fn operators(self) -> Result<Vec<ModelAlias>, StoreError> {
        of(self.0, INSTALLATION).await
    }

    /// False: the operator has none of this name.
    pub async fn delete_operators(self, name: &str) -> Result<bool, StoreError> {
        drop_one(self.0, INSTALLATION, name).await
    }
}

async fn of(store: &Store, scope: &str) -> Result<Vec<ModelAlias>, StoreError> {
    let select = Entity::find()
        .filter(Column::Scope.eq(scope))
        .order_by_asc(Column::Name);
    let rows = store.all(select).await?;
    rows.into_iter().map(to_domain).collect()
}

async fn drop_one(store: &Store, scope: &str, name: &str) -> Result<bool, StoreError> {
    if name.contains('\0') {
        return Ok(false);
    }
    let delete = Entity::delete_many()
        .filter(Column::Scope.eq(scope))
        .filter(Column::Name.eq(name));
    Ok(store.delete(delete).await? == 1)
}

fn scope(project: Option<&ProjectId>) -> &str {
    project.map_or(INSTALLATION, ProjectId::as_str)
}

fn to_domain(row: Model) -> Result<ModelAlias, StoreError> {
    let project_id = match row.scope.as_str() {
        INSTALLATION => None,
        id => Some(ProjectId::parse(id)?),
    };
    Ok(ModelAlias {
        name: row.name,
        project_id,
        model: row.model,
        created_at: Timestamp(row.created_at),
    })
}
