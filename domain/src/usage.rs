//! What was consumed.

use serde::{Deserialize, Serialize};

use crate::id::{KeyId, OrganizationId, ProjectId};
use crate::words::words;

/// Tokens of one answer, as OpenAI's `usage`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TokenUsage {
    pub prompt_tokens: u64,
    /// Tokens of the prompt that were not computed again.
    #[serde(default)]
    pub cached_tokens: u64,
    pub completion_tokens: u64,
}

/// What several requests have taken together.
impl std::ops::AddAssign for TokenUsage {
    fn add_assign(&mut self, other: Self) {
        self.prompt_tokens += other.prompt_tokens;
        self.cached_tokens += other.cached_tokens;
        self.completion_tokens += other.completion_tokens;
    }
}

words! {
    /// What kind of answer tokens were taken for.
    Service {
        Completions = "completions",
        Embeddings = "embeddings",
        Moderations = "moderations",
    }
    /// What usage can be told apart by.
    Dimension {
        Project = "project_id",
        ApiKey = "api_key_id",
        Model = "model",
        Batch = "batch",
    }
}

impl Service {
    /// Those whose tokens cost something.
    pub const CHARGED: [Service; 2] = [Service::Completions, Service::Embeddings];
}

/// Whose requests are counted together: those that began within the same minute.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UsageKey {
    /// Where the minute begins. Unix seconds.
    pub minute_s: i64,
    pub project_id: ProjectId,
    /// `None`: a batch's.
    pub api_key_id: Option<KeyId>,
    /// Its own name, not an alias.
    pub model: String,
    pub service: Service,
    pub is_batch: bool,
}

/// Requests, and what they took together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    pub n_requests: u64,
    pub tokens: TokenUsage,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.n_requests += other.n_requests;
        self.tokens += other.tokens;
    }
}

/// Which usage of an organisation is asked for: of minutes that begin from `from_s` to before `to_s` (Unix seconds), in
/// buckets of `width_s` seconds. An empty list filters nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageQuery {
    pub organization_id: OrganizationId,
    pub from_s: i64,
    pub to_s: i64,
    pub width_s: i64,
    pub projects: Vec<String>,
    pub api_keys: Vec<String>,
    pub models: Vec<String>,
    pub is_batch: Option<bool>,
    /// What is told apart; the rest is added up.
    pub group_by: Vec<Dimension>,
}

/// Usage of one bucket, counted from 0, and of one value of each dimension that is told apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageSum {
    pub bucket: u64,
    pub project_id: Option<String>,
    pub api_key_id: Option<String>,
    pub model: Option<String>,
    pub is_batch: Option<bool>,
    pub tally: Tally,
}

/// Tokens that jobs of one project trained on a base model, in one bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrainedSum {
    pub bucket: u64,
    pub project_id: String,
    pub base_model: String,
    pub n_tokens: u64,
}
