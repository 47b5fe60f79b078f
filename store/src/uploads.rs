//! Uploads and their parts. An upload is over once: by its file, by a cancellation, or by its time.

use domain::file::{File, Purpose};
use domain::id::{FileId, PartId, ProjectId, UploadId};
use domain::time::Timestamp;
use domain::upload::{MAX_PARTS, Upload, UploadPart, UploadState};
use sea_orm::sea_query::{Condition, Expr, ExprTrait, Query};
use sea_orm::{
    ColumnTrait, ConnectionTrait, DatabaseTransaction, EntityTrait, IntoActiveModel, QueryFilter,
    QueryOrder, QuerySelect, Select, UpdateMany,
};

use crate::connect::Store;
use crate::convert::{int, text, unsigned};
use crate::entity::upload::{Column, Entity, Model};
use crate::entity::{file, upload_part};
use crate::error::StoreError;
use crate::files;
use crate::idempotency::{self, IdempotencyEntry};

const PENDING: &str = "pending";
const COMPLETED: &str = "completed";
const CANCELLED: &str = "cancelled";

/// What became of a part that was to be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddedPart {
    Added,
    /// The upload is not there, or over.
    NotPending,
    /// The upload's parts would be too many, or larger together than they may be.
    Full,
}

/// What parts may have together. Bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartLimits {
    /// Those of one upload.
    pub upload_bytes: u64,
    /// With all that the project stores.
    pub stored_bytes: u64,
}

#[derive(Clone, Copy)]
pub struct Uploads<'a>(&'a Store);

impl<'a> Uploads<'a> {
    pub(crate) fn new(store: &'a Store) -> Self {
        Self(store)
    }

    /// Stores a new upload and which request made it. Errors: `Repeated` when the request made one before, `KeyReused`.
    pub async fn insert(
        self,
        upload: &Upload,
        request: &IdempotencyEntry,
    ) -> Result<(), StoreError> {
        let store = self.0.of(&upload.project_id);
        let insert = Entity::insert(to_row(upload)?.into_active_model());
        let work = async {
            let (project, id, now) = (&upload.project_id, upload.id.as_str(), upload.created_at);
            let tx = idempotency::begin(&store, project, Some(request), id, now).await?;
            insert.exec_without_returning(&tx).await?;
            Ok(tx.commit().await?)
        };
        store.bounded(work).await
    }

    pub async fn find(
        self,
        project: &ProjectId,
        id: &UploadId,
    ) -> Result<Option<Upload>, StoreError> {
        let row = self.0.of(project).one(of(project, id)).await?;
        row.map(to_domain).transpose()
    }

    /// Adds a part whose object is complete, unless the upload is over by `part.created_at`, or its parts would have
    /// more bytes together than they may. Errors: `StorageLimit`.
    pub async fn add_part(
        self,
        project: &ProjectId,
        part: &UploadPart,
        limits: PartLimits,
    ) -> Result<AddedPart, StoreError> {
        let store = self.0.of(project);
        let row = part_row(part)?;
        let pending = of(project, &part.upload_id)
            .filter(Column::State.eq(PENDING))
            .filter(Column::ExpiresAt.gt(part.created_at.0))
            .lock_exclusive();
        let work = async {
            let tx = store.begin().await?;
            if pending.one(&tx).await?.is_none() {
                return Ok(AddedPart::NotPending);
            }
            let (n_parts, n_bytes) = sums(&tx, &part.upload_id).await?;
            if n_parts >= MAX_PARTS as u64 || n_bytes + part.size_bytes > limits.upload_bytes {
                return Ok(AddedPart::Full);
            }
            let (wanted, limit) = (part.size_bytes, limits.stored_bytes);
            files::check_room(&tx, project, wanted, limit, part.created_at).await?;
            let insert = upload_part::Entity::insert(row.into_active_model());
            insert.exec_without_returning(&tx).await?;
            tx.commit().await?;
            Ok::<_, StoreError>(AddedPart::Added)
        };
        store.bounded(work).await
    }

