//! Files. A deleted file is a tombstone until no job and no batch needs its bytes any more.

use domain::file::{File, Purpose};
use domain::id::{FileId, ProjectId};
use domain::job::JobState;
use domain::page::{Page, PageRequest};
use domain::time::Timestamp;
use sea_orm::sea_query::{Condition, Expr, ExprTrait, Query};
use sea_orm::{
    ColumnTrait, ConnectionTrait, DatabaseTransaction, EntityTrait, IntoActiveModel, QueryFilter,
    QueryOrder, QuerySelect,
};

use crate::batches;
use crate::connect::Store;
use crate::convert::{int, optional, text, unsigned};
use crate::entity::{batch, file, job};
use crate::error::StoreError;
use crate::idempotency::{self, IdempotencyEntry};
use crate::page::{Cursor, paged};
use crate::{projects, uploads};

#[derive(Clone, Copy)]
pub struct Files<'a>(&'a Store);

impl<'a> Files<'a> {
    pub(crate) fn new(store: &'a Store) -> Self {
        Self(store)
    }

    /// Stores a file whose object is complete, and with it which request made it.
    /// Errors: `Conflict` when the id is already there, `Repeated` when the request made a file before, `KeyReused`.
    pub async fn insert(
        self,
        file: &File,
        request: Option<&IdempotencyEntry>,
    ) -> Result<(), StoreError> {
        self.insert_within(file, request, u64::MAX).await
    }

    /// As [`Files::insert`], unless the project would store more than `limit` bytes. Errors: `StorageLimit`, too.
    pub async fn insert_within(
        self,
        file: &File,
        request: Option<&IdempotencyEntry>,
        limit: u64,
    ) -> Result<(), StoreError> {
        let store = self.0.of(&file.project_id);
        let insert = file::Entity::insert(to_row(file)?.into_active_model());
        let work = async {
            let (project, id, now) = (&file.project_id, file.id.as_str(), file.created_at);
            let tx = idempotency::begin(&store, project, request, id, now).await?;
            check_room(&tx, project, file.size_bytes, limit, now).await?;
            insert.exec_without_returning(&tx).await?;
            Ok(tx.commit().await?)
        };
        store.bounded(work).await
    }

    pub async fn find(self, project: &ProjectId, id: &FileId) -> Result<Option<File>, StoreError> {
        let select = live(project).filter(file::Column::Id.eq(id.as_str()));
        self.0
            .of(project)
            .one(select)
            .await?
            .map(to_domain)
            .transpose()
    }

    /// Those that have not expired by `now`. Errors: `UnknownAfter`. A cursor may name a file that was deleted meanwhile.
    pub async fn list(
        self,
        project: &ProjectId,
        purpose: Option<Purpose>,
        page: &PageRequest,
        now: Timestamp,
    ) -> Result<Page<File>, StoreError> {
        let after = match &page.after {
            None => None,
            Some(after) => Some(self.cursor(project, after).await?),
        };
        let lasts = Condition::any()
            .add(file::Column::ExpiresAt.is_null())
            .add(file::Column::ExpiresAt.gt(now.0));
        let mut select = live(project).filter(lasts);
        if let Some(purpose) = purpose {
            select = select.filter(file::Column::Purpose.eq(purpose.as_str()));
        }
        let select = paged(
            select,
            page,
            after,
            file::Column::CreatedAt,
            file::Column::Id,
        );
        let rows = self.0.of(project).all(select).await?;
        let files = rows.into_iter().map(to_domain).collect::<Result<_, _>>()?;
        Ok(Page::from_overfetch(files, page.limit))
    }

    async fn cursor(self, project: &ProjectId, after: &str) -> Result<Cursor, StoreError> {
        let unknown = || StoreError::UnknownAfter(after.to_owned());
        let id = FileId::parse(after).map_err(|_| unknown())?;
        let select = file::Entity::find_by_id(id.as_str())
            .filter(file::Column::ProjectId.eq(project.as_str()));
        let row = self.0.of(project).one(select).await?.ok_or_else(unknown)?;
        Ok(Cursor {
            created_at: row.created_at,
            id: row.id,
        })
    }

    /// Makes the file a tombstone and returns what it was. `None`: the project has no such file.
    pub async fn delete(
        self,
        project: &ProjectId,
        id: &FileId,
        now: Timestamp,
    ) -> Result<Option<File>, StoreError> {
        let store = self.0.of(project);
        let select = live(project)
            .filter(file::Column::Id.eq(id.as_str()))
            .lock_exclusive();
        let update = file::Entity::update_many()
            .col_expr(file::Column::DeletedAt, now.0.into())
            .filter(file::Column::Id.eq(id.as_str()));
        let work = async {
            let tx = store.begin().await?;
            let Some(row) = select.one(&tx).await? else {
                return Ok(None);
            };
            update.exec(&tx).await?;
            tx.commit().await?;
            Ok::<_, StoreError>(Some(row))
        };
        store.bounded(work).await?.map(to_domain).transpose()
    }

    /// For those who run a job or a batch: its files, deleted or not.
    pub async fn find_for_job(self, id: &FileId) -> Result<Option<File>, StoreError> {
        self.0
            .one(file::Entity::find_by_id(id.as_str()))
            .await?
            .map(to_domain)
            .transpose()
    }

