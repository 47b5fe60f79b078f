//! Who does work that one process suffices for. It saves effort and guards nothing: every write has its own guard.

use domain::time::Timestamp;
use sea_orm::sea_query::{Expr, ExprTrait, OnConflict};
use sea_orm::{ColumnTrait, Condition, EntityTrait, IntoActiveModel, QueryFilter};

use crate::connect::Store;
use crate::convert::unsigned;
use crate::entity::leader::{Column, Entity, Model};
use crate::error::StoreError;

#[derive(Clone, Copy)]
pub struct Leader<'a>(&'a Store);

impl<'a> Leader<'a> {
    pub(crate) fn new(store: &'a Store) -> Self {
        Self(store)
    }

    /// The term when `holder` leads until `now + ttl_s`; `None` when another one does. Renewing keeps the term.
    pub async fn try_acquire(
        self,
        name: &str,
        holder: &str,
        ttl_s: i64,
        now: Timestamp,
    ) -> Result<Option<u64>, StoreError> {
        let free = Model {
            name: name.to_owned(),
            holder: String::new(),
            term: 0,
            until: i64::MIN,
        };
        let until = now.plus_s(ttl_s).0;
        let work = async {
            let tx = self.0.begin().await?;
            Entity::insert(free.into_active_model())
                .on_conflict(OnConflict::column(Column::Name).do_nothing().to_owned())
                .exec_without_returning(&tx)
                .await?;
            let renewed = Entity::update_many()
                .col_expr(Column::Until, until.into())
                .filter(Column::Name.eq(name))
                .filter(Column::Holder.eq(holder))
                .filter(Column::Until.gte(now.0))
                .exec(&tx)
                .await?;
            if renewed.rows_affected == 0 {
                Entity::update_many()
                    .col_expr(Column::Until, until.into())
                    .col_expr(Column::Holder, holder.into())
                    .col_expr(Column::Term, Expr::col(Column::Term).add(1))
                    .filter(Column::Name.eq(name))
                    .filter(Column::Until.lt(now.0))
                    .exec(&tx)
                    .await?;
            }
            let row = Entity::find_by_id(name).one(&tx).await?;
            tx.commit().await?;
            Ok::<_, StoreError>(row)
        };
        let row = self.0.bounded(work).await?.ok_or(StoreError::NotFound)?;
        (row.holder == holder)
            .then(|| unsigned(row.term))
            .transpose()
    }

    /// The holder stops; others may lead at once.
    pub async fn release(self, name: &str, holder: &str) -> Result<(), StoreError> {
        let update = Entity::update_many()
            .col_expr(Column::Until, i64::MIN.into())
            .filter(
                Condition::all()
                    .add(Column::Name.eq(name))
                    .add(Column::Holder.eq(holder)),
            );
        self.0.update(update).await.map(|_| ())
    }
}
