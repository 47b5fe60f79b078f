//! Single statements, bounded in time.

use sea_orm::{
    ActiveModelTrait, DeleteMany, EntityTrait, Insert, PaginatorTrait, Select, UpdateMany,
};

use crate::connect::Store;
use crate::error::StoreError;

impl Store {
    pub(crate) async fn all<E: EntityTrait>(
        &self,
        select: Select<E>,
    ) -> Result<Vec<E::Model>, StoreError> {
        self.bounded(async { Ok(select.all(&self.read).await?) })
            .await
    }

    pub(crate) async fn one<E: EntityTrait>(
        &self,
        select: Select<E>,
    ) -> Result<Option<E::Model>, StoreError> {
        self.bounded(async { Ok(select.one(&self.read).await?) })
            .await
    }

    pub(crate) async fn count<E>(&self, select: Select<E>) -> Result<u64, StoreError>
    where
        E: EntityTrait,
        E::Model: Send + Sync,
    {
        self.bounded(async { Ok(select.count(&self.read).await?) })
            .await
    }

    pub(crate) async fn insert<A: ActiveModelTrait>(
        &self,
        insert: Insert<A>,
    ) -> Result<(), StoreError> {
        self.bounded(async {
            Ok(insert
                .exec_without_returning(&self.write)
                .await
                .map(|_| ())?)
        })
        .await
    }

    /// The number of rows changed.
    pub(crate) async fn update<E: EntityTrait>(
        &self,
        update: UpdateMany<E>,
    ) -> Result<u64, StoreError> {
        self.bounded(async { Ok(update.exec(&self.write).await?.rows_affected) })
            .await
    }

    /// The number of rows deleted.
    pub(crate) async fn delete<E: EntityTrait>(
        &self,
        delete: DeleteMany<E>,
    ) -> Result<u64, StoreError> {
        self.bounded(async { Ok(delete.exec(&self.write).await?.rows_affected) })
            .await
    }
}
