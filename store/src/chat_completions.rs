//! Chat completions that clients asked to keep, with the conversations they answer.

use domain::chat_completion::{ChatCompletion, StoredChatCompletion};
use domain::id::{ChatCompletionId, ProjectId};
use domain::page::{Page, PageRequest};
use domain::time::Timestamp;
use sea_orm::sea_query::{Expr, ExprTrait, Query, SelectStatement};
use sea_orm::{
    ColumnTrait, DatabaseTransaction, DbErr, EntityTrait, IntoActiveModel, Iterable, QueryFilter,
    QuerySelect, Select,
};
use serde_json::Value;

use crate::connect::Store;
use crate::convert::{from_json, json, text};
use crate::entity::chat_completion::{Column, Entity, Model};
use crate::entity::chat_completion_metadata as metadata;
use crate::error::StoreError;
use crate::metadata::{MetadataFilter, with_metadata};
use crate::page::{Cursor, paged};

/// Which completions a list shows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ChatCompletionFilter {
    /// The model's own name.
    pub model: Option<String>,
    pub metadata: MetadataFilter,
}

#[derive(Clone, Copy)]
pub struct ChatCompletions<'a>(&'a Store);

impl<'a> ChatCompletions<'a> {
    pub(crate) fn new(store: &'a Store) -> Self {
        Self(store)
    }

    /// Keeps a completion and the messages it answers. Errors: `Invalid` for metadata that cannot be kept.
    pub async fn insert(
        self,
        stored: &StoredChatCompletion,
        messages: &[Value],
    ) -> Result<(), StoreError> {
        let store = self.0.of(&stored.project_id);
        let completion = &stored.completion;
        let row = Model {
            id: completion.id.to_string(),
            project_id: stored.project_id.to_string(),
            model: text("model", &completion.model)?,
            messages: json(&messages),
            choices: json(&completion.choices),
            usage: json(&completion.usage),
            metadata: stored.metadata.as_ref().map(json),
            created_at: completion.created_at.0,
        };
        let pairs = pair_rows(&completion.id, stored.metadata.as_deref())?;
        let insert = Entity::insert(row.into_active_model());
        let work = async {
            let tx = store.begin().await?;
            insert.exec_without_returning(&tx).await?;
            insert_pairs(&tx, pairs).await?;
            Ok(tx.commit().await?)
        };
        store.bounded(work).await
    }

    pub async fn find(
        self,
        project: &ProjectId,
        id: &ChatCompletionId,
    ) -> Result<Option<StoredChatCompletion>, StoreError> {
        let row = self
            .0
            .of(project)
            .one(without_messages(one(project, id)))
            .await?;
        row.map(to_domain).transpose()
    }

    /// The messages that a completion answers, in order.
    pub async fn messages(
        self,
        project: &ProjectId,
        id: &ChatCompletionId,
    ) -> Result<Option<Vec<Value>>, StoreError> {
        let row = self.0.of(project).one(one(project, id)).await?;
        row.map(|row| from_json("chat_completions.messages", &row.messages))
            .transpose()
    }

    /// Errors: `UnknownAfter`.
    pub async fn list(
        self,
        project: &ProjectId,
        filter: &ChatCompletionFilter,
        page: &PageRequest,
    ) -> Result<Page<StoredChatCompletion>, StoreError> {
        let after = match &page.after {
            None => None,
            Some(after) => Some(self.cursor(project, after).await?),
        };
        let mut select = of(project);
        if let Some(model) = &filter.model {
            select = select.filter(Column::Model.eq(text("model", model)?));
        }
        let (key, value) = (metadata::Column::Key, metadata::Column::Value);
        let select = with_metadata(select, &filter.metadata, pairs, key, value)?;
        let select = paged(select, page, after, Column::CreatedAt, Column::Id);
        let rows = self.0.of(project).all(without_messages(select)).await?;
        let stored = rows.into_iter().map(to_domain).collect::<Result<_, _>>()?;
        Ok(Page::from_overfetch(stored, page.limit))
    }

    async fn cursor(self, project: &ProjectId, after: &str) -> Result<Cursor, StoreError> {
        let unknown = || StoreError::UnknownAfter(after.to_owned());
        let id = ChatCompletionId::parse(after).map_err(|_| unknown())?;
        let select = without_messages(one(project, &id));
        let row = self.0.of(project).one(select).await?.ok_or_else(unknown)?;
        Ok(Cursor {
            created_at: row.created_at,
            id: row.id,
        })
    }

