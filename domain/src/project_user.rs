//! Members of a project: users of its organisation that were added to it.

use crate::id::ProjectId;
use crate::time::Timestamp;
use crate::user::User;
use crate::words::words;

words! {
    /// What a user is to a project.
    ProjectRole {
        Owner = "owner",
        Member = "member",
    }
}

/// A user, and its membership of one project.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProjectUser {
    pub project_id: ProjectId,
    pub user: User,
    pub role: ProjectRole,
    pub added_at: Timestamp,
}