    /// Makes tombstones of the files whose time is over; how many.
    pub async fn expire(self, now: Timestamp) -> Result<u64, StoreError> {
        let update = file::Entity::update_many()
            .col_expr(file::Column::DeletedAt, now.0.into())
            .filter(file::Column::DeletedAt.is_null())
            .filter(file::Column::ExpiresAt.lte(now.0));
        self.0.update(update).await
    }

    /// Tombstones whose bytes nobody needs: delete the object, then [`Files::purge`] the row.
    pub async fn deleted_unpinned(self, limit: u64) -> Result<Vec<File>, StoreError> {
        let select = file::Entity::find()
            .filter(is_unpinned_tombstone())
            .order_by_asc(file::Column::DeletedAt)
            .limit(limit);
        self.0
            .all(select)
            .await?
            .into_iter()
            .map(to_domain)
            .collect()
    }

    /// Drops the row of a tombstone that nothing live pins. False: there is none.
    pub async fn purge(self, id: &FileId) -> Result<bool, StoreError> {
        let delete = file::Entity::delete_many()
            .filter(file::Column::Id.eq(id.as_str()))
            .filter(is_unpinned_tombstone());
        Ok(self.0.delete(delete).await? == 1)
    }

    /// Bytes of the project's files, and of the parts of its uploads that are pending at `now`.
    pub async fn stored_bytes(
        self,
        project: &ProjectId,
        now: Timestamp,
    ) -> Result<u64, StoreError> {
        let store = self.0.of(project);
        store.bounded(stored_bytes(&store.read, project, now)).await
    }
}

async fn stored_bytes(
    db: &impl ConnectionTrait,
    project: &ProjectId,
    now: Timestamp,
) -> Result<u64, StoreError> {
    // The sum of bigints is numeric on PostgreSQL.
    let sum = Expr::col(file::Column::SizeBytes).sum().cast_as("bigint");
    let select = live(project)
        .select_only()
        .column_as(sum, "total")
        .into_tuple::<Option<i64>>();
    let of_files: u64 = unsigned(select.one(db).await?.flatten().unwrap_or(0))?;
    Ok(of_files + uploads::pending_bytes(db, project, now).await?)
}

/// Errors: `StorageLimit`; nobody else takes of what room is left until the transaction ends.
pub(crate) async fn check_room(
    tx: &DatabaseTransaction,
    project: &ProjectId,
    wanted: u64,
    limit: u64,
    now: Timestamp,
) -> Result<(), StoreError> {
    if limit == u64::MAX {
        return Ok(());
    }
    projects::hold(tx, project).await?;
    let stored = stored_bytes(tx, project, now).await?;
    if stored.saturating_add(wanted) > limit {
        return Err(StoreError::StorageLimit { limit, stored });
    }
    Ok(())
}

fn live(project: &ProjectId) -> sea_orm::Select<file::Entity> {
    file::Entity::find()
        .filter(file::Column::ProjectId.eq(project.as_str()))
        .filter(file::Column::DeletedAt.is_null())
}

fn is_unpinned_tombstone() -> Condition {
    let over = JobState::ALL
        .into_iter()
        .filter(|s| s.is_terminal())
        .map(JobState::as_str);
    let this_file = || Expr::col((file::Entity, file::Column::Id));
    let mut pins = Query::select();
    pins.expr(Expr::val(1)).from(job::Entity).cond_where(
        Condition::all()
            .add(Expr::col((job::Entity, job::Column::State)).is_not_in(over))
            .add(
                Condition::any()
                    .add(Expr::col((job::Entity, job::Column::TrainingFile)).eq(this_file()))
                    .add(Expr::col((job::Entity, job::Column::ValidationFile)).eq(this_file())),
            ),
    );
    let mut inputs = Query::select();
    inputs
        .expr(Expr::val(1))
        .from(batch::Entity)
        .and_where(Expr::col((batch::Entity, batch::Column::Status)).is_in(batches::open()))
        .and_where(Expr::col((batch::Entity, batch::Column::InputFile)).eq(this_file()));
    Condition::all()
        .add(file::Column::DeletedAt.is_not_null())
        .add(Expr::exists(pins).not())
        .add(Expr::exists(inputs).not())
}

pub(crate) fn to_row(file: &File) -> Result<file::Model, StoreError> {
    Ok(file::Model {
        id: file.id.to_string(),
        project_id: file.project_id.to_string(),
        filename: text("filename", &file.filename)?,
        purpose: file.purpose.as_str().to_owned(),
        size_bytes: int(file.size_bytes)?,
        sha256: file.sha256.clone(),
        object_key: text("object_key", &file.object_key)?,
        created_at: file.created_at.0,
        expires_at: optional(file.expires_at),
        deleted_at: None,
    })
}

fn to_domain(row: file::Model) -> Result<File, StoreError> {
    Ok(File {
        id: FileId::parse(&row.id)?,
        project_id: ProjectId::parse(&row.project_id)?,
        filename: row.filename,
        purpose: Purpose::parse(&row.purpose)
            .ok_or_else(|| StoreError::Corrupt(format!("purpose {:?}", row.purpose)))?,
        size_bytes: unsigned(row.size_bytes)?,
        sha256: row.sha256,
        object_key: row.object_key,
        created_at: Timestamp(row.created_at),
        expires_at: row.expires_at.map(Timestamp),
    })
}
