//! Dry runs: ordered by the API, reported on by the scheduler, forgotten after a while.

use domain::dry_run::{DryRun, MAX_UNFINISHED, Report};
use domain::id::{DryRunId, ProjectId};
use domain::time::Timestamp;
use sea_orm::{
    ColumnTrait, EntityTrait, IntoActiveModel, PaginatorTrait, QueryFilter, QueryOrder, QuerySelect,
};

use crate::connect::Store;
use crate::convert::{from_json, json};
use crate::entity::dry_run::{Column, Entity, Model};
use crate::error::StoreError;
use crate::projects;

#[derive(Clone, Copy)]
pub struct DryRuns<'a>(&'a Store);

impl<'a> DryRuns<'a> {
    pub(crate) fn new(store: &'a Store) -> Self {
        Self(store)
    }

    /// False: the project has [`MAX_UNFINISHED`] already that wait for their report.
    pub async fn insert(self, dry_run: &DryRun) -> Result<bool, StoreError> {
        let store = self.0.of(&dry_run.project_id);
        let row = to_row(dry_run);
        let unfinished = Entity::find()
            .filter(Column::ProjectId.eq(dry_run.project_id.as_str()))
            .filter(Column::Report.is_null());
        let work = async {
            let tx = store.begin().await?;
            projects::hold(&tx, &dry_run.project_id).await?;
            if unfinished.count(&tx).await? >= MAX_UNFINISHED {
                return Ok(false);
            }
            let insert = Entity::insert(row.into_active_model());
            insert.exec_without_returning(&tx).await?;
            tx.commit().await?;
            Ok::<_, StoreError>(true)
        };
        store.bounded(work).await
    }

    pub async fn find(
        self,
        project: &ProjectId,
        id: &DryRunId,
    ) -> Result<Option<DryRun>, StoreError> {
        let select = Entity::find_by_id(id.as_str()).filter(Column::ProjectId.eq(project.as_str()));
        self.0
            .of(project)
            .one(select)
            .await?
            .map(to_domain)
            .transpose()
    }

    /// Those that wait for their report, oldest first.
    pub async fn unfinished(self, limit: u64) -> Result<Vec<DryRun>, StoreError> {
        let select = Entity::find()
            .filter(Column::Report.is_null())
            .order_by_asc(Column::CreatedAt)
            .order_by_asc(Column::Id)
            .limit(limit);
        let rows = self.0.all(select).await?;
        rows.into_iter().map(to_domain).collect()
    }

    /// False: it has its report already, or is forgotten.
    pub async fn finish(self, id: &DryRunId, report: &Report) -> Result<bool, StoreError> {
        let update = Entity::update_many()
            .col_expr(Column::Report, json(report).into())
            .filter(Column::Id.eq(id.as_str()))
            .filter(Column::Report.is_null());
        Ok(self.0.update(update).await? == 1)
    }

    /// Forgets those that were ordered by then, with a report or without; how many.
    pub async fn purge(self, ordered_by: Timestamp) -> Result<u64, StoreError> {
        let delete = Entity::delete_many().filter(Column::CreatedAt.lte(ordered_by.0));
        self.0.delete(delete).await
    }
}

fn to_row(dry_run: &DryRun) -> Model {
    Model {
        id: dry_run.id.to_string(),
        project_id: dry_run.project_id.to_string(),
        spec: json(&dry_run.spec),
        created_at: dry_run.created_at.0,
        report: dry_run.report.as_ref().map(json),
    }
}

fn to_domain(row: Model) -> Result<DryRun, StoreError> {
    let report = row.report.map(|text| from_json("dry_runs.report", &text));
    Ok(DryRun {
        id: DryRunId::parse(&row.id)?,
        project_id: ProjectId::parse(&row.project_id)?,
        spec: from_json("dry_runs.spec", &row.spec)?,
        created_at: Timestamp(row.created_at),
        report: report.transpose()?,
    })
}
