//! `/v1/organization/audit_logs`.

use domain::page::Order;
use domain::time::Timestamp;
use poem::web::Data;
use poem_openapi::OpenApi;
use poem_openapi::param::Query;
use poem_openapi::payload::Json;
use store::{AuditFilter, AuditPage, AuditPlace};

use super::{Tag, administrators_page};
use crate::app::audit_logs as app;
use crate::auth::Admin;
use crate::error::ApiError;
use crate::state::Shared;
use crate::wire::audit_logs::AuditLogObject;
use crate::wire::list::List;

pub struct AuditLogsApi;

#[OpenApi(
    prefix_path = "/v1/organization/audit_logs",
    tag = "Tag::Administration"
)]
impl AuditLogsApi {
    /// Lists what administrators did, newest first.
    ///
    /// `limit` is 1–100, default 20; `effective_at[…]` are Unix seconds.
    #[oai(path = "/", method = "get", operation_id = "list-audit-logs")]
    #[allow(clippy::too_many_arguments)] // Each is a parameter of the query.
    async fn list(
        &self,
        state: Data<&Shared>,
        admin: Admin,
        #[oai(name = "effective_at[gt]")] after_s: Query<Option<i64>>,
        #[oai(name = "effective_at[gte]")] since_s: Query<Option<i64>>,
        #[oai(name = "effective_at[lt]")] before_s: Query<Option<i64>>,
        #[oai(name = "effective_at[lte]")] until_s: Query<Option<i64>>,
        #[oai(name = "project_ids[]")] project_ids: Query<Option<Vec<String>>>,
        #[oai(name = "event_types[]")] event_types: Query<Option<Vec<String>>>,
        #[oai(name = "actor_ids[]")] actor_ids: Query<Option<Vec<String>>>,
        #[oai(name = "actor_emails[]")] actor_emails: Query<Option<Vec<String>>>,
        #[oai(name = "resource_ids[]")] resource_ids: Query<Option<Vec<String>>>,
        limit: Query<Option<i64>>,
        after: Query<Option<String>>,
        before: Query<Option<String>>,
    ) -> Result<Json<List<AuditLogObject>>, ApiError> {
        let whole = |s: Option<i64>| s.map(|s| s.saturating_add(1));
        let filter = AuditFilter {
            event_types: event_types.0.unwrap_or_default(),
            project_ids: project_ids.0.unwrap_or_default(),
            actor_ids: actor_ids.0.unwrap_or_default(),
            actor_emails: actor_emails.0.unwrap_or_default(),
            resource_ids: resource_ids.0.unwrap_or_default(),
            since: whole(after_s.0).max(since_s.0).map(instant),
            until: earliest(before_s.0, whole(until_s.0)).map(instant),
        };
        let page = page(limit.0, after.0, before.0)?;
        let listed = app::list(&state, &admin, &filter, &page).await?;
        Ok(Json(List::page(listed)))
    }
}

/// Any number of seconds is an instant; beyond what an instant can be, the last one.
fn instant(seconds: i64) -> Timestamp {
    Timestamp(seconds.saturating_mul(1_000_000))
}

fn earliest(a: Option<i64>, b: Option<i64>) -> Option<i64> {
    [a, b].into_iter().flatten().min()
}

fn page(
    limit: Option<i64>,
    after: Option<String>,
    before: Option<String>,
) -> Result<AuditPage, ApiError> {
    if after.is_some() && before.is_some() {
        let message = "Invalid parameters: 'after' and 'before' name one place; send one of them.";
        let code = "invalid_parameter_combination";
        return Err(ApiError::invalid("before", code, message));
    }
    let is_before = before.is_some();
    let request = administrators_page(after.or(before), limit, Order::NewestFirst)?;
    Ok(AuditPage {
        limit: request.limit,
        place: match request.after {
            None => AuditPlace::First,
            Some(id) if is_before => AuditPlace::Before(id),
            Some(id) => AuditPlace::After(id),
        },
    })
}
