//! Organisations and the projects they hold.

use domain::audit::AuditEntry;
use domain::id::{Entropy, OrganizationId, ProjectId};
use domain::model_permissions::ModelPermissions;
use domain::page::{Page, PageRequest};
use domain::project::{Caps, Organization, Project};
use domain::time::Timestamp;
use sea_orm::sea_query::{LockType, OnConflict};
use sea_orm::{
    ColumnTrait, DatabaseTransaction, EntityTrait, Insert, IntoActiveModel, QueryFilter,
    QueryOrder, QuerySelect, Select, UpdateMany,
};

use crate::connect::Store;
use crate::convert::{from_json, int, json, optional, text, unsigned};
use crate::entity::{organization, project};
use crate::error::StoreError;

/// Slug of the organisation every installation starts with.
pub const DEFAULT_ORGANIZATION: &str = "luthier";
/// Name of the project every installation starts with.
pub const DEFAULT_PROJECT: &str = "default";

#[derive(Clone, Copy)]
pub struct Projects<'a>(&'a Store);

impl<'a> Projects<'a> {
    pub(crate) fn new(store: &'a Store) -> Self {
        Self(store)
    }

    /// The project every installation starts with, made on the first call. `entropy`: for the ids of an
    /// organisation and a project.
    pub async fn ensure_default(
        self,
        entropy: [Entropy; 2],
        now: Timestamp,
    ) -> Result<Project, StoreError> {
        let made = async {
            let tx = self.0.begin().await?;
            let slug = DEFAULT_ORGANIZATION;
            let row = organization::Model {
                id: OrganizationId::mint(entropy[0]).to_string(),
                name: "default".to_owned(),
                slug: slug.to_owned(),
                created_at: now.0,
                audit_seq: 0,
                audit_hash: String::new(),
            };
            organization::Entity::insert(row.into_active_model())
                .on_conflict(
                    OnConflict::column(organization::Column::Slug)
                        .do_nothing()
                        .to_owned(),
                )
                .exec_without_returning(&tx)
                .await?;
            let organization = organization::Entity::find()
                .filter(organization::Column::Slug.eq(slug))
                .one(&tx)
                .await?
                .ok_or(StoreError::NotFound)?;
            let row = project::Model {
                id: ProjectId::mint(entropy[1]).to_string(),
                organization_id: organization.id.clone(),
                name: DEFAULT_PROJECT.to_owned(),
                created_at: now.0,
                archived_at: None,
                model_permissions: None,
                spend_limit_cents: None,
                max_stored_bytes: None,
                max_unfinished_jobs: None,
                max_running_jobs: None,
            };
            project::Entity::insert(row.into_active_model())
                .on_conflict(OnConflict::new().do_nothing().to_owned())
                .exec_without_returning(&tx)
                .await?;
            tx.commit().await?;
            Ok::<_, StoreError>(OrganizationId::parse(&organization.id)?)
        };
        let organization = self.0.bounded(made).await?;
        self.find_by_name(&organization, DEFAULT_PROJECT)
            .await?
            .ok_or(StoreError::NotFound)
    }

    /// The organisation's project of this name that is not archived.
    pub async fn find_by_name(
        self,
        organization: &OrganizationId,
        name: &str,
    ) -> Result<Option<Project>, StoreError> {
        let select = of(organization)
            .filter(project::Column::Name.eq(name))
            .filter(project::Column::ArchivedAt.is_null());
        self.one(select).await
    }

    pub async fn find(self, id: &ProjectId) -> Result<Option<Project>, StoreError> {
        self.one(project::Entity::find_by_id(id.as_str())).await
    }

    /// Which of these projects are archived.
    pub async fn archived_among(self, ids: &[ProjectId]) -> Result<Vec<ProjectId>, StoreError> {
        let select = project::Entity::find()
            .filter(project::Column::Id.is_in(ids.iter().map(ProjectId::as_str)))
            .filter(project::Column::ArchivedAt.is_not_null());
        let rows = self.0.all(select).await?.into_iter();
        rows.map(|row| Ok(ProjectId::parse(&row.id)?)).collect()
    }

    /// Every project, by name.
    pub async fn list(self) -> Result<Vec<Project>, StoreError> {
        let select = project::Entity::find()
            .find_also_related(organization::Entity)
            .order_by_asc(project::Column::Name);
        let rows = self
            .0
            .bounded(async { Ok::<_, StoreError>(select.all(&self.0.read).await?) })
            .await?;
        rows.into_iter()
            .map(|(row, organization)| to_domain(row, organization))
            .collect()
    }

