//! Invitations to an organisation.

use serde::{Deserialize, Serialize};

use crate::id::{InviteId, OrganizationId, ProjectId};
use crate::project_user::ProjectRole;
use crate::time::Timestamp;
use crate::user::OrganizationRole;
use crate::words::words;

words! {
    /// What became of an invitation.
    InviteStatus {
        Pending = "pending",
        Expired = "expired",
    }
}

/// How long an invitation can be accepted. Seconds.
pub const INVITE_LIFETIME_S: i64 = 7 * 86_400;

/// Somebody was asked to join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invite {
    pub id: InviteId,
    pub organization_id: OrganizationId,
    /// In lower case.
    pub email: String,
    pub role: OrganizationRole,
    pub projects: Vec<InvitedProject>,
    pub created_at: Timestamp,
    pub expires_at: Timestamp,
}

/// A membership that comes with accepting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InvitedProject {
    pub id: ProjectId,
    pub role: ProjectRole,
}

impl Invite {
    pub fn status(&self, now: Timestamp) -> InviteStatus {
        if self.expires_at <= now {
            InviteStatus::Expired
        } else {
            InviteStatus::Pending
        }
    }
}