    /// Puts other metadata in place of what there is. `None`: the project has no such completion.
    pub async fn set_metadata(
        self,
        project: &ProjectId,
        id: &ChatCompletionId,
        metadata: Option<Vec<(String, String)>>,
    ) -> Result<Option<StoredChatCompletion>, StoreError> {
        let store = self.0.of(project);
        let rows = pair_rows(id, metadata.as_deref())?;
        let select = without_messages(one(project, id)).lock_exclusive();
        let update = Entity::update_many()
            .col_expr(Column::Metadata, metadata.as_ref().map(json).into())
            .filter(Column::Id.eq(id.as_str()));
        let work = async {
            let tx = store.begin().await?;
            let Some(row) = select.one(&tx).await? else {
                return Ok(None);
            };
            update.exec(&tx).await?;
            delete_pairs(&tx, Query::select().expr(Expr::val(id.as_str())).take()).await?;
            insert_pairs(&tx, rows).await?;
            tx.commit().await?;
            Ok::<_, StoreError>(Some(row))
        };
        let Some(row) = store.bounded(work).await? else {
            return Ok(None);
        };
        let stored = to_domain(row)?;
        Ok(Some(StoredChatCompletion { metadata, ..stored }))
    }

    /// False: the project has no such completion.
    pub async fn delete(
        self,
        project: &ProjectId,
        id: &ChatCompletionId,
    ) -> Result<bool, StoreError> {
        let which = Column::ProjectId
            .eq(project.as_str())
            .and(Column::Id.eq(id.as_str()));
        Ok(remove(&self.0.of(project), which).await? == 1)
    }

    /// Forgets what was made before `at`; how many.
    pub async fn remove_older(self, at: Timestamp) -> Result<u64, StoreError> {
        remove(self.0, Column::CreatedAt.lt(at.0)).await
    }
}

async fn remove(store: &Store, which: Expr) -> Result<u64, StoreError> {
    let mut ids = Query::select();
    ids.column(Column::Id).from(Entity).and_where(which.clone());
    let delete = Entity::delete_many().filter(which);
    let work = async {
        let tx = store.begin().await?;
        delete_pairs(&tx, ids).await?;
        let deleted = delete.exec(&tx).await?;
        tx.commit().await?;
        Ok(deleted.rows_affected)
    };
    store.bounded(work).await
}

fn of(project: &ProjectId) -> Select<Entity> {
    Entity::find().filter(Column::ProjectId.eq(project.as_str()))
}

fn one(project: &ProjectId, id: &ChatCompletionId) -> Select<Entity> {
    of(project).filter(Column::Id.eq(id.as_str()))
}

/// A conversation can be long, and a page has many: they stay where they are.
fn without_messages(select: Select<Entity>) -> Select<Entity> {
    let others = Column::iter().filter(|column| !matches!(column, Column::Messages));
    select
        .select_only()
        .columns(others)
        .column_as(Expr::val("[]"), "messages")
}

/// The pairs of the completion at hand.
fn pairs() -> SelectStatement {
    let completion = Expr::col((metadata::Entity, metadata::Column::CompletionId));
    let mut pairs = Query::select();
    pairs
        .expr(Expr::val(1))
        .from(metadata::Entity)
        .and_where(completion.eq(Expr::col((Entity, Column::Id))));
    pairs
}

fn pair_rows(
    id: &ChatCompletionId,
    pairs: Option<&[(String, String)]>,
) -> Result<Vec<metadata::ActiveModel>, StoreError> {
    let row = |(key, value): &(String, String)| {
        let row = metadata::Model {
            completion_id: id.to_string(),
            key: text("metadata", key)?,
            value: text("metadata", value)?,
        };
        Ok(row.into_active_model())
    };
    pairs.into_iter().flatten().map(row).collect()
}

async fn insert_pairs(
    tx: &DatabaseTransaction,
    rows: Vec<metadata::ActiveModel>,
) -> Result<(), DbErr> {
    if rows.is_empty() {
        return Ok(());
    }
    let insert = metadata::Entity::insert_many(rows);
    insert.exec_without_returning(tx).await.map(drop)
}

async fn delete_pairs(tx: &DatabaseTransaction, ids: SelectStatement) -> Result<(), DbErr> {
    let delete =
        metadata::Entity::delete_many().filter(metadata::Column::CompletionId.in_subquery(ids));
    delete.exec(tx).await.map(drop)
}

fn to_domain(row: Model) -> Result<StoredChatCompletion, StoreError> {
    let metadata = row.metadata.as_deref();
    Ok(StoredChatCompletion {
        project_id: ProjectId::parse(&row.project_id)?,
        completion: ChatCompletion {
            id: ChatCompletionId::parse(&row.id)?,
            created_at: Timestamp(row.created_at),
            model: row.model,
            choices: from_json("chat_completions.choices", &row.choices)?,
            usage: from_json("chat_completions.usage", &row.usage)?,
        },
        metadata: metadata
            .map(|text| from_json("chat_completions.metadata", text))
            .transpose()?,
    })
}
