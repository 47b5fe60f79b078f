//! Usage and costs of an organisation, in buckets of time.

use std::collections::BTreeMap;

use domain::price::{self, Item, ModelPrice};
use domain::project::Organization;
use domain::usage::{Dimension, Service, UsageQuery, UsageSum};

use super::store_error;
use crate::error::ApiError;
use crate::state::State;
use crate::wire::decode::{At, not_one_of};
use crate::wire::nullable::Nullable;
use crate::wire::usage::{
    Amount, Buckets, CompletionsUsage, CostsObject, EmbeddingsUsage, ModerationsUsage,
};

/// The end of all times that are asked about (the year 36,812). Unix seconds.
const LAST_S: i64 = 1 << 40;

/// How page cursors begin; the start of the page's first bucket follows.
const CURSOR: &str = "page_";

/// What was asked for, as it stood in the query.
#[derive(Debug, Default)]
pub struct Asked {
    pub start_time: i64,
    pub end_time: Option<i64>,
    pub bucket_width: Option<String>,
    pub limit: Option<i64>,
    pub page: Option<String>,
    pub project_ids: Vec<String>,
    pub api_key_ids: Vec<String>,
    pub models: Vec<String>,
    pub user_ids: Vec<String>,
    pub batch: Option<bool>,
    pub group_by: Vec<String>,
}

