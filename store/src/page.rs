//! Cursor pages over rows ordered by (created_at, id): each row once, whatever is inserted meanwhile.

use domain::page::{Order, Page, PageRequest};
use sea_orm::sea_query::{Condition, ExprTrait, SimpleExpr};
use sea_orm::{ColumnTrait, EntityTrait, ModelTrait, QueryFilter, QueryOrder, QuerySelect, Select};

use crate::connect::Store;
use crate::error::StoreError;

impl Store {
    /// One page of `scope`, which also says what a cursor may name. Errors: `UnknownAfter`.
    pub(crate) async fn page<E>(
        &self,
        scope: Select<E>,
        request: &PageRequest,
        created_at: E::Column,
        id: E::Column,
    ) -> Result<Page<E::Model>, StoreError>
    where
        E: EntityTrait,
        E::Model: Send + Sync,
    {
        let after = match &request.after {
            None => None,
            Some(after) => {
                let named = scope.clone().filter(id.eq(after.replace('\0', "")));
                let unknown = || StoreError::UnknownAfter(after.clone());
                let row = self.one(named).await?.ok_or_else(unknown)?;
                Some(Cursor {
                    created_at: row
                        .get(created_at)
                        .expect("an integer column — a bug in the entity"),
                    id: after.clone(),
                })
            }
        };
        let rows = self
            .all(paged(scope, request, after, created_at, id))
            .await?;
        Ok(Page::from_overfetch(rows, request.limit))
    }
}

/// The place of the last item seen.
pub(crate) struct Cursor {
    pub created_at: i64,
    pub id: String,
}

/// Orders, cuts and limits a list. Fetches one row more than asked, to tell whether more follow.
pub(crate) fn paged<E: EntityTrait>(
    select: Select<E>,
    request: &PageRequest,
    after: Option<Cursor>,
    created_at: impl ColumnTrait,
    id: impl ColumnTrait,
) -> Select<E> {
    let (cut, order) = match request.order {
        Order::NewestFirst => (
            after.map(|c| earlier(c, created_at, id)),
            sea_orm::Order::Desc,
        ),
        Order::OldestFirst => (after.map(|c| later(c, created_at, id)), sea_orm::Order::Asc),
    };
    let select = match cut {
        Some(cut) => select.filter(cut),
        None => select,
    };
    select
        .order_by(created_at, order.clone())
        .order_by(id, order)
        .limit(request.limit.saturating_add(1))
}

fn earlier(c: Cursor, created_at: impl ColumnTrait, id: impl ColumnTrait) -> Condition {
    behind(
        created_at.lte(c.created_at),
        created_at.lt(c.created_at).or(id.lt(c.id)),
    )
}

fn later(c: Cursor, created_at: impl ColumnTrait, id: impl ColumnTrait) -> Condition {
    behind(
        created_at.gte(c.created_at),
        created_at.gt(c.created_at).or(id.gt(c.id)),
    )
}

/// By the instant alone first: that is a range of the index, which a choice of two conditions would not be.
fn behind(not_before: SimpleExpr, and_not_itself: SimpleExpr) -> Condition {
    Condition::all().add(not_before).add(and_not_itself)
}
