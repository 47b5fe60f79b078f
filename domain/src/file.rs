//! Files: what a client uploaded or a job produced. The bytes live in the bucket, the truth in the row.

use serde::{Deserialize, Serialize};

use crate::id::{FileId, ProjectId};
use crate::time::Timestamp;

/// What a file is for, with OpenAI's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Purpose {
    #[serde(rename = "assistants")]
    Assistants,
    #[serde(rename = "batch")]
    Batch,
    #[serde(rename = "fine-tune")]
    FineTune,
    #[serde(rename = "vision")]
    Vision,
    #[serde(rename = "user_data")]
    UserData,
    #[serde(rename = "evals")]
    Evals,
    /// Produced by a job; clients cannot upload it.
    #[serde(rename = "fine-tune-results")]
    FineTuneResults,
    /// Produced by a batch; clients cannot upload it.
    #[serde(rename = "batch_output")]
    BatchOutput,
}

impl Purpose {
    /// The purposes a client may give at upload, in OpenAI's order.
    pub const UPLOADABLE: [Purpose; 6] = [
        Purpose::FineTune,
        Purpose::Assistants,
        Purpose::Batch,
        Purpose::UserData,
        Purpose::Vision,
        Purpose::Evals,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Purpose::Assistants => "assistants",
            Purpose::Batch => "batch",
            Purpose::FineTune => "fine-tune",
            Purpose::Vision => "vision",
            Purpose::UserData => "user_data",
            Purpose::Evals => "evals",
            Purpose::FineTuneResults => "fine-tune-results",
            Purpose::BatchOutput => "batch_output",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::UPLOADABLE
            .into_iter()
            .chain([Purpose::FineTuneResults, Purpose::BatchOutput])
            .find(|p| p.as_str() == text)
    }

    /// The largest file of this purpose, where the purpose itself has a limit. Bytes.
    pub fn max_bytes(self) -> Option<u64> {
        (self == Purpose::Batch).then_some(200 << 20)
    }

    /// Whether each line is a JSON object of its own, as the name's ending must say.
    pub fn is_jsonl(self) -> bool {
        matches!(self, Purpose::FineTune | Purpose::Batch)
    }

    /// How long a file is kept that nobody asked to keep for longer or shorter; `None`: until it is deleted. Seconds.
    pub fn lifetime_s(self) -> Option<i64> {
        (self == Purpose::Batch).then_some(30 * 24 * 3600)
    }

    /// OpenAI lets clients read back only what they train on or what jobs and batches produced.
    pub fn is_downloadable(self) -> bool {
        matches!(
            self,
            Purpose::FineTune
                | Purpose::Batch
                | Purpose::Evals
                | Purpose::FineTuneResults
                | Purpose::BatchOutput
        )
    }
}

/// A complete file: its object exists and has this hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    pub id: FileId,
    pub project_id: ProjectId,
    /// A display name only; never part of a path.
    pub filename: String,
    pub purpose: Purpose,
    pub size_bytes: u64,
    pub sha256: String,
    pub object_key: String,
    pub created_at: Timestamp,
    pub expires_at: Option<Timestamp>,
}

/// Seconds a client may give in `expires_after[seconds]`.
pub const EXPIRES_AFTER_S: std::ops::RangeInclusive<i64> = 3_600..=2_592_000;
