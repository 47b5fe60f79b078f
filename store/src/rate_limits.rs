//! How much projects may ask of models. What is left of a limit is one row that all processes draw from.

use domain::audit::AuditEntry;
use domain::id::ProjectId;
use domain::rate_limit::{Amount, Bucket, ModelRateLimit, RateLimit};
use domain::time::Timestamp;
use sea_orm::sea_query::OnConflict;
use sea_orm::{ColumnTrait, EntityTrait, IntoActiveModel, QueryFilter, QuerySelect};

use crate::audit;
use crate::connect::Store;
use crate::convert::{int, text, unsigned};
use crate::entity::{rate_bucket, rate_limit};
use crate::error::StoreError;

/// What a process got, and what it left to the others.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Drawn {
    pub given: Amount,
    pub left: Bucket,
    /// The one that holds.
    pub limit: RateLimit,
}

#[derive(Clone, Copy)]
pub struct RateLimits<'a>(&'a Store);

impl<'a> RateLimits<'a> {
    pub(crate) fn new(store: &'a Store) -> Self {
        Self(store)
    }

    /// Those that differ from the default.
    pub async fn list(self, project: &ProjectId) -> Result<Vec<ModelRateLimit>, StoreError> {
        let select =
            rate_limit::Entity::find().filter(rate_limit::Column::ProjectId.eq(project.as_str()));
        let rows = self.0.of(project).all(select).await?;
        rows.into_iter()
            .map(|row| {
                Ok(ModelRateLimit {
                    limit: to_domain(&row)?,
                    model: row.model,
                })
            })
            .collect()
    }

    /// Changes the project's limit, which is `default` where it has none of its own. What this makes of it holds from now on;
    /// processes that hold drawn amounts spend them first. `entry` tells of it.
    pub async fn modify(
        self,
        project: &ProjectId,
        model: &str,
        wanted: RateLimitChange,
        default: RateLimit,
        entry: &AuditEntry,
    ) -> Result<RateLimit, StoreError> {
        use rate_limit::Column;
        let key = (project.to_string(), text("model", model)?);
        let conflict = OnConflict::columns([Column::ProjectId, Column::Model])
            .update_columns([
                Column::RequestsPerMinute,
                Column::TokensPerMinute,
                Column::UpdatedAt,
            ])
            .to_owned();
        let work = async {
            let tx = audit::begin(self.0, &entry.organization_id).await?;
            let own = rate_limit::Entity::find_by_id(key.clone()).one(&tx).await?;
            let own = own.as_ref().map(to_domain).transpose()?;
            let limit = wanted.of(own.unwrap_or(default));
            let row = rate_limit::Model {
                project_id: key.0,
                model: key.1,
                requests_per_minute: int(limit.requests_per_minute)?,
                tokens_per_minute: int(limit.tokens_per_minute)?,
                updated_at: entry.effective_at.0,
            };
            rate_limit::Entity::insert(row.into_active_model())
                .on_conflict(conflict)
                .exec_without_returning(&tx)
                .await?;
            audit::commit(tx, entry).await?;
            Ok(limit)
        };
        self.0.bounded(work).await
    }

    /// Draws from what is left of the limit, as [`Bucket::draw`] says. `default` is the limit where the project has none of its
    /// own.
    pub async fn draw(
        self,
        project: &ProjectId,
        model: &str,
        default: RateLimit,
        draw: Draw,
        now: Timestamp,
    ) -> Result<Drawn, StoreError> {
        let store = self.0.of(project);
        let key = (project.to_string(), text("model", model)?);
        let work = async {
            let tx = store.begin().await?;
            let own = rate_limit::Entity::find_by_id(key.clone()).one(&tx).await?;
            let limit = own.as_ref().map(to_domain).transpose()?.unwrap_or(default);
            let full = to_row(&key, Bucket::full(limit, now));
            rate_bucket::Entity::insert(full.into_active_model())
                .on_conflict(on_key().do_nothing().to_owned())
                .exec_without_returning(&tx)
                .await?;
            let row = rate_bucket::Entity::find_by_id(key.clone())
                .lock_exclusive()
                .one(&tx)
                .await?
                .ok_or(StoreError::NotFound)?;
            let mut left = bucket(&row).refilled(limit, now);
            let share = limit.per_minute() * draw.of_limit;
            let given = left.draw(draw.debt, draw.needed, share);
            let row = to_row(&key, left);
            let update = on_key()
                .update_columns([
                    rate_bucket::Column::RequestsLeft,
                    rate_bucket::Column::TokensLeft,
                    rate_bucket::Column::UpdatedAt,
                ])
                .to_owned();
            rate_bucket::Entity::insert(row.into_active_model())
                .on_conflict(update)
                .exec_without_returning(&tx)
                .await?;
            tx.commit().await?;
            Ok::<_, StoreError>(Drawn { given, left, limit })
        };
        store.bounded(work).await
    }
}

/// What of a limit becomes what; `None` leaves it as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RateLimitChange {
    pub requests_per_minute: Option<u64>,
    pub tokens_per_minute: Option<u64>,
}

impl RateLimitChange {
    fn of(self, limit: RateLimit) -> RateLimit {
        RateLimit {
            requests_per_minute: self
                .requests_per_minute
                .unwrap_or(limit.requests_per_minute),
            tokens_per_minute: self.tokens_per_minute.unwrap_or(limit.tokens_per_minute),
        }
    }
}

/// How much to draw at once.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Draw {
    /// The share, 0 to 1, of the limit.
    pub of_limit: f64,
    /// What was spent beyond what had been drawn.
    pub debt: Amount,
    /// Beside it. Not above 0: this dimension is not drawn.
    pub needed: Amount,
}

fn on_key() -> OnConflict {
    OnConflict::columns([rate_bucket::Column::ProjectId, rate_bucket::Column::Model])
}

fn to_domain(row: &rate_limit::Model) -> Result<RateLimit, StoreError> {
    Ok(RateLimit {
        requests_per_minute: unsigned(row.requests_per_minute)?,
        tokens_per_minute: unsigned(row.tokens_per_minute)?,
    })
}

fn bucket(row: &rate_bucket::Model) -> Bucket {
    Bucket {
        left: Amount {
            requests: row.requests_left,
            tokens: row.tokens_left,
        },
        at: Timestamp(row.updated_at),
    }
}

fn to_row((project_id, model): &(String, String), bucket: Bucket) -> rate_bucket::Model {
    rate_bucket::Model {
        project_id: project_id.clone(),
        model: model.clone(),
        requests_left: bucket.left.requests,
        tokens_left: bucket.left.tokens,
        updated_at: bucket.at.0,
    }
}
