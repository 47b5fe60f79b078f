//! What answers took. Rows are added to, never read one by one: what is asked for are sums.

use domain::id::KeyId;
use domain::usage::{
    Dimension, Service, Tally, TokenUsage, TrainedSum, UsageKey, UsageQuery, UsageSum,
};
use sea_orm::sea_query::{Expr, ExprTrait, OnConflict};
use sea_orm::{ConnectionTrait, EntityTrait, IntoActiveModel, QueryResult, Statement, Value};

use super::Usage;
use crate::convert::{int, text, unsigned};
use crate::entity::served_usage::{Column, Entity, Model};
use crate::error::StoreError;

/// Rows per statement: 10 columns each.
const ROWS_PER_INSERT: usize = 1_000;

impl Usage<'_> {
    /// Adds to what is there, all of it or nothing. No key may come twice.
    pub async fn add_served(self, counted: &[(UsageKey, Tally)]) -> Result<(), StoreError> {
        let rows: Vec<Model> = counted.iter().map(to_row).collect::<Result<_, _>>()?;
        let work = async {
            let tx = self.0.begin().await?;
            for some in rows.chunks(ROWS_PER_INSERT) {
                let models = some.iter().cloned().map(IntoActiveModel::into_active_model);
                Entity::insert_many(models)
                    .on_conflict(adding())
                    .exec_without_returning(&tx)
                    .await?;
            }
            Ok(tx.commit().await?)
        };
        self.0.bounded(work).await
    }

    /// Usage of one service, by bucket and by what is told apart, in this order.
    pub async fn served(
        self,
        service: Service,
        query: &UsageQuery,
    ) -> Result<Vec<UsageSum>, StoreError> {
        let mut sql = Sql::over(query);
        let service = sql.value(service.as_str());
        sql.filter("u.project_id", &query.projects);
        sql.filter("u.api_key_id", &query.api_keys);
        sql.filter("u.model", &query.models);
        if let Some(is_batch) = query.is_batch {
            let wanted = sql.value(i64::from(is_batch));
            sql.wheres += &format!(" AND u.is_batch = {wanted}");
        }
        let columns: Vec<&str> = query.group_by.iter().map(|d| column(*d)).collect();
        let told_apart: String = columns.iter().map(|c| format!(", u.{c} AS {c}")).collect();
        let places: String = (2..2 + columns.len()).map(|i| format!(", {i}")).collect();
        let statement = format!(
            "SELECT (u.minute_s - $1) / $3 AS bucket{told_apart}, \
             CAST(SUM(n_requests) AS bigint) AS n_requests, \
             CAST(SUM(input_tokens) AS bigint) AS input_tokens, \
             CAST(SUM(cached_tokens) AS bigint) AS cached_tokens, \
             CAST(SUM(output_tokens) AS bigint) AS output_tokens \
             FROM served_usage u JOIN projects p ON p.id = u.project_id \
             WHERE p.organization_id = $4 AND u.minute_s >= $1 AND u.minute_s < $2 \
             AND u.service = {service}{wheres} GROUP BY 1{places} ORDER BY 1{places}",
            wheres = sql.wheres,
        );
        let rows = self.rows(statement, sql.values).await?;
        rows.iter().map(|row| sum(row, &query.group_by)).collect()
    }

    /// Tokens that jobs were trained on, when they ended; only the query's time and projects count.
    pub async fn trained(self, query: &UsageQuery) -> Result<Vec<TrainedSum>, StoreError> {
        let mut sql = Sql::over(query);
        sql.filter("u.project_id", &query.projects);
        let statement = format!(
            "SELECT (u.created_at / 1000000 - $1) / $3 AS bucket, u.project_id AS project_id, \
             j.model AS base_model, CAST(SUM(u.quantity) AS bigint) AS n_tokens \
             FROM usage u JOIN jobs j ON j.id = u.job_id JOIN projects p ON p.id = u.project_id \
             WHERE p.organization_id = $4 AND u.kind = '{kind}' \
             AND u.created_at / 1000000 >= $1 AND u.created_at / 1000000 < $2{wheres} \
             GROUP BY 1, 2, 3 ORDER BY 1, 2, 3",
            kind = super::TRAINED_TOKENS,
            wheres = sql.wheres,
        );
        let rows = self.rows(statement, sql.values).await?;
        let to_sum = |row: &QueryResult| {
            Ok(TrainedSum {
                bucket: unsigned(row.try_get("", "bucket")?)?,
                project_id: row.try_get("", "project_id")?,
                base_model: row.try_get("", "base_model")?,
                n_tokens: unsigned(row.try_get("", "n_tokens")?)?,
            })
        };
        rows.iter().map(to_sum).collect()
    }

    async fn rows(self, sql: String, values: Vec<Value>) -> Result<Vec<QueryResult>, StoreError> {
        let statement = Statement::from_sql_and_values(self.0.backend(), sql, values);
        self.0
            .bounded(async { Ok(self.0.read.query_all_raw(statement).await?) })
            .await
    }
}

