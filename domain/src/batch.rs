//! Batches: files of requests that are answered beside the live ones, and the one state machine of a batch.

use serde::{Deserialize, Serialize};

use crate::id::{BatchId, FileId, ProjectId};
use crate::time::Timestamp;
use crate::usage::TokenUsage;

/// Most requests of one batch.
pub const MAX_REQUESTS: u64 = 50_000;
/// The only window there is: after it nothing more of the batch is begun. Seconds.
pub const COMPLETION_WINDOW_S: i64 = 24 * 3600;

macro_rules! endpoints {
    ($($name:ident = $path:literal,)*) => {
        /// The route that every request of a batch is for.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        pub enum BatchEndpoint {
            $(#[serde(rename = $path)] $name,)*
        }

        impl BatchEndpoint {
            pub const ALL: &'static [BatchEndpoint] = &[$(BatchEndpoint::$name),*];
            /// Their paths, in the same order.
            pub const PATHS: &'static [&'static str] = &[$($path),*];

            pub fn as_str(self) -> &'static str {
                match self {
                    $(BatchEndpoint::$name => $path,)*
                }
            }
        }
    };
}

endpoints! {
    ChatCompletions = "/v1/chat/completions",
    Completions = "/v1/completions",
    Responses = "/v1/responses",
    Embeddings = "/v1/embeddings",
}

impl BatchEndpoint {
    pub fn parse(path: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|e| e.as_str() == path)
    }
}

/// Where a batch stands, in OpenAI's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BatchStatus {
    Validating,
    Failed,
    InProgress,
    /// No request is begun any more; the files are being written.
    Finalizing,
    Completed,
    Expired,
    /// As `Finalizing`, because the client wants it.
    Cancelling,
    Cancelled,
}

impl BatchStatus {
    pub const ALL: [BatchStatus; 8] = [
        BatchStatus::Validating,
        BatchStatus::Failed,
        BatchStatus::InProgress,
        BatchStatus::Finalizing,
        BatchStatus::Completed,
        BatchStatus::Expired,
        BatchStatus::Cancelling,
        BatchStatus::Cancelled,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            BatchStatus::Validating => "validating",
            BatchStatus::Failed => "failed",
            BatchStatus::InProgress => "in_progress",
            BatchStatus::Finalizing => "finalizing",
            BatchStatus::Completed => "completed",
            BatchStatus::Expired => "expired",
            BatchStatus::Cancelling => "cancelling",
            BatchStatus::Cancelled => "cancelled",
        }
    }

    /// Nothing follows.
    pub fn is_over(self) -> bool {
        use BatchStatus::*;
        matches!(self, Failed | Completed | Expired | Cancelled)
    }
}

/// What was asked for; never changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchSpec {
    pub endpoint: BatchEndpoint,
    pub input_file: FileId,
    pub metadata: Option<Vec<(String, String)>>,
    /// How long the files that the batch writes are kept; `None`: until they are deleted. Seconds.
    pub output_expires_after_s: Option<i64>,
}

/// Why a batch failed: something about its input file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LineError {
    pub code: String,
    pub message: String,
    pub param: Option<String>,
    /// From 1; `None`: the file as a whole.
    pub line: Option<u32>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestCounts {
    /// 0 until the input is validated.
    pub total: u64,
    /// Answered with 200.
    pub completed: u64,
    /// Answered with anything else.
    pub failed: u64,
}

/// When a batch reached each of its states.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moments {
    pub in_progress_at: Option<Timestamp>,
    pub finalizing_at: Option<Timestamp>,
    pub completed_at: Option<Timestamp>,
    pub failed_at: Option<Timestamp>,
    pub expired_at: Option<Timestamp>,
    pub cancelling_at: Option<Timestamp>,
    pub cancelled_at: Option<Timestamp>,
}

/// Everything about a batch that changes, and only by [`Batch::apply`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    pub status: BatchStatus,
    /// The model that all requests name, once they are validated.
    pub model: Option<String>,
    pub errors: Vec<LineError>,
    pub counts: RequestCounts,
    pub usage: TokenUsage,
    /// Requests that were answered with 200; `None`: there are none.
    pub output_file: Option<FileId>,
    /// The others; `None`: there are none.
    pub error_file: Option<FileId>,
    pub moments: Moments,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    pub id: BatchId,
    pub project_id: ProjectId,
    pub spec: BatchSpec,
    pub created_at: Timestamp,
    /// When the completion window closes.
    pub expires_at: Timestamp,
    pub progress: Progress,
}

/// What happens to a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BatchEvent {
    /// Every line of the input can be asked.
    Validated {
        total: u64,
        model: String,
    },
    /// The input is not what it must be.
    Refused {
        errors: Vec<LineError>,
    },
    /// So many more requests were answered.
    Answered {
        completed: u64,
        failed: u64,
        usage: TokenUsage,
    },
    /// All are answered, or the window is over.
    Closed,
    CancelRequested,
    /// The files are whole.
    Finished {
        output_file: Option<FileId>,
        error_file: Option<FileId>,
    },
}

/// What happened cannot happen to a batch that stands here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the batch is {}", .0.as_str())]
pub struct WrongStatus(pub BatchStatus);

impl Batch {
    pub fn new(id: BatchId, project_id: ProjectId, spec: BatchSpec, now: Timestamp) -> Self {
        Self {
            id,
            project_id,
            spec,
            created_at: now,
            expires_at: now.plus_s(COMPLETION_WINDOW_S),
            progress: Progress {
                status: BatchStatus::Validating,
                model: None,
                errors: Vec::new(),
                counts: RequestCounts::default(),
                usage: TokenUsage::default(),
                output_file: None,
                error_file: None,
                moments: Moments::default(),
            },
        }
    }

