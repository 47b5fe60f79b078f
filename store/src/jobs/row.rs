//! A job and its row.

use domain::id::{JobId, OrganizationId, ProjectId};
use domain::job::{FineTuningJob, JobState, Progress};
use domain::time::Timestamp;

use crate::convert::{from_json, int, json, optional, unsigned};
use crate::entity::job::Model;
use crate::error::StoreError;

pub fn state(name: &str) -> Result<JobState, StoreError> {
    JobState::parse(name).ok_or_else(|| StoreError::Corrupt(format!("job state {name:?}")))
}

/// The row of `job` after `n_events` events.
pub fn from_domain(job: &FineTuningJob, n_events: i64) -> Result<Model, StoreError> {
    let progress = job.progress();
    Ok(Model {
        id: job.id.to_string(),
        project_id: job.project_id.to_string(),
        organization_id: job.organization_id.to_string(),
        organization_slug: job.organization_slug.clone(),
        model: job.spec.model.clone(),
        training_file: job.spec.training_file.to_string(),
        validation_file: job.spec.validation_file.as_ref().map(ToString::to_string),
        model_nonce: job.model_nonce.clone(),
        spec: json(&job.spec),
        created_at: job.created_at.0,
        state: progress.state.as_str().to_owned(),
        version: int(progress.version)?,
        attempt: i64::from(progress.attempt),
        worker_id: progress.worker_id.as_ref().map(ToString::to_string),
        dispatch_id: progress.dispatch_id.as_ref().map(ToString::to_string),
        state_since: progress.state_since.0,
        lease_until: optional(progress.lease_until),
        not_before: optional(progress.not_before),
        n_events,
        planned_tokens: progress.planned_tokens.map(int).transpose()?,
        progress: json(progress),
    })
}

pub fn to_domain(row: Model) -> Result<FineTuningJob, StoreError> {
    let mut progress: Progress = from_json("jobs.progress", &row.progress)?;
    // Leases are also lengthened in bulk, in the columns alone.
    progress.version = unsigned(row.version)?;
    progress.lease_until = row.lease_until.map(Timestamp);
    if progress.state.as_str() != row.state || i64::from(progress.attempt) != row.attempt {
        return Err(StoreError::Corrupt(format!(
            "job {}: columns and progress disagree",
            row.id
        )));
    }
    Ok(FineTuningJob::from_stored(
        JobId::parse(&row.id)?,
        ProjectId::parse(&row.project_id)?,
        OrganizationId::parse(&row.organization_id)?,
        row.organization_slug,
        from_json("jobs.spec", &row.spec)?,
        row.model_nonce,
        Timestamp(row.created_at),
        progress,
    ))
}
