//! Who owns what: an organisation holds projects, a project holds everything else.

use crate::id::{OrganizationId, ProjectId};
use crate::model_permissions::ModelPermissions;
use crate::time::Timestamp;

/// An organisation. `slug` appears in the names of tuned models and must hold no `:`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Organization {
    pub id: OrganizationId,
    pub name: String,
    pub slug: String,
    pub created_at: Timestamp,
}

/// Whether a slug can stand in the names of tuned models, which are divided by `:`.
pub fn is_valid_slug(slug: &str) -> bool {
    let is_known = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let begins = slug.starts_with(|c: char| c.is_ascii_lowercase());
    begins && slug.len() <= 40 && slug.chars().all(is_known)
}

/// A project of an organisation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Project {
    pub id: ProjectId,
    pub organization_id: OrganizationId,
    pub organization_slug: String,
    pub name: String,
    pub created_at: Timestamp,
    /// Set: it is closed for good.
    pub archived_at: Option<Timestamp>,
    /// `None`: it may name every model.
    pub model_permissions: Option<ModelPermissions>,
    pub caps: Caps,
}

/// How much a project may take beside what its rate limits say. `None`: what the installation says, or as much as it likes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Caps {
    /// In a calendar month (UTC). US cents; the installation sets none.
    pub spend_limit_cents: Option<u64>,
    /// Of its files, and of the parts of uploads that are not over. Bytes.
    pub stored_bytes: Option<u64>,
    /// Fine-tuning jobs that have not ended, at least 1.
    pub unfinished_jobs: Option<u64>,
    /// Fine-tuning jobs that workers have, or are offered, at the same time; at least 1.
    pub running_jobs: Option<u64>,
}

impl Caps {
    /// US dollars in a month.
    pub fn spend_limit(&self) -> Option<f64> {
        self.spend_limit_cents.map(|cents| cents as f64 / 100.0)
    }
}
