//! The end of a good job: the result file, then one transaction that makes everything visible.

use bytes::Bytes;
use domain::checkpoint::{Checkpoint, VISIBLE_CHECKPOINTS};
use domain::file::{File, Purpose};
use domain::id::{FileId, JobId};
use domain::job::{FineTuningJob, JobResult, JobState};
use domain::job_event::JobEvent;
use domain::message::{AttemptReply, Desired, FinishRequest};
use domain::metrics::StepMetrics;
use domain::model::TunedModel;
use domain::object_key;
use domain::time::Timestamp;
use metrics::counter;
use sha2::{Digest, Sha256};

use crate::door::{DoorError, check_current};
use crate::scheduler::Scheduler;

/// The name clients see, as at OpenAI.
const RESULT_FILENAME: &str = "step_metrics.csv";

impl Scheduler {
    /// Publishes the result. Safe to repeat, after success too.
    /// Errors: `BadRequest` where the last step has no checkpoint with this adapter.
    pub(crate) async fn finish(
        &self,
        id: JobId,
        attempt: u32,
        request: FinishRequest,
    ) -> Result<AttemptReply, DoorError> {
        let store = &self.shared.store;
        let job = store
            .jobs()
            .get_internal(&id)
            .await?
            .ok_or(DoorError::NotFound)?;
        if is_finished(&job, attempt) {
            return Ok(AttemptReply {
                desired: Desired::GoOn,
            });
        }
        check_current(&job, attempt)?;
        if job.state() == JobState::Cancelling {
            return Ok(AttemptReply {
                desired: Desired::Cancel,
            });
        }
        let checkpoints = store.checkpoints().all(&id).await?;
        let last = last_checkpoint(&job, &checkpoints, &request)?;
        let now = self.now().await?;
        let result_file = self.put_result_file(&job, attempt, now).await?;
        let event = finished(
            &job,
            attempt,
            &request,
            last,
            &checkpoints,
            result_file,
            now,
        );
        let reply = self.act(&id, event, now).await;
        self.settle(&id, attempt, reply).await
    }

    /// Two calls of the same worker may race; the slower one finds the job finished by the other.
    async fn settle(
        &self,
        id: &JobId,
        attempt: u32,
        reply: Result<AttemptReply, DoorError>,
    ) -> Result<AttemptReply, DoorError> {
        let jobs = self.shared.store.jobs();
        match reply {
            Ok(reply) if reply.desired == Desired::GoOn => {
                counter!("luthier_jobs_succeeded_total").increment(1);
                tracing::info!(job = %id, attempt, "succeeded");
                self.drop_superseded(id).await;
                Ok(reply)
            }
            Err(DoorError::StaleAttempt { .. })
                if jobs
                    .get_internal(id)
                    .await?
                    .is_some_and(|job| is_finished(&job, attempt)) =>
            {
                Ok(AttemptReply {
                    desired: Desired::GoOn,
                })
            }
            reply => reply,
        }
    }

    /// Puts the object of the result file. Its id follows from the job and the attempt, so that a
    /// repeated call replaces the object, and another attempt's call never does.
    async fn put_result_file(
        &self,
        job: &FineTuningJob,
        attempt: u32,
        now: Timestamp,
    ) -> Result<File, DoorError> {
        let metrics = self.shared.store.metrics().list(&job.id).await?;
        let id = result_file_id(&job.id, attempt);
        let object_key = object_key::file(&job.project_id, &id);
        let csv = Bytes::from(result_csv(&metrics));
        let stored = self.shared.objects.put_bytes(&object_key, csv).await?;
        Ok(File {
            id,
            project_id: job.project_id.clone(),
            filename: RESULT_FILENAME.to_owned(),
            purpose: Purpose::FineTuneResults,
            size_bytes: stored.size_bytes,
            sha256: stored.sha256,
            object_key,
            created_at: now,
            expires_at: None,
        })
    }
}

fn is_finished(job: &FineTuningJob, attempt: u32) -> bool {
    job.state() == JobState::Succeeded && job.progress().attempt == attempt
}

fn result_file_id(job: &JobId, attempt: u32) -> FileId {
    let digest = Sha256::digest(format!("result file of {job}, attempt {attempt}"));
    let mut entropy = [0; 24];
    entropy.copy_from_slice(&digest[..24]);
    FileId::mint(entropy)
}

/// The checkpoint of the last step. An attempt that resumed there holds the same adapter under a
/// prefix of its own: the hash decides, and the row says where it is.
fn last_checkpoint<'a>(
    job: &FineTuningJob,
    checkpoints: &'a [Checkpoint],
    request: &FinishRequest,
) -> Result<&'a Checkpoint, DoorError> {
    let total_steps = job.progress().total_steps.unwrap_or(0);
    let last = checkpoints
        .iter()
        .find(|checkpoint| checkpoint.step == total_steps)
        .ok_or_else(|| DoorError::BadRequest(format!("step {total_steps} has no checkpoint")))?;
    if last.adapter.sha256 != request.adapter.sha256 {
        let (given, stored) = (&request.adapter.sha256, &last.adapter.sha256);
        let reason = format!("adapter {given} is not that of step {total_steps} ({stored})");
        return Err(DoorError::BadRequest(reason));
    }
    Ok(last)
}

fn finished(
    job: &FineTuningJob,
    attempt: u32,
    request: &FinishRequest,
    last: &Checkpoint,
    checkpoints: &[Checkpoint],
    result_file: File,
    now: Timestamp,
) -> JobEvent {
    let model = |checkpoint: &Checkpoint| TunedModel {
        name: checkpoint.name.clone(),
        project_id: job.project_id.clone(),
        job_id: Some(job.id.clone()),
        base_model: job.spec.model.clone(),
        adapter: checkpoint.adapter.clone(),
        owned_by: job.organization_slug.clone(),
        created_at: now,
    };
    let mut visible: Vec<&Checkpoint> = checkpoints.iter().filter(|c| c.epoch.is_some()).collect();
    visible.sort_by_key(|checkpoint| std::cmp::Reverse(checkpoint.step));
    visible.truncate(VISIBLE_CHECKPOINTS);
    JobEvent::Finished {
        attempt,
        result: JobResult {
            fine_tuned_model: job.tuned_model_name(),
            trained_tokens: request.trained_tokens,
            result_file: result_file.id.clone(),
        },
        model: model(last),
        earlier: visible
            .into_iter()
            .filter(|c| c.step != last.step)
            .map(model)
            .collect(),
        result_file,
        speed: request.speed,
    }
}

/// OpenAI's columns; a cell is empty where nothing was measured. `metrics` ordered by step.
fn result_csv(metrics: &[StepMetrics]) -> String {
    fn cell(value: Option<f64>) -> String {
        value.map(|value| value.to_string()).unwrap_or_default()
    }
    let mut csv =
        String::from("step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy\n");
    for m in metrics {
        csv += &format!(
            "{},{},{},{},{}\n",
            m.step,
            m.train_loss,
            m.train_mean_token_accuracy,
            cell(m.valid_loss),
            cell(m.valid_mean_token_accuracy),
        );
    }
    csv
}
