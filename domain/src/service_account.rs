//! Service accounts: programs that have keys of their own in a project.

use crate::id::{ProjectId, ServiceAccountId};
use crate::time::Timestamp;
use crate::words::words;

words! {
    /// What a service account is to its project.
    ServiceAccountRole {
        Owner = "owner",
        Member = "member",
        /// Its keys open nothing.
        None = "none",
    }
}

/// A program that has keys of its own in a project.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceAccount {
    pub id: ServiceAccountId,
    pub project_id: ProjectId,
    pub name: String,
    pub role: ServiceAccountRole,
    pub created_at: Timestamp,
}