/// How wide buckets may be, in seconds, and how many of them a page has: by default, and at most.
type Width = (&'static str, i64, i64, i64);

const USAGE_WIDTHS: &[Width] = &[
    ("1d", 86_400, 7, 31),
    ("1h", 3_600, 24, 168),
    ("1m", 60, 60, 1_440),
];
const COSTS_WIDTHS: &[Width] = &[("1d", 86_400, 7, 180)];

/// A page of buckets that is judged and not filled.
struct Frame {
    query: UsageQuery,
    n_buckets: i64,
    next_page: Option<String>,
}

/// Errors: 400 that names the parameter.
pub async fn completions(
    state: &State,
    organization: &Organization,
    asked: Asked,
) -> Result<Buckets<CompletionsUsage>, ApiError> {
    let frame = Frame::of(state, organization, asked, USAGE_WIDTHS)?;
    let sums = sums(state, Service::Completions, &frame).await?;
    Ok(frame.fill(sums, |sum| {
        let tokens = sum.tally.tokens;
        CompletionsUsage {
            object: "organization.usage.completions.result",
            input_tokens: tokens.prompt_tokens,
            input_cached_tokens: tokens.cached_tokens,
            input_uncached_tokens: tokens.prompt_tokens.saturating_sub(tokens.cached_tokens),
            output_tokens: tokens.completion_tokens,
            num_model_requests: sum.tally.n_requests,
            project_id: Nullable(sum.project_id),
            user_id: Nullable(None),
            api_key_id: Nullable(sum.api_key_id),
            model: Nullable(sum.model),
            batch: Nullable(sum.is_batch),
            service_tier: Nullable(None),
        }
    }))
}

/// Errors: 400 that names the parameter.
pub async fn embeddings(
    state: &State,
    organization: &Organization,
    asked: Asked,
) -> Result<Buckets<EmbeddingsUsage>, ApiError> {
    let frame = Frame::of(state, organization, asked, USAGE_WIDTHS)?;
    let sums = sums(state, Service::Embeddings, &frame).await?;
    Ok(frame.fill(sums, |sum| EmbeddingsUsage {
        object: "organization.usage.embeddings.result",
        input_tokens: sum.tally.tokens.prompt_tokens,
        num_model_requests: sum.tally.n_requests,
        project_id: Nullable(sum.project_id),
        user_id: Nullable(None),
        api_key_id: Nullable(sum.api_key_id),
        model: Nullable(sum.model),
    }))
}

/// Errors: 400 that names the parameter.
pub async fn moderations(
    state: &State,
    organization: &Organization,
    asked: Asked,
) -> Result<Buckets<ModerationsUsage>, ApiError> {
    let frame = Frame::of(state, organization, asked, USAGE_WIDTHS)?;
    let sums = sums(state, Service::Moderations, &frame).await?;
    Ok(frame.fill(sums, |sum| ModerationsUsage {
        object: "organization.usage.moderations.result",
        input_tokens: sum.tally.tokens.prompt_tokens,
        num_model_requests: sum.tally.n_requests,
        project_id: Nullable(sum.project_id),
        user_id: Nullable(None),
        api_key_id: Nullable(sum.api_key_id),
        model: Nullable(sum.model),
    }))
}

async fn sums(
    state: &State,
    service: Service,
    frame: &Frame,
) -> Result<Vec<(u64, UsageSum)>, ApiError> {
    let sums = state.store.usage().served(service, &frame.query).await;
    let sums = sums.map_err(store_error)?.into_iter();
    Ok(sums.map(|sum| (sum.bucket, sum)).collect())
}

impl Frame {
    fn of(
        state: &State,
        organization: &Organization,
        asked: Asked,
        widths: &[Width],
    ) -> Result<Self, ApiError> {
        let words: Vec<&str> = widths.iter().map(|(word, ..)| *word).collect();
        let word = asked.bucket_width.as_deref().unwrap_or("1d");
        let known = widths.iter().find(|(known, ..)| *known == word);
        let (_, width_s, default, max) =
            *known.ok_or_else(|| not_one_of("bucket_width", word, &words))?;
        let end_s = asked.end_time.unwrap_or_else(|| state.now().unix_s() + 1);
        if asked.start_time < 0 || end_s <= asked.start_time || end_s > LAST_S {
            let message = "Invalid 'start_time': expected Unix seconds before 'end_time'.";
            return Err(ApiError::invalid("start_time", "invalid_value", message));
        }
        let limit = match asked.limit {
            None => default,
            Some(limit) => At::new("limit", limit.into()).integer(1..=max)?,
        };
        let from_s = first_bucket(&asked, width_s)?;
        let left = (end_s - from_s + width_s - 1).div_euclid(width_s).max(0);
        let n_buckets = left.min(limit);
        let next_s = from_s + n_buckets * width_s;
        if !asked.user_ids.is_empty() {
            return Err(unsupported(
                "user_ids",
                "Usage is kept by API key: use api_key_ids.",
            ));
        }
        let frame = Self {
            query: UsageQuery {
                organization_id: organization.id.clone(),
                from_s,
                to_s: next_s.min(end_s),
                width_s,
                projects: asked.project_ids,
                api_keys: asked.api_key_ids,
                models: asked.models,
                is_batch: asked.batch,
                group_by: Vec::new(),
            },
            n_buckets,
            next_page: (left > limit).then(|| format!("{CURSOR}{next_s}")),
        };
        frame.grouped_by(&asked.group_by)
    }

    fn grouped_by(mut self, words: &[String]) -> Result<Self, ApiError> {
        for word in words {
            let dimension = Dimension::parse(word)
                .ok_or_else(|| not_one_of("group_by", word, Dimension::WORDS))?;
            if !self.query.group_by.contains(&dimension) {
                self.query.group_by.push(dimension);
            }
        }
        Ok(self)
    }

    /// Every bucket, with what belongs there.
    fn fill<S, T>(self, found: Vec<(u64, S)>, show: impl Fn(S) -> T) -> Buckets<T> {
        let UsageQuery {
            from_s, width_s, ..
        } = self.query;
        let mut results: Vec<(i64, Vec<T>)> = (0..self.n_buckets)
            .map(|i| (from_s + i * width_s, Vec::new()))
            .collect();
        for (bucket, item) in found {
            let place = usize::try_from(bucket).unwrap_or(usize::MAX);
            if let Some((_, of_bucket)) = results.get_mut(place) {
                of_bucket.push(show(item));
            }
        }
        Buckets {
            width_s,
            results,
            next_page: self.next_page,
        }
    }
}

/// Where the page begins: at the start, or some buckets later.
fn first_bucket(asked: &Asked, width_s: i64) -> Result<i64, ApiError> {
    let Some(page) = &asked.page else {
        return Ok(asked.start_time);
    };
    let start_s = page
        .strip_prefix(CURSOR)
        .and_then(|s| s.parse::<i64>().ok());
    let is_ours = |s: &i64| *s >= asked.start_time && (s - asked.start_time) % width_s == 0;
    start_s.filter(is_ours).ok_or_else(|| {
        let message = "Invalid 'page': expected the next_page of the page before, with the other parameters unchanged.";
        ApiError::invalid("page", "invalid_value", message)
    })
}

fn unsupported(param: &'static str, reason: &str) -> ApiError {
    let message = format!("Unsupported parameter: '{param}'. {reason}");
    ApiError::invalid(param, "unsupported_parameter", message)
}

/// By what costs can be told apart.
const COST_WORDS: [&str; 3] = ["project_id", "line_item", "api_key_id"];

/// One thing that cost something.
struct Cost {
    bucket: u64,
    project_id: String,
    api_key_id: Option<String>,
    model: String,
    item: Item,
}

/// Errors: 400 that names the parameter.
pub async fn costs(
    state: &State,
    organization: &Organization,
    mut asked: Asked,
) -> Result<Buckets<CostsObject>, ApiError> {
    let group_by = std::mem::take(&mut asked.group_by);
    if let Some(word) = group_by.iter().find(|w| !COST_WORDS.contains(&w.as_str())) {
        return Err(not_one_of("group_by", word, &COST_WORDS));
    }
    let mut frame = Frame::of(state, organization, asked, COSTS_WIDTHS)?;
    frame.query.group_by = vec![Dimension::Project, Dimension::ApiKey, Dimension::Model];
    let costs = all_costs(state, &frame.query).await?;
    let has = |word: &str| group_by.iter().any(|w| w == word);
    let (by_project, by_item, by_key) = (has("project_id"), has("line_item"), has("api_key_id"));
    // Amount and quantity of what is not told apart.
    let mut sums: BTreeMap<_, (f64, u64)> = BTreeMap::new();
    for cost in costs {
        let key = (
            cost.bucket,
            by_project.then_some(cost.project_id),
            by_item.then(|| format!("{}, {}", cost.model, cost.item.name)),
            by_key.then_some(cost.api_key_id).flatten(),
        );
        let (amount, quantity) = sums.entry(key).or_default();
        *amount += cost.item.amount();
        *quantity += cost.item.n_tokens;
    }
    let found = sums
        .into_iter()
        .map(|(key, sum)| (key.0, (key, sum)))
        .collect();
    Ok(frame.fill(
        found,
        |((_, project_id, line_item, api_key_id), (value, n))| {
            let is_item = line_item.is_some();
            CostsObject {
                object: "organization.costs.result",
                amount: Amount::usd(value),
                line_item: Nullable(line_item),
                project_id: Nullable(project_id),
                api_key_id: Nullable(api_key_id),
                quantity: Nullable(is_item.then_some(n as f64)),
                quantity_unit: Nullable(is_item.then_some("tokens")),
            }
        },
    ))
}

/// Every line item, told apart by everything. Trainings are no key's: with a filter by key they are left out.
async fn all_costs(state: &State, query: &UsageQuery) -> Result<Vec<Cost>, ApiError> {
    let usage = state.store.usage();
    let mut costs = Vec::new();
    for service in Service::CHARGED {
        let sums = usage.served(service, query).await;
        for sum in sums.map_err(store_error)? {
            costs.extend(costs_of(&state.prices, sum));
        }
    }
    if query.api_keys.is_empty() {
        for sum in usage.trained(query).await.map_err(store_error)? {
            costs.push(Cost {
                bucket: sum.bucket,
                project_id: sum.project_id,
                api_key_id: None,
                item: price::trained(&state.prices, &sum.base_model, sum.n_tokens),
                model: sum.base_model,
            });
        }
    }
    Ok(costs)
}

fn costs_of(prices: &[ModelPrice], sum: UsageSum) -> impl Iterator<Item = Cost> + use<> {
    let model = sum.model.unwrap_or_default();
    let items = price::served(prices, &model, sum.tally.tokens);
    items.map(move |item| Cost {
        bucket: sum.bucket,
        project_id: sum.project_id.clone().unwrap_or_default(),
        api_key_id: sum.api_key_id.clone(),
        model: model.clone(),
        item,
    })
}
