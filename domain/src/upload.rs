//! Uploads: files that come in parts. Each part's bytes lie in the bucket by themselves until the upload is over.

use crate::file::{File, Purpose};
use crate::id::{FileId, PartId, ProjectId, UploadId};
use crate::time::Timestamp;

/// How long an upload takes parts. Seconds.
pub const LIFETIME_S: i64 = 3_600;
/// The largest part: what the SDKs send. Bytes.
pub const MAX_PART_BYTES: u64 = 64 << 20;
/// Most parts of an upload; 8 GiB in parts of full size are 128.
pub const MAX_PARTS: usize = 10_000;

/// What became of an upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UploadState {
    Pending,
    /// Its parts became this file.
    Completed(FileId),
    Cancelled,
}

/// OpenAI's `status`: the state, and whether its time is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UploadStatus {
    Pending,
    Completed,
    Cancelled,
    Expired,
}

impl UploadStatus {
    pub fn as_str(self) -> &'static str {
        match self {
            UploadStatus::Pending => "pending",
            UploadStatus::Completed => "completed",
            UploadStatus::Cancelled => "cancelled",
            UploadStatus::Expired => "expired",
        }
    }
}

/// A file that is announced and comes in parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upload {
    pub id: UploadId,
    pub project_id: ProjectId,
    /// Of the file to be; a display name only.
    pub filename: String,
    pub purpose: Purpose,
    /// What the parts must sum up to.
    pub size_bytes: u64,
    /// How long the file is kept once it is made; `None`: until it is deleted.
    pub file_lifetime_s: Option<i64>,
    pub created_at: Timestamp,
    /// Until when parts are taken.
    pub expires_at: Timestamp,
    pub state: UploadState,
}

impl Upload {
    pub fn status(&self, now: Timestamp) -> UploadStatus {
        match self.state {
            UploadState::Completed(_) => UploadStatus::Completed,
            UploadState::Cancelled => UploadStatus::Cancelled,
            UploadState::Pending if now >= self.expires_at => UploadStatus::Expired,
            UploadState::Pending => UploadStatus::Pending,
        }
    }

    /// The file that its parts make, whose object is whole at `object_key` and has this hash.
    pub fn file(&self, id: FileId, object_key: String, sha256: String, now: Timestamp) -> File {
        File {
            id,
            project_id: self.project_id.clone(),
            filename: self.filename.clone(),
            purpose: self.purpose,
            size_bytes: self.size_bytes,
            sha256,
            object_key,
            created_at: now,
            expires_at: self.file_lifetime_s.map(|seconds| now.plus_s(seconds)),
        }
    }
}

/// A piece of a file; its object is whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadPart {
    pub id: PartId,
    pub upload_id: UploadId,
    pub size_bytes: u64,
    pub object_key: String,
    pub created_at: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_pending_upload_expires() {
        let at = Timestamp::from_unix_s;
        let mut upload = Upload {
            id: UploadId::mint([1; 24]),
            project_id: ProjectId::mint([2; 24]),
            filename: "a.jsonl".to_owned(),
            purpose: Purpose::FineTune,
            size_bytes: 1,
            file_lifetime_s: None,
            created_at: at(0),
            expires_at: at(LIFETIME_S),
            state: UploadState::Pending,
        };
        assert_eq!(upload.status(at(LIFETIME_S - 1)), UploadStatus::Pending);
        assert_eq!(upload.status(at(LIFETIME_S)), UploadStatus::Expired);
        upload.state = UploadState::Completed(FileId::mint([3; 24]));
        assert_eq!(upload.status(at(LIFETIME_S)), UploadStatus::Completed);
        upload.state = UploadState::Cancelled;
        assert_eq!(upload.status(at(LIFETIME_S)), UploadStatus::Cancelled);
    }
}