    /// Errors: `Conflict` when the name is taken or the organisation does not exist.
    pub async fn insert(self, project: &Project) -> Result<(), StoreError> {
        self.0.insert(insertion(project)?).await
    }

    /// As an administrator does it. Errors: `Conflict` when the name is taken.
    pub async fn create(self, project: &Project, entry: &AuditEntry) -> Result<(), StoreError> {
        self.0.audited_insert(insertion(project)?, entry).await
    }

    /// Errors: `UnknownAfter`.
    pub async fn list_in(
        self,
        organization: &OrganizationId,
        which: WhichProjects,
        page: &PageRequest,
    ) -> Result<Page<Project>, StoreError> {
        let of = of(organization);
        let select = match which {
            WhichProjects::All => of,
            WhichProjects::Live => of.filter(project::Column::ArchivedAt.is_null()),
        };
        let page = self.0.page(
            select,
            page,
            project::Column::CreatedAt,
            project::Column::Id,
        );
        let page = page.await?;
        let organization = organization::Entity::find_by_id(organization.as_str());
        let organization = self.0.one(organization).await?;
        page.try_map(|row| to_domain(row, organization.clone()))
    }

    /// A project of the organisation, perhaps an archived one.
    pub async fn find_in(
        self,
        organization: &OrganizationId,
        id: &ProjectId,
    ) -> Result<Option<Project>, StoreError> {
        let select = of(organization).filter(project::Column::Id.eq(id.as_str()));
        self.one(select).await
    }

    /// False: the organisation has no such project that is not archived. Errors: `Conflict` when the name is taken.
    pub async fn modify(
        self,
        id: &ProjectId,
        wanted: &ProjectChange,
        entry: &AuditEntry,
    ) -> Result<bool, StoreError> {
        let mut update = change(id, entry);
        if let Some(name) = &wanted.name {
            update = update.col_expr(project::Column::Name, text("name", name)?.into());
        }
        for (column, cap) in [
            (project::Column::MaxStoredBytes, wanted.stored_bytes),
            (project::Column::MaxUnfinishedJobs, wanted.unfinished_jobs),
            (project::Column::MaxRunningJobs, wanted.running_jobs),
        ] {
            if let Some(cap) = cap {
                update = update.col_expr(column, cap.map(int).transpose()?.into());
            }
        }
        self.0.audited_update(update, entry).await
    }

    /// US cents in a calendar month; `None`: no limit. False: the organisation has no such project that is not archived.
    pub async fn set_spend_limit(
        self,
        id: &ProjectId,
        cents: Option<u64>,
        entry: &AuditEntry,
    ) -> Result<bool, StoreError> {
        let cents = cents.map(int).transpose()?;
        let update = change(id, entry).col_expr(project::Column::SpendLimitCents, cents.into());
        self.0.audited_update(update, entry).await
    }

    /// Closes the project for good. False: the organisation has no such project that is not archived.
    pub async fn archive(self, id: &ProjectId, entry: &AuditEntry) -> Result<bool, StoreError> {
        let now = entry.effective_at.0;
        let update = change(id, entry).col_expr(project::Column::ArchivedAt, now.into());
        self.0.audited_update(update, entry).await
    }

    /// `None`: the project may name every model. False: the organisation has no such project that is not archived.
    pub async fn set_model_permissions(
        self,
        id: &ProjectId,
        permissions: Option<&ModelPermissions>,
        entry: &AuditEntry,
    ) -> Result<bool, StoreError> {
        let value = permissions.map(json);
        let column = project::Column::ModelPermissions;
        let update = change(id, entry).col_expr(column, value.into());
        self.0.audited_update(update, entry).await
    }

    /// Every organisation, by slug.
    pub async fn list_organizations(self) -> Result<Vec<Organization>, StoreError> {
        let select = organization::Entity::find().order_by_asc(organization::Column::Slug);
        let rows = self.0.all(select).await?;
        rows.into_iter().map(organization_to_domain).collect()
    }

    pub async fn find_organization(self, slug: &str) -> Result<Option<Organization>, StoreError> {
        let select = organization::Entity::find().filter(organization::Column::Slug.eq(slug));
        let row = self.0.one(select).await?;
        row.map(organization_to_domain).transpose()
    }

    /// Errors: `Conflict` when the slug is taken.
    pub async fn insert_organization(self, organization: &Organization) -> Result<(), StoreError> {
        let row = organization::Model {
            id: organization.id.to_string(),
            name: text("name", &organization.name)?,
            slug: text("slug", &organization.slug)?,
            created_at: organization.created_at.0,
            audit_seq: 0,
            audit_hash: String::new(),
        };
        let insert = organization::Entity::insert(row.into_active_model());
        self.0.insert(insert).await
    }

