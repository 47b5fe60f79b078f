//! Where bytes live in the bucket. Keys are made of ids and numbers, never of text a client chose.

use crate::id::{AdapterId, FileId, JobId, PartId, ProjectId, UploadId};

/// The bytes of an uploaded or produced file.
pub fn file(project: &ProjectId, file: &FileId) -> String {
    format!("projects/{project}/files/{file}")
}

/// The bytes of a part of an upload.
pub fn upload_part(project: &ProjectId, upload: &UploadId, part: &PartId) -> String {
    format!("projects/{project}/uploads/{upload}/{part}")
}

/// Everything one attempt of a job writes; a stale attempt can only leave orphans under its own prefix.
pub fn attempt(project: &ProjectId, job: &JobId, attempt: u32) -> String {
    format!("projects/{project}/jobs/{job}/attempts/{attempt}")
}

/// The trainer's full state after `step`.
pub fn checkpoint_state(attempt_prefix: &str, step: u64) -> String {
    format!("{attempt_prefix}/step-{step}/state.safetensors")
}

/// The folder of the PEFT adapter after `step`: `adapter_config.json` and `adapter_model.safetensors`.
pub fn checkpoint_adapter(attempt_prefix: &str, step: u64) -> String {
    format!("{attempt_prefix}/step-{step}/adapter")
}

/// The folder of an adapter that a client brought; it holds what that of a trained one holds.
pub fn adapter(project: &ProjectId, adapter: &AdapterId) -> String {
    format!("projects/{project}/adapters/{adapter}")
}

/// The folder of a base model, named by the hash of its manifest so that two versions never mix.
pub fn base_model(name: &str, sha256: &str) -> String {
    format!("base-models/{name}/{sha256}")
}
