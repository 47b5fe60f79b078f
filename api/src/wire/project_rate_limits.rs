//! A project's rate limits as administrators see and change them.

use domain::rate_limit::ModelRateLimit;
use poem_openapi::Object;
use store::RateLimitChange;

use super::decode::{At, Fields};
use super::list::Listed;
use super::reply::reply;
use crate::body::Decode;
use crate::error::ApiError;

/// Before the name of a model, in the id of its limit.
pub const ID_PREFIX: &str = "rl-";
/// Their names in a limit and in a change of it.
pub const MAX_REQUESTS: &str = "max_requests_per_1_minute";
pub const MAX_TOKENS: &str = "max_tokens_per_1_minute";
/// More than anything can use. A minute's worth.
const MOST: i64 = 1_000_000_000_000;

reply! {
    /// How much a project may ask of a base model and all that is tuned from it.
    RateLimitObject as "ProjectRateLimit" {
        /// `rl-` and the model.
        id: String,
        /// `project.rate_limit`.
        object: &'static str,
        model: String,
        max_requests_per_1_minute: u64,
        max_tokens_per_1_minute: u64,
    }
}

impl From<ModelRateLimit> for RateLimitObject {
    fn from(limited: ModelRateLimit) -> Self {
        Self {
            id: format!("{ID_PREFIX}{}", limited.model),
            object: "project.rate_limit",
            model: limited.model,
            max_requests_per_1_minute: limited.limit.requests_per_minute,
            max_tokens_per_1_minute: limited.limit.tokens_per_minute,
        }
    }
}

impl Listed for RateLimitObject {
    fn id(&self) -> &str {
        &self.id
    }
}

/// The body of a change; what is left out stays.
#[derive(Debug, Clone, PartialEq, Object)]
pub struct UpdateRateLimitRequest {
    /// At least 1.
    pub max_requests_per_1_minute: Option<u64>,
    /// At least 1.
    pub max_tokens_per_1_minute: Option<u64>,
}

impl Decode for RateLimitChange {
    type Schema = UpdateRateLimitRequest;

    fn decode(mut body: Fields) -> Result<Self, ApiError> {
        let count = |at: At| at.integer(1..=MOST).map(i64::unsigned_abs);
        let change = Self {
            requests_per_minute: body.take(MAX_REQUESTS).map(count).transpose()?,
            tokens_per_minute: body.take(MAX_TOKENS).map(count).transpose()?,
        };
        let others = [
            "max_images_per_1_minute",
            "max_audio_megabytes_per_1_minute",
            "max_requests_per_1_day",
            "batch_1_day_max_input_tokens",
        ];
        body.refuse(&others, "This service limits requests and tokens a minute.")?;
        body.finish()?;
        Ok(change)
    }
}
