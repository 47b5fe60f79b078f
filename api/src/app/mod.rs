//! What each operation does, without HTTP: it takes the caller's project and plain values, and answers with the
//! domain's nouns.

pub mod adapters;
pub mod admin_keys;
pub mod administration;
pub mod api_keys;
pub mod audit_logs;
pub mod batches;
pub mod chat;
pub mod chat_completions;
pub mod checkpoint_permissions;
pub mod completion;
pub mod dry_runs;
pub mod embeddings;
pub mod export;
pub mod files;
pub mod fine_tuning;
pub mod form;
pub mod invites;
pub mod job_news;
pub mod ledger;
pub mod look;
pub mod model_aliases;
pub mod model_permissions;
pub mod models;
pub mod moderations;
pub mod project_rate_limits;
pub mod project_users;
pub mod projects;
pub mod queue;
pub mod rate_limits;
pub mod repeat;
pub mod response;
pub mod service_accounts;
pub mod spend_limits;
pub mod spending;
pub mod storage;
pub mod tokens_taken;
pub mod uploads;
pub mod usage;
pub mod users;
pub mod webhooks;
pub mod workers;
pub mod x_training;

use domain::page::{Order, Page, PageRequest};
use platform::objects::ObjectsError;
use store::StoreError;

use crate::error::{ApiError, Kind};
use crate::wire::decode::echo;

/// Longest cursor; ours are shorter.
const MAX_CURSOR: usize = 128;

/// What a failure of the database means to the client. `NotFound` is named by the caller, who knows what was sought.
pub fn store_error(error: StoreError) -> ApiError {
    match error {
        StoreError::UnknownAfter(after) => ApiError::not_found(format!("No such object in this list: {}", echo(&after)))
            .param("after")
            .code("invalid_value"),
        StoreError::JobLimit { limit } => ApiError::new(
            Kind::TooManyRequests,
            format!(
                "This project already has {limit} unfinished fine-tuning jobs. Please wait until one has ended, or ask an \
                 administrator for a higher x_max_unfinished_jobs."
            ),
        )
        .code("rate_limit_exceeded"),
        StoreError::KeyReused => repeat::key_reused(),
        StoreError::StorageLimit { limit, stored } => storage::Storage { limit, stored }.exceeded(),
        StoreError::Invalid(_) => ApiError::new(Kind::BadRequest, "The request holds a text that cannot be stored.")
            .code("invalid_value")
            .detail(error.to_string()),
        StoreError::Unavailable(_) => ApiError::unavailable(error.to_string()),
        other => ApiError::internal(other.to_string()),
    }
}

/// What a failure of the bucket means to the client.
pub fn objects_error(error: ObjectsError) -> ApiError {
    match error {
        ObjectsError::Unavailable { .. } => ApiError::unavailable(error.to_string()),
        other => ApiError::internal(other.to_string()),
    }
}

/// What a client asks of a list, judged: `limit` from 1 to `max`, a cursor that could be one of ours.
pub fn page_request(
    after: Option<String>,
    limit: Option<i64>,
    default: u64,
    max: u64,
    order: Order,
) -> Result<PageRequest, ApiError> {
    let limit = match limit {
        None => default,
        Some(limit) => {
            let at = crate::wire::decode::At::new("limit", limit.into());
            at.integer(1..=i64::try_from(max).unwrap_or(i64::MAX))?
                .unsigned_abs()
        }
    };
    if after.as_ref().is_some_and(|after| after.len() > MAX_CURSOR) {
        let message = "Invalid 'after': expected the id of an item.";
        return Err(ApiError::invalid("after", "invalid_value", message));
    }
    Ok(PageRequest {
        after,
        limit,
        order,
    })
}

/// A page of a list that is at hand whole, oldest first. Errors: 404 for an unknown `after`.
pub fn cut<T>(
    items: Vec<T>,
    page: &PageRequest,
    id: impl Fn(&T) -> &str,
) -> Result<Page<T>, ApiError> {
    let cut = Page::cut(items, page, id);
    cut.ok_or_else(|| {
        let after = page.after.clone().unwrap_or_default();
        store_error(StoreError::UnknownAfter(after))
    })
}