    /// Every part of the project's upload, in no order; none where it has no such upload.
    pub async fn parts(
        self,
        project: &ProjectId,
        id: &UploadId,
    ) -> Result<Vec<UploadPart>, StoreError> {
        let mut owned = Query::select();
        owned
            .column(Column::Id)
            .from(Entity)
            .and_where(Column::Id.eq(id.as_str()))
            .and_where(Column::ProjectId.eq(project.as_str()));
        let select =
            upload_part::Entity::find().filter(upload_part::Column::UploadId.in_subquery(owned));
        let rows = self.0.of(project).all(select).await?;
        rows.into_iter().map(part_to_domain).collect()
    }

    /// Makes the upload's file, and remembers which request did. False: the upload is not there, or over.
    /// Errors: `Repeated` when the request did so before, `KeyReused`.
    pub async fn complete(
        self,
        project: &ProjectId,
        id: &UploadId,
        file: &File,
        request: &IdempotencyEntry,
    ) -> Result<bool, StoreError> {
        let store = self.0.of(project);
        let update = pending(project, id)
            .col_expr(Column::State, COMPLETED.into())
            .col_expr(Column::FileId, file.id.as_str().into());
        let insert = file::Entity::insert(files::to_row(file)?.into_active_model());
        let work = async {
            let (object, now) = (id.as_str(), file.created_at);
            let tx = idempotency::begin(&store, project, Some(request), object, now).await?;
            if update.exec(&tx).await?.rows_affected == 0 {
                return Ok(false);
            }
            insert.exec_without_returning(&tx).await?;
            tx.commit().await?;
            Ok::<_, StoreError>(true)
        };
        store.bounded(work).await
    }

    /// False: the upload is not there, or over.
    pub async fn cancel(self, project: &ProjectId, id: &UploadId) -> Result<bool, StoreError> {
        let update = pending(project, id).col_expr(Column::State, CANCELLED.into());
        Ok(self.0.of(project).update(update).await? == 1)
    }

    /// Parts nobody needs: their upload has its file, was cancelled, or expired by then. Delete the object, then
    /// [`Uploads::remove_part`] the row.
    pub async fn leftover_parts(
        self,
        expired_by: Timestamp,
        limit: u64,
    ) -> Result<Vec<UploadPart>, StoreError> {
        let mut over = Query::select();
        over.column(Column::Id).from(Entity).cond_where(
            Condition::any()
                .add(Column::State.ne(PENDING))
                .add(Column::ExpiresAt.lte(expired_by.0)),
        );
        let select = upload_part::Entity::find()
            .filter(upload_part::Column::UploadId.in_subquery(over))
            .order_by_asc(upload_part::Column::Id)
            .limit(limit);
        let rows = self.0.all(select).await?;
        rows.into_iter().map(part_to_domain).collect()
    }

    pub async fn remove_part(self, id: &PartId) -> Result<(), StoreError> {
        let delete =
            upload_part::Entity::delete_many().filter(upload_part::Column::Id.eq(id.as_str()));
        self.0.delete(delete).await.map(drop)
    }

    /// Whether a row names the part, whoever's it is.
    pub async fn has_part(self, id: &PartId) -> Result<bool, StoreError> {
        let found = self.0.one(upload_part::Entity::find_by_id(id.as_str()));
        Ok(found.await?.is_some())
    }

    /// Forgets uploads that expired by then and have no parts left; how many.
    pub async fn purge(self, expired_by: Timestamp) -> Result<u64, StoreError> {
        let mut parts = Query::select();
        parts
            .expr(Expr::val(1))
            .from(upload_part::Entity)
            .and_where(
                Expr::col((upload_part::Entity, upload_part::Column::UploadId))
                    .eq(Expr::col((Entity, Column::Id))),
            );
        let delete = Entity::delete_many()
            .filter(Column::ExpiresAt.lte(expired_by.0))
            .filter(Expr::exists(parts).not());
        self.0.delete(delete).await
    }
}

fn of(project: &ProjectId, id: &UploadId) -> Select<Entity> {
    Entity::find()
        .filter(Column::Id.eq(id.as_str()))
        .filter(Column::ProjectId.eq(project.as_str()))
}

fn pending(project: &ProjectId, id: &UploadId) -> UpdateMany<Entity> {
    Entity::update_many()
        .filter(Column::Id.eq(id.as_str()))
        .filter(Column::ProjectId.eq(project.as_str()))
        .filter(Column::State.eq(PENDING))
}

