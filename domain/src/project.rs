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
}