    pub fn status(&self) -> BatchStatus {
        self.progress.status
    }

    /// The batch after `event`. Errors: its status does not allow that; a cancellation that is under way may be asked
    /// for again.
    pub fn apply(&self, event: BatchEvent, now: Timestamp) -> Result<Self, WrongStatus> {
        use BatchStatus::*;
        let mut next = self.clone();
        let p = &mut next.progress;
        let (status, moments) = (self.status(), &mut p.moments);
        match (event, status) {
            (BatchEvent::Validated { total, model }, Validating) => {
                p.status = InProgress;
                p.model = Some(model);
                p.counts.total = total;
                moments.in_progress_at = Some(now);
            }
            (BatchEvent::Refused { errors }, Validating) => {
                p.status = Failed;
                p.errors = errors;
                moments.failed_at = Some(now);
            }
            (
                BatchEvent::Answered {
                    completed,
                    failed,
                    usage,
                },
                InProgress | Cancelling,
            ) => {
                p.counts.completed += completed;
                p.counts.failed += failed;
                p.usage += usage;
            }
            (BatchEvent::Closed, InProgress) => {
                p.status = Finalizing;
                moments.finalizing_at = Some(now);
            }
            (BatchEvent::CancelRequested, Validating | InProgress) => {
                p.status = Cancelling;
                moments.cancelling_at = Some(now);
            }
            (BatchEvent::CancelRequested, Cancelling) => {}
            (
                BatchEvent::Finished {
                    output_file,
                    error_file,
                },
                Finalizing | Cancelling,
            ) => {
                p.output_file = output_file;
                p.error_file = error_file;
                let is_whole = p.counts.completed + p.counts.failed == p.counts.total;
                let (end, at) = match (status, is_whole) {
                    (Cancelling, _) => (Cancelled, &mut moments.cancelled_at),
                    (_, true) => (Completed, &mut moments.completed_at),
                    (_, false) => (Expired, &mut moments.expired_at),
                };
                p.status = end;
                *at = Some(now);
            }
            _ => return Err(WrongStatus(status)),
        }
        Ok(next)
    }
}

/// In which of the batch's files a request's outcome goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BatchFile {
    /// Answered with 200.
    Output,
    Error,
}

/// The outcome of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchResult {
    /// Of the input, from 1.
    pub line: u32,
    pub file: BatchFile,
    /// The line of that file: JSON without a line break.
    pub body: String,
    pub usage: TokenUsage,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch() -> Batch {
        let spec = BatchSpec {
            endpoint: BatchEndpoint::ChatCompletions,
            input_file: FileId::mint([1; 24]),
            metadata: None,
            output_expires_after_s: None,
        };
        Batch::new(
            BatchId::mint([2; 24]),
            ProjectId::mint([3; 24]),
            spec,
            Timestamp(0),
        )
    }

    fn events() -> [(&'static str, BatchEvent); 6] {
        let (usage, model) = (TokenUsage::default(), "m".to_owned());
        let answered = BatchEvent::Answered {
            completed: 1,
            failed: 1,
            usage,
        };
        let finished = BatchEvent::Finished {
            output_file: Some(FileId::mint([4; 24])),
            error_file: None,
        };
        [
            ("validated", BatchEvent::Validated { total: 2, model }),
            ("refused", BatchEvent::Refused { errors: vec![] }),
            ("answered", answered),
            ("closed", BatchEvent::Closed),
            ("cancel", BatchEvent::CancelRequested),
            ("finished", finished),
        ]
    }

    fn walk(names: &[&str]) -> Result<Batch, WrongStatus> {
        names.iter().try_fold(batch(), |batch, name| {
            let found = events().into_iter().find(|(known, _)| known == name);
            batch.apply(found.unwrap().1, Timestamp(1))
        })
    }

    #[test]
    fn a_batch_ends_as_it_went() {
        for (names, end) in [
            (
                &["validated", "answered", "closed", "finished"][..],
                "completed",
            ),
            (&["validated", "closed", "finished"], "expired"),
            (&["refused"], "failed"),
            (&["cancel", "cancel", "finished"], "cancelled"),
            (
                &["validated", "cancel", "answered", "finished"],
                "cancelled",
            ),
        ] {
            let ended = walk(names).unwrap();
            assert_eq!(ended.status().as_str(), end, "{names:?}");
            assert!(ended.status().is_over());
        }
    }

    #[test]
    fn what_its_status_does_not_allow_changes_nothing() {
        for names in [
            &["answered"][..],
            &["closed"],
            &["finished"],
            &["validated", "refused"],
            &["validated", "finished"],
            &["validated", "closed", "answered"],
            &["validated", "closed", "cancel"],
            &["cancel", "validated"],
            &["refused", "cancel"],
            &["cancel", "finished", "cancel"],
        ] {
            assert!(walk(names).is_err(), "{names:?}");
        }
    }

    #[test]
    fn an_endpoint_is_stored_by_its_path() {
        for (endpoint, path) in BatchEndpoint::ALL.iter().zip(BatchEndpoint::PATHS) {
            assert_eq!(BatchEndpoint::parse(path), Some(*endpoint));
            assert_eq!(serde_json::to_value(endpoint).unwrap(), **path);
        }
        assert_eq!(BatchEndpoint::parse("/v1/moderations"), None);
    }
}
