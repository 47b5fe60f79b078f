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