/// Bytes of the parts of the project's uploads that are pending at `now`.
pub(crate) async fn pending_bytes(
    db: &impl ConnectionTrait,
    project: &ProjectId,
    now: Timestamp,
) -> Result<u64, StoreError> {
    let mut pending = Query::select();
    pending
        .column(Column::Id)
        .from(Entity)
        .and_where(Column::ProjectId.eq(project.as_str()))
        .and_where(Column::State.eq(PENDING))
        .and_where(Column::ExpiresAt.gt(now.0));
    // The sum of bigints is numeric on PostgreSQL.
    let bytes = Expr::col(upload_part::Column::SizeBytes)
        .sum()
        .cast_as("bigint");
    let select = upload_part::Entity::find()
        .filter(upload_part::Column::UploadId.in_subquery(pending))
        .select_only()
        .column_as(bytes, "n_bytes")
        .into_tuple::<Option<i64>>();
    unsigned(select.one(db).await?.flatten().unwrap_or(0))
}

/// The number of an upload's parts, and their bytes.
async fn sums(tx: &DatabaseTransaction, id: &UploadId) -> Result<(u64, u64), StoreError> {
    // The sum of bigints is numeric on PostgreSQL.
    let bytes = Expr::col(upload_part::Column::SizeBytes)
        .sum()
        .cast_as("bigint");
    let select = upload_part::Entity::find()
        .filter(upload_part::Column::UploadId.eq(id.as_str()))
        .select_only()
        .column_as(upload_part::Column::Id.count(), "n_parts")
        .column_as(bytes, "n_bytes")
        .into_tuple::<(i64, Option<i64>)>();
    let (n_parts, n_bytes) = select.one(tx).await?.unwrap_or_default();
    Ok((unsigned(n_parts)?, unsigned(n_bytes.unwrap_or(0))?))
}

fn to_row(upload: &Upload) -> Result<Model, StoreError> {
    let (state, file_id) = match &upload.state {
        UploadState::Pending => (PENDING, None),
        UploadState::Completed(file) => (COMPLETED, Some(file.to_string())),
        UploadState::Cancelled => (CANCELLED, None),
    };
    Ok(Model {
        id: upload.id.to_string(),
        project_id: upload.project_id.to_string(),
        filename: text("filename", &upload.filename)?,
        purpose: upload.purpose.as_str().to_owned(),
        size_bytes: int(upload.size_bytes)?,
        file_lifetime_s: upload.file_lifetime_s,
        created_at: upload.created_at.0,
        expires_at: upload.expires_at.0,
        state: state.to_owned(),
        file_id,
    })
}

fn to_domain(row: Model) -> Result<Upload, StoreError> {
    let corrupt = |what: &str, found: &str| StoreError::Corrupt(format!("{what} {found:?}"));
    let state = match (row.state.as_str(), &row.file_id) {
        (PENDING, _) => UploadState::Pending,
        (COMPLETED, Some(file)) => UploadState::Completed(FileId::parse(file)?),
        (CANCELLED, _) => UploadState::Cancelled,
        (other, _) => return Err(corrupt("state of an upload", other)),
    };
    Ok(Upload {
        id: UploadId::parse(&row.id)?,
        project_id: ProjectId::parse(&row.project_id)?,
        filename: row.filename,
        purpose: Purpose::parse(&row.purpose).ok_or_else(|| corrupt("purpose", &row.purpose))?,
        size_bytes: unsigned(row.size_bytes)?,
        file_lifetime_s: row.file_lifetime_s,
        created_at: Timestamp(row.created_at),
        expires_at: Timestamp(row.expires_at),
        state,
    })
}

fn part_row(part: &UploadPart) -> Result<upload_part::Model, StoreError> {
    Ok(upload_part::Model {
        id: part.id.to_string(),
        upload_id: part.upload_id.to_string(),
        size_bytes: int(part.size_bytes)?,
        object_key: text("object_key", &part.object_key)?,
        created_at: part.created_at.0,
    })
}

fn part_to_domain(row: upload_part::Model) -> Result<UploadPart, StoreError> {
    Ok(UploadPart {
        id: PartId::parse(&row.id)?,
        upload_id: UploadId::parse(&row.upload_id)?,
        size_bytes: unsigned(row.size_bytes)?,
        object_key: row.object_key,
        created_at: Timestamp(row.created_at),
    })
}
