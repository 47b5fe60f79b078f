//! What one project has taken and will take: everything that costs it something.

use std::ops::Range;

use domain::id::ProjectId;
use domain::price::{Spending, Trained};
use domain::usage::{Service, TokenUsage};
use sea_orm::{ConnectionTrait, QueryResult, Statement, Value};

use super::{TRAINED_TOKENS, Usage};
use crate::convert::unsigned;
use crate::error::StoreError;
use crate::jobs::terminal;

impl Usage<'_> {
    /// What the project took in `seconds` (Unix), as [`Usage::served`] and [`Usage::trained`] count it, and what its unfinished
    /// jobs will take, of one moment: a job that ends meanwhile is in one of both.
    pub async fn spending(
        self,
        project: &ProjectId,
        seconds: Range<i64>,
    ) -> Result<Spending, StoreError> {
        let values: [Value; 3] = [
            project.as_str().into(),
            seconds.start.into(),
            seconds.end.into(),
        ];
        let statement = Statement::from_sql_and_values(self.0.backend(), sql(), values);
        let rows = self
            .0
            .bounded(async { Ok::<_, StoreError>(self.0.read.query_all_raw(statement).await?) })
            .await?;
        let mut spending = Spending::default();
        for row in &rows {
            let model: String = row.try_get("", "model")?;
            let tokens = tokens(row)?;
            let trained = |base_model| Trained {
                base_model,
                n_tokens: tokens.prompt_tokens,
            };
            match row.try_get::<i64>("", "part")? {
                SERVED => spending.served.push((model, tokens)),
                TRAINED => spending.trained.push(trained(model)),
                _ => spending.reserved.push(trained(model)),
            }
        }
        Ok(spending)
    }
}

/// What a row is about.
const SERVED: i64 = 0;
const TRAINED: i64 = 1;
const RESERVED: i64 = 2;

/// One statement, so that it reads one state of the database. $1 to $3 are project, from and to.
fn sql() -> String {
    let words = |words: Vec<&str>| format!("'{}'", words.join("', '"));
    let charged = words(Service::CHARGED.map(Service::as_str).to_vec());
    let over = words(terminal().collect());
    format!(
        "SELECT CAST({SERVED} AS bigint) AS part, model, CAST(SUM(input_tokens) AS bigint) AS input_tokens, \
           CAST(SUM(cached_tokens) AS bigint) AS cached_tokens, CAST(SUM(output_tokens) AS bigint) AS output_tokens \
         FROM served_usage WHERE project_id = $1 AND minute_s >= $2 AND minute_s < $3 AND service IN ({charged}) \
         GROUP BY model \
         UNION ALL \
         SELECT CAST({TRAINED} AS bigint), j.model, CAST(SUM(u.quantity) AS bigint), CAST(0 AS bigint), CAST(0 AS bigint) \
         FROM usage u JOIN jobs j ON j.id = u.job_id \
         WHERE u.project_id = $1 AND u.kind = '{TRAINED_TOKENS}' \
           AND u.created_at >= $2 * 1000000 AND u.created_at < $3 * 1000000 \
         GROUP BY j.model \
         UNION ALL \
         SELECT CAST({RESERVED} AS bigint), model, CAST(SUM(planned_tokens) AS bigint), CAST(0 AS bigint), CAST(0 AS bigint) \
         FROM jobs WHERE project_id = $1 AND planned_tokens IS NOT NULL AND state NOT IN ({over}) \
         GROUP BY model \
         ORDER BY 1, 2"
    )
}

fn tokens(row: &QueryResult) -> Result<TokenUsage, StoreError> {
    let number = |name: &str| unsigned(row.try_get("", name)?);
    Ok(TokenUsage {
        prompt_tokens: number("input_tokens")?,
        cached_tokens: number("cached_tokens")?,
        completion_tokens: number("output_tokens")?,
    })
}