    async fn one(self, select: Select<project::Entity>) -> Result<Option<Project>, StoreError> {
        let select = select.find_also_related(organization::Entity);
        let row = self
            .0
            .bounded(async { Ok::<_, StoreError>(select.one(&self.0.read).await?) })
            .await?;
        row.map(|(row, organization)| to_domain(row, organization))
            .transpose()
    }
}

/// What of a project becomes what; `None` leaves it as it is, and of a cap `Some(None)` is the installation's.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProjectChange {
    pub name: Option<String>,
    pub stored_bytes: Option<Option<u64>>,
    pub unfinished_jobs: Option<Option<u64>>,
    pub running_jobs: Option<Option<u64>>,
}

impl ProjectChange {
    /// Nothing is asked for.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The project afterwards.
    pub fn of(self, project: Project) -> Project {
        let caps = project.caps;
        Project {
            name: self.name.unwrap_or(project.name),
            caps: Caps {
                stored_bytes: self.stored_bytes.unwrap_or(caps.stored_bytes),
                unfinished_jobs: self.unfinished_jobs.unwrap_or(caps.unfinished_jobs),
                running_jobs: self.running_jobs.unwrap_or(caps.running_jobs),
                ..caps
            },
            ..project
        }
    }
}

/// Which projects of an organisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhichProjects {
    All,
    /// Those that are not archived.
    Live,
}

/// Holds the project's row until the transaction ends, so that of what it may have two requests cannot both take the last.
/// Rows that only refer to it do not wait for that. Errors: `NotFound`.
pub(crate) async fn hold(tx: &DatabaseTransaction, id: &ProjectId) -> Result<(), StoreError> {
    let row = project::Entity::find_by_id(id.as_str()).lock(LockType::NoKeyUpdate);
    row.one(tx).await?.map(drop).ok_or(StoreError::NotFound)
}

fn of(organization: &OrganizationId) -> Select<project::Entity> {
    project::Entity::find().filter(project::Column::OrganizationId.eq(organization.as_str()))
}

/// A change of a project that is not archived, in the organisation of `entry`.
fn change(id: &ProjectId, entry: &AuditEntry) -> UpdateMany<project::Entity> {
    project::Entity::update_many()
        .filter(project::Column::OrganizationId.eq(entry.organization_id.as_str()))
        .filter(project::Column::Id.eq(id.as_str()))
        .filter(project::Column::ArchivedAt.is_null())
}

fn insertion(project: &Project) -> Result<Insert<project::ActiveModel>, StoreError> {
    let caps = &project.caps;
    let row = project::Model {
        id: project.id.to_string(),
        organization_id: project.organization_id.to_string(),
        name: text("name", &project.name)?,
        created_at: project.created_at.0,
        archived_at: optional(project.archived_at),
        model_permissions: project.model_permissions.as_ref().map(json),
        spend_limit_cents: caps.spend_limit_cents.map(int).transpose()?,
        max_stored_bytes: caps.stored_bytes.map(int).transpose()?,
        max_unfinished_jobs: caps.unfinished_jobs.map(int).transpose()?,
        max_running_jobs: caps.running_jobs.map(int).transpose()?,
    };
    Ok(project::Entity::insert(row.into_active_model()))
}

pub(crate) fn to_domain(
    row: project::Model,
    organization: Option<organization::Model>,
) -> Result<Project, StoreError> {
    let organization = organization
        .ok_or_else(|| StoreError::Corrupt(format!("project {} has no organisation", row.id)))?;
    Ok(Project {
        id: ProjectId::parse(&row.id)?,
        organization_id: OrganizationId::parse(&row.organization_id)?,
        organization_slug: organization.slug,
        name: row.name,
        created_at: Timestamp(row.created_at),
        archived_at: row.archived_at.map(Timestamp),
        model_permissions: match row.model_permissions {
            None => None,
            Some(policy) => Some(from_json("model_permissions", &policy)?),
        },
        caps: Caps {
            spend_limit_cents: row.spend_limit_cents.map(unsigned).transpose()?,
            stored_bytes: row.max_stored_bytes.map(unsigned).transpose()?,
            unfinished_jobs: row.max_unfinished_jobs.map(unsigned).transpose()?,
            running_jobs: row.max_running_jobs.map(unsigned).transpose()?,
        },
    })
}

pub(crate) fn organization_to_domain(row: organization::Model) -> Result<Organization, StoreError> {
    Ok(Organization {
        id: OrganizationId::parse(&row.id)?,
        name: row.name,
        slug: row.slug,
        created_at: Timestamp(row.created_at),
    })
}
