//! What administrators did. Each entry is chained to the one before by its hash, so that one that is changed or taken
//! out later is noticed.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::id::{AuditLogId, KeyId, OrganizationId, ProjectId, UserId};
use crate::time::Timestamp;
use crate::words::words;

words! {
    /// What happened, by OpenAI's names.
    AuditKind {
        ApiKeyCreated = "api_key.created",
        ApiKeyDeleted = "api_key.deleted",
        CheckpointPermissionCreated = "checkpoint.permission.created",
        CheckpointPermissionDeleted = "checkpoint.permission.deleted",
        InviteSent = "invite.sent",
        InviteDeleted = "invite.deleted",
        ProjectCreated = "project.created",
        ProjectUpdated = "project.updated",
        ProjectArchived = "project.archived",
        RateLimitUpdated = "rate_limit.updated",
        ServiceAccountCreated = "service_account.created",
        ServiceAccountUpdated = "service_account.updated",
        ServiceAccountDeleted = "service_account.deleted",
        UserAdded = "user.added",
        UserUpdated = "user.updated",
        UserDeleted = "user.deleted",
    }
}

/// What was done, to what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AuditEvent {
    pub kind: AuditKind,
    pub resource_id: String,
    /// An object: `data` or `changes_requested`, as OpenAI shows it beside the id; never a secret.
    pub details: Value,
}

/// Who did it: the holder of an admin key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actor {
    pub key_id: KeyId,
    /// Whose key it is, where it is somebody's.
    pub user: Option<ActorUser>,
    /// Where the request came from.
    pub ip: String,
}

/// A user as it was then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActorUser {
    pub id: UserId,
    pub email: String,
}

/// A project as it was then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditProject {
    pub id: ProjectId,
    pub name: String,
}

/// One entry. Its fields and their order are what the hash is taken of: a new one is added at the end, and left out of
/// the JSON where it says nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AuditEntry {
    pub id: AuditLogId,
    pub organization_id: OrganizationId,
    pub effective_at: Timestamp,
    /// `None`: the operator, on the command line.
    pub actor: Option<Actor>,
    /// The project it was done in.
    pub project: Option<AuditProject>,
    pub event: AuditEvent,
}

/// The hash of entry number `seq` (the first is 1): hex SHA-256 over the hash of the one before, the number and the
/// entry's JSON. The first one has an empty hash before it.
pub fn link(before: &str, seq: u64, entry: &AuditEntry) -> String {
    let json = serde_json::to_string(&(before, seq, entry));
    let json = json.expect("plain data becomes JSON — a bug in AuditEntry");
    let digest = Sha256::digest(json.as_bytes());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_hash_is_of_everything() {
        let entry = AuditEntry {
            id: AuditLogId::mint([1; 24]),
            organization_id: OrganizationId::mint([2; 24]),
            effective_at: Timestamp(3),
            actor: None,
            project: None,
            event: AuditEvent {
                kind: AuditKind::ProjectCreated,
                resource_id: "proj_a".to_owned(),
                details: json!({"data": {"name": "a"}}),
            },
        };
        let hash = link("", 1, &entry);
        // Written once: logs that were kept by an earlier version are checked by later ones.
        assert_eq!(
            hash,
            "733fbbfa41bbd8c7fa9d1ac3271eba0ee023ca31335f98cbb5094bc7bb873908"
        );
        let mut other = entry.clone();
        other.event.details = json!({"data": {"name": "b"}});
        for changed in [
            link("a", 1, &entry),
            link("", 2, &entry),
            link("", 1, &other),
        ] {
            assert_ne!(changed, hash);
        }
    }
}
