//! Usage and costs as administrators see them: pages of buckets.

use super::nullable::Nullable;
use super::reply::reply;

reply! {
    /// What answers took.
    CompletionsUsage as "UsageCompletionsResult" {
        /// `organization.usage.completions.result`.
        object: &'static str,
        /// Of prompts, cached ones among them.
        input_tokens: u64,
        /// Of these not computed again.
        input_cached_tokens: u64,
        /// Of these computed.
        input_uncached_tokens: u64,
        output_tokens: u64,
        num_model_requests: u64,
        /// With `group_by=project_id`.
        project_id: Nullable<String>,
        /// Always null.
        user_id: Nullable<String>,
        /// With `group_by=api_key_id`.
        api_key_id: Nullable<String>,
        /// With `group_by=model`.
        model: Nullable<String>,
        /// With `group_by=batch`.
        batch: Nullable<bool>,
        /// Always null.
        service_tier: Nullable<String>,
    }

    /// What embeddings took.
    EmbeddingsUsage as "UsageEmbeddingsResult" {
        /// `organization.usage.embeddings.result`.
        object: &'static str,
        input_tokens: u64,
        num_model_requests: u64,
        project_id: Nullable<String>,
        user_id: Nullable<String>,
        api_key_id: Nullable<String>,
        model: Nullable<String>,
    }

    /// What moderations took.
    ModerationsUsage as "UsageModerationsResult" {
        /// `organization.usage.moderations.result`.
        object: &'static str,
        input_tokens: u64,
        num_model_requests: u64,
        project_id: Nullable<String>,
        user_id: Nullable<String>,
        api_key_id: Nullable<String>,
        model: Nullable<String>,
    }

    /// What something cost.
    CostsObject as "CostsResult" {
        /// `organization.costs.result`.
        object: &'static str,
        amount: Amount,
        /// With `group_by=line_item`: a model and what was taken of it, such as `smollm2-135m, input`.
        line_item: Nullable<String>,
        /// With `group_by=project_id`.
        project_id: Nullable<String>,
        /// With `group_by=api_key_id`; null for trainings.
        api_key_id: Nullable<String>,
        /// With `group_by=line_item`: how many.
        quantity: Nullable<f64>,
        /// With `group_by=line_item`: `tokens`.
        quantity_unit: Nullable<&'static str>,
    }

    Amount as "CostsAmount" {
        value: f64,
        /// `usd`.
        currency: &'static str,
    }
}

impl Amount {
    pub fn usd(value: f64) -> Self {
        Self {
            value,
            currency: "usd",
        }
    }
}

macro_rules! bucket_pages {
    ($($bucket:ident as $bucket_title:literal, $page:ident as $page_title:literal of $result:ty;)*) => {
        reply! {$(
            /// A piece of time.
            $bucket as $bucket_title {
                /// `bucket`.
                object: &'static str,
                /// Unix seconds.
                start_time: i64,
                /// Unix seconds; the next bucket begins there.
                end_time: i64,
                /// Empty where nothing happened.
                results: Vec<$result>,
            }

            /// Buckets, oldest first. Ask for the next ones with `page=next_page`.
            $page as $page_title {
                /// `page`.
                object: &'static str,
                data: Vec<$bucket>,
                has_more: bool,
                next_page: Nullable<String>,
            }
        )*}

        $(impl From<Buckets<$result>> for $page {
            fn from(buckets: Buckets<$result>) -> Self {
                let width_s = buckets.width_s;
                let bucket = |(start_time, results)| $bucket {
                    object: "bucket",
                    start_time,
                    end_time: start_time + width_s,
                    results,
                };
                Self {
                    object: "page",
                    data: buckets.results.into_iter().map(bucket).collect(),
                    has_more: buckets.next_page.is_some(),
                    next_page: Nullable(buckets.next_page),
                }
            }
        })*
    };
}

/// Results by when their bucket starts, in Unix seconds; buckets without any among them.
pub struct Buckets<T> {
    pub width_s: i64,
    pub results: Vec<(i64, Vec<T>)>,
    pub next_page: Option<String>,
}

bucket_pages! {
    CompletionsBucket as "UsageCompletionsBucket", CompletionsPage as "UsageCompletionsPage" of CompletionsUsage;
    EmbeddingsBucket as "UsageEmbeddingsBucket", EmbeddingsPage as "UsageEmbeddingsPage" of EmbeddingsUsage;
    ModerationsBucket as "UsageModerationsBucket", ModerationsPage as "UsageModerationsPage" of ModerationsUsage;
    CostsBucket as "CostsBucket", CostsPage as "CostsPage" of CostsObject;
}