/// A statement in the making. The query builder cannot group by a place; the text is the same on both databases.
/// $1 to $4 are from, to, width and organisation.
struct Sql {
    wheres: String,
    values: Vec<Value>,
}

impl Sql {
    fn over(query: &UsageQuery) -> Self {
        Self {
            wheres: String::new(),
            values: vec![
                query.from_s.into(),
                query.to_s.into(),
                query.width_s.into(),
                query.organization_id.as_str().into(),
            ],
        }
    }

    /// The place of one more value.
    fn value(&mut self, value: impl Into<Value>) -> String {
        self.values.push(value.into());
        format!("${}", self.values.len())
    }

    /// One of these; with none of them anything.
    fn filter(&mut self, column: &str, any_of: &[String]) {
        if any_of.is_empty() {
            return;
        }
        // What holds a NUL is in no row.
        let known = any_of.iter().filter(|text| !text.contains('\0'));
        let known: Vec<&String> = known.collect();
        let places: Vec<String> = known.into_iter().map(|v| self.value(v.as_str())).collect();
        let places = if places.is_empty() {
            "NULL".to_owned()
        } else {
            places.join(", ")
        };
        self.wheres += &format!(" AND {column} IN ({places})");
    }
}

fn column(dimension: Dimension) -> &'static str {
    match dimension {
        Dimension::Project => "project_id",
        Dimension::ApiKey => "api_key_id",
        Dimension::Model => "model",
        Dimension::Batch => "is_batch",
    }
}

fn sum(row: &QueryResult, group_by: &[Dimension]) -> Result<UsageSum, StoreError> {
    let told_apart = |dimension| group_by.contains(&dimension);
    let text = |dimension: Dimension| -> Result<Option<String>, StoreError> {
        match told_apart(dimension) {
            true => Ok(Some(row.try_get("", column(dimension))?)),
            false => Ok(None),
        }
    };
    let number = |name: &str| -> Result<i64, StoreError> { Ok(row.try_get("", name)?) };
    Ok(UsageSum {
        bucket: unsigned(number("bucket")?)?,
        project_id: text(Dimension::Project)?,
        api_key_id: text(Dimension::ApiKey)?.filter(|id| !id.is_empty()),
        model: text(Dimension::Model)?,
        is_batch: match told_apart(Dimension::Batch) {
            true => Some(number("is_batch")? == 1),
            false => None,
        },
        tally: Tally {
            n_requests: unsigned(number("n_requests")?)?,
            tokens: TokenUsage {
                prompt_tokens: unsigned(number("input_tokens")?)?,
                cached_tokens: unsigned(number("cached_tokens")?)?,
                completion_tokens: unsigned(number("output_tokens")?)?,
            },
        },
    })
}

/// What a row that is there already becomes.
fn adding() -> OnConflict {
    use Column as C;
    let mut conflict = OnConflict::columns([
        C::ProjectId,
        C::MinuteS,
        C::ApiKeyId,
        C::Model,
        C::Service,
        C::IsBatch,
    ]);
    for column in [
        C::NRequests,
        C::InputTokens,
        C::CachedTokens,
        C::OutputTokens,
    ] {
        let new = Expr::col((sea_orm::sea_query::Alias::new("excluded"), column));
        conflict.value(column, Expr::col((Entity, column)).add(new));
    }
    conflict
}

fn to_row((key, tally): &(UsageKey, Tally)) -> Result<Model, StoreError> {
    Ok(Model {
        project_id: key.project_id.to_string(),
        minute_s: key.minute_s,
        api_key_id: key.api_key_id.as_ref().map_or("", KeyId::as_str).to_owned(),
        model: text("model", &key.model)?,
        service: key.service.as_str().to_owned(),
        is_batch: i64::from(key.is_batch),
        n_requests: int(tally.n_requests)?,
        input_tokens: int(tally.tokens.prompt_tokens)?,
        cached_tokens: int(tally.tokens.cached_tokens)?,
        output_tokens: int(tally.tokens.completion_tokens)?,
    })
}
