//! What was consumed: by trainings one row per job and kind, written by the transaction that ends the job; by answers see
//! [`served`], and by both together [`spending`].

mod served;
mod spending;

use domain::id::{JobId, ProjectId};
use sea_orm::sea_query::{Expr, ExprTrait};
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QuerySelect};

use crate::connect::Store;
use crate::convert::unsigned;
use crate::entity::usage::{Column, Entity};
use crate::error::StoreError;

pub(crate) const TRAINED_TOKENS: &str = "trained_tokens";

#[derive(Clone, Copy)]
pub struct Usage<'a>(&'a Store);

impl<'a> Usage<'a> {
    pub(crate) fn new(store: &'a Store) -> Self {
        Self(store)
    }

    /// Of one job; `None` before it succeeded.
    pub async fn trained_tokens(
        self,
        project: &ProjectId,
        job: &JobId,
    ) -> Result<Option<u64>, StoreError> {
        let select = of(project).filter(Column::JobId.eq(job.as_str()));
        self.0
            .of(project)
            .one(select)
            .await?
            .map(|row| unsigned(row.quantity))
            .transpose()
    }

    /// Of all jobs of the project.
    pub async fn total_trained_tokens(self, project: &ProjectId) -> Result<u64, StoreError> {
        let store = self.0.of(project);
        // The sum of bigints is numeric on PostgreSQL.
        let sum = Expr::col(Column::Quantity).sum().cast_as("bigint");
        let select = of(project)
            .select_only()
            .column_as(sum, "total")
            .into_tuple::<Option<i64>>();
        let total: Result<_, StoreError> = store
            .bounded(async { Ok(select.one(&store.read).await?) })
            .await;
        unsigned(total?.flatten().unwrap_or(0))
    }
}

fn of(project: &ProjectId) -> sea_orm::Select<Entity> {
    Entity::find()
        .filter(Column::ProjectId.eq(project.as_str()))
        .filter(Column::Kind.eq(TRAINED_TOKENS))
}
