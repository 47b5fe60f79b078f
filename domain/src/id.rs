//! Identifiers: one type per noun, spelled as OpenAI spells them. Clients treat them as opaque.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Random bytes for one identifier; the caller draws them.
pub type Entropy = [u8; 24];

const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// Spells `bytes` in base 62, one character a byte (5.9 bits each).
pub fn base62(bytes: &[u8]) -> String {
    bytes
        .iter()
        .map(|b| BASE62[usize::from(*b) % BASE62.len()] as char)
        .collect()
}

/// The text does not begin as an identifier of its kind does, or holds characters none of ours has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a {kind}: {text:?}")]
pub struct InvalidId {
    pub kind: &'static str,
    pub text: String,
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident = $prefix:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            pub const PREFIX: &'static str = $prefix;

            /// A new identifier from the caller's randomness: about 142 bits.
            pub fn mint(entropy: Entropy) -> Self {
                Self(format!("{}{}", $prefix, base62(&entropy)))
            }

            /// Judges a text from outside. At most 80 characters of `[A-Za-z0-9_-]` after the prefix.
            pub fn parse(text: &str) -> Result<Self, InvalidId> {
                let fits = text.strip_prefix($prefix).is_some_and(|rest| {
                    (1..=80).contains(&rest.len())
                        && rest.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
                });
                if fits {
                    Ok(Self(text.to_owned()))
                } else {
                    let text = text.chars().take(80).collect();
                    Err(InvalidId { kind: stringify!($name), text })
                }
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )*};
}

ids! {
    /// An organisation: who pays.
    OrganizationId = "org-";
    /// A project: who owns every file, job and tuned model.
    ProjectId = "proj_";
    /// An API key, not its secret.
    KeyId = "key_";
    /// A person of an organisation.
    UserId = "user-";
    /// A program that has keys of its own in a project.
    ServiceAccountId = "svc_acct_";
    /// An invitation to an organisation.
    InviteId = "invite-";
    /// One entry of the audit log.
    AuditLogId = "audit_log-";
    /// A project's permission to use another project's model.
    CheckpointPermissionId = "cp_";
    /// An uploaded or produced file.
    FileId = "file-";
    /// A file that comes in parts.
    UploadId = "upload_";
    /// A part of an upload.
    PartId = "part_";
    /// A fine-tuning job.
    JobId = "ftjob-";
    /// A job that is judged and never made.
    DryRunId = "dryrun_";
    /// One line of a job's public story.
    EventId = "ftevent-";
    /// A checkpoint of a job.
    CheckpointId = "ftckpt_";
    /// An adapter that a client brought.
    AdapterId = "adapter-";
    /// One offer of a job to the workers; a claim must name the current one.
    DispatchId = "disp_";
    /// A worker process, new at each start.
    WorkerId = "worker_";
    /// Where a project hears of what happened.
    WebhookEndpointId = "we_";
    /// A signing secret of an endpoint, as a row; not the secret.
    WebhookSecretId = "wkey_";
    /// Something that happened.
    WebhookEventId = "evt_";
    /// One event on its way to one endpoint.
    WebhookDeliveryId = "wh_";
    /// One HTTP request.
    RequestId = "req_";
    /// A batch of requests.
    BatchId = "batch_";
    /// One request of a batch.
    BatchRequestId = "batch_req_";
    /// One chat completion.
    ChatCompletionId = "chatcmpl-";
    /// One response.
    ResponseId = "resp_";
    /// One completion of texts.
    CompletionId = "cmpl-";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minted_id_parses_and_another_kind_does_not() {
        let id = FileId::mint([7; 24]);
        assert_eq!(FileId::parse(id.as_str()), Ok(id.clone()));
        assert!(JobId::parse(id.as_str()).is_err());
        assert_eq!(id.as_str().len(), "file-".len() + 24);
    }

    #[test]
    fn text_that_could_leave_its_place_is_no_id() {
        for text in [
            "file-",
            "file-../../x",
            "file-a b",
            "file-a\r\nX: y",
            "ftjob-a",
            &format!("file-{}", "x".repeat(81)),
        ] {
            assert!(FileId::parse(text).is_err(), "{text:?}");
        }
    }
}
