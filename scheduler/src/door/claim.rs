//! Taking a job: the offered one by its offer, or whichever is next.

use std::pin::pin;
use std::time::Duration;

use domain::base_model::BaseModel;
use domain::file::File;
use domain::id::{DispatchId, JobId};
use domain::job::FineTuningJob;
use domain::job_event::JobEvent;
use domain::message::{Assignment, ClaimReply, ClaimRequest, DatasetRef, ResumePoint};
use domain::object_key;
use metrics::counter;
use tokio::time::Instant;

use super::DoorError;
use crate::error::applied;
use crate::scheduler::{Scheduler, seconds};

/// Longest a call is held. Seconds.
const MAX_WAIT_S: u32 = 60;
/// Other processes queue jobs too and cannot wake us: how often a waiting claim looks. Milliseconds.
const LOOK_AGAIN_MS: u64 = 400;
/// An offer this old did not reach a worker: whoever asks may have the job. Seconds.
const OFFER_GRACE_S: i64 = 5;
/// Candidates tried in a row when other workers are faster.
const CANDIDATES: u64 = 8;

impl Scheduler {
    /// Gives the worker a job, waiting for one if it asks to. `None`: the offer is gone, or there
    /// is nothing to do.
    pub(super) async fn claim(&self, request: ClaimRequest) -> Result<ClaimReply, DoorError> {
        if let Some(offer) = &request.offer {
            let assignment = self
                .take(&request, &offer.job_id, Some(&offer.dispatch_id))
                .await?;
            return Ok(ClaimReply { assignment });
        }
        let deadline = Instant::now() + Duration::from_secs(request.wait_s.min(MAX_WAIT_S).into());
        loop {
            let mut queued = pin!(self.shared.wake.queued.notified());
            // From here on a wake-up is kept, so a job queued during the look is not missed.
            queued.as_mut().enable();
            if self.shared.draining.is_cancelled() {
                return Ok(ClaimReply { assignment: None });
            }
            let assignment = self.take_next(&request).await?;
            if assignment.is_some() || Instant::now() >= deadline {
                return Ok(ClaimReply { assignment });
            }
            let look_again = Instant::now() + Duration::from_millis(LOOK_AGAIN_MS);
            tokio::select! {
                () = queued => {}
                () = tokio::time::sleep_until(look_again.min(deadline)) => {}
                () = self.shared.draining.cancelled() => {}
            }
        }
    }

    /// The fair pick, as for offers; then offers that seem to have been lost.
    async fn take_next(&self, request: &ClaimRequest) -> Result<Option<Assignment>, DoorError> {
        let now = self.now().await?;
        let jobs = self.shared.store.jobs();
        let (bases, running_jobs) = (&request.base_models, self.shared.running_jobs);
        let queued = jobs.queued_fair(now, Some(bases), running_jobs, CANDIDATES);
        for job in &queued.await? {
            if let Some(assignment) = self.take(request, &job.id, None).await? {
                return Ok(Some(assignment));
            }
        }
        for job in jobs
            .offers_older_than(now.plus_s(-OFFER_GRACE_S), CANDIDATES)
            .await?
        {
            if let Some(assignment) = self.take(request, &job.id, None).await? {
                return Ok(Some(assignment));
            }
        }
        Ok(None)
    }

    async fn take(
        &self,
        request: &ClaimRequest,
        id: &JobId,
        offer: Option<&DispatchId>,
    ) -> Result<Option<Assignment>, DoorError> {
        // Everything the answer needs is read first, so that a claim is not made in vain.
        let Some(job) = self.shared.store.jobs().get_internal(id).await? else {
            return Ok(None);
        };
        if !request.base_models.contains(&job.spec.model) {
            return Ok(None);
        }
        let inputs = self.inputs(&job).await?;
        let now = self.now().await?;
        let event = JobEvent::Claimed {
            dispatch_id: offer.cloned(),
            worker_id: request.worker_id.clone(),
            lease_until: self.lease_until(now),
        };
        let Some(job) = applied(self.shared.store.jobs().apply(id, event, now).await)? else {
            counter!("luthier_claims_lost_total").increment(1);
            return Ok(None);
        };
        let resume = self.resume_point(&job).await?;
        counter!("luthier_claims_total").increment(1);
        tracing::info!(
            job = %job.id,
            attempt = job.progress().attempt,
            worker = %request.worker_id,
            resume_step = resume.as_ref().map(|r| r.step),
            "claimed"
        );
        Ok(Some(self.assignment(job, inputs, resume)))
    }

    async fn inputs(&self, job: &FineTuningJob) -> Result<Inputs, DoorError> {
        let store = &self.shared.store;
        let base_model = store
            .base_models()
            .find(&job.spec.model)
            .await?
            .ok_or_else(|| {
                DoorError::Unavailable(format!("base model {} is not installed", job.spec.model))
            })?;
        let training_file = self.dataset(&job.spec.training_file).await?;
        let validation_file = match &job.spec.validation_file {
            Some(id) => Some(self.dataset(id).await?),
            None => None,
        };
        Ok(Inputs {
            base_model,
            training_file,
            validation_file,
        })
    }

    async fn dataset(&self, id: &domain::id::FileId) -> Result<DatasetRef, DoorError> {
        let file = self.shared.store.files().find_for_job(id).await?;
        let File {
            object_key,
            sha256,
            size_bytes,
            ..
        } = file.ok_or_else(|| DoorError::Internal(format!("the row of {id} is gone")))?;
        Ok(DatasetRef {
            object_key,
            sha256,
            size_bytes,
        })
    }

    /// Read after the claim: from then on only this attempt writes checkpoints.
    async fn resume_point(&self, job: &FineTuningJob) -> Result<Option<ResumePoint>, DoorError> {
        let latest = self.shared.store.checkpoints().latest(&job.id).await?;
        Ok(latest.map(|checkpoint| ResumePoint {
            step: checkpoint.step,
            state: checkpoint.state,
        }))
    }

    fn assignment(
        &self,
        job: FineTuningJob,
        inputs: Inputs,
        resume: Option<ResumePoint>,
    ) -> Assignment {
        let progress = job.progress();
        let x_training = job.spec.x_training.as_ref();
        let validated = "a job is queued only once validated — a bug in FineTuningJob::apply";
        Assignment {
            attempt: progress.attempt,
            object_prefix: object_key::attempt(&job.project_id, &job.id, progress.attempt),
            base_model: inputs.base_model,
            training_file: inputs.training_file,
            validation_file: inputs.validation_file,
            hyperparameters: progress.hyperparameters.expect(validated),
            total_steps: progress.total_steps.expect(validated),
            seed: job.spec.seed,
            resume,
            training: x_training.map(|x| x.resolved.clone()),
            start: x_training.and_then(|x| x.start.clone()),
            preference: job.spec.method.preference(),
            lease_ttl_s: u32::try_from(seconds(self.shared.config.lease_ttl_s)).unwrap_or(u32::MAX),
            job_id: job.id,
        }
    }
}

/// What a worker reads for a job, besides a checkpoint.
struct Inputs {
    base_model: BaseModel,
    training_file: DatasetRef,
    validation_file: Option<DatasetRef>,
}
