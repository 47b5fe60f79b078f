//! A checkpoint's row, once its objects are proven to be there.

use domain::checkpoint::Checkpoint;
use domain::id::{CheckpointId, base62};
use domain::job::FineTuningJob;
use domain::job_event::JobEvent;
use domain::message::{AttemptReply, CheckpointRequest};
use domain::model::checkpoint_name;
use domain::object_key;
use domain::time::Timestamp;
use metrics::counter;

use super::DoorError;
use super::routes::Named;
use crate::scheduler::Scheduler;

/// The weights of a PEFT adapter in its folder.
const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";
/// Its settings.
const ADAPTER_CONFIG: &str = "adapter_config.json";

impl Scheduler {
    /// Makes the row, so that the checkpoint exists. Safe to repeat.
    /// Errors: `BadRequest` where an object is not the attempt's own, or not there as claimed.
    pub(super) async fn checkpoint(
        &self,
        Named { job: id, attempt }: Named,
        request: CheckpointRequest,
    ) -> Result<AttemptReply, DoorError> {
        let job = self
            .shared
            .store
            .jobs()
            .get_internal(&id)
            .await?
            .ok_or(DoorError::NotFound)?;
        // A stale worker is told so before its objects are looked for: they may be swept already.
        check_current(&job, attempt)?;
        check_claims(&job, attempt, &request)?;
        self.check_objects(&request).await?;
        let now = self.now().await?;
        let step = request.step;
        let checkpoint = row(&job, attempt, request, now);
        let name = checkpoint.name.clone();
        let event = JobEvent::CheckpointSaved {
            attempt,
            checkpoint,
        };
        let reply = self.act(&id, event, now).await?;
        counter!("luthier_checkpoints_total").increment(1);
        tracing::info!(job = %id, attempt, step, name, "checkpoint");
        self.drop_superseded(&id).await;
        Ok(reply)
    }

    async fn check_objects(&self, request: &CheckpointRequest) -> Result<(), DoorError> {
        let folder = &request.adapter.object_prefix;
        let (weights, config) = (
            format!("{folder}/{ADAPTER_WEIGHTS}"),
            format!("{folder}/{ADAPTER_CONFIG}"),
        );
        tokio::try_join!(
            self.check_size(&request.state.object_key, Some(request.state.size_bytes)),
            self.check_size(&weights, Some(request.adapter.size_bytes)),
            self.check_size(&config, None),
        )?;
        Ok(())
    }

    /// The size catches a write that did not end; the hash is checked by whoever reads.
    async fn check_size(&self, key: &str, claimed: Option<u64>) -> Result<(), DoorError> {
        let found = self.shared.objects.size(key).await?;
        match (found, claimed) {
            (None, _) => Err(DoorError::BadRequest(format!(
                "object {key} does not exist"
            ))),
            (Some(found), Some(claimed)) if found != claimed => Err(DoorError::BadRequest(
                format!("object {key} has {found} bytes, not {claimed}"),
            )),
            _ => Ok(()),
        }
    }
}

/// The attempt must be the current one and hold the job.
pub(crate) fn check_current(job: &FineTuningJob, attempt: u32) -> Result<(), DoorError> {
    let current = job.progress().attempt;
    if attempt == current && job.state().is_leased() {
        return Ok(());
    }
    Err(DoorError::StaleAttempt {
        named: attempt,
        current,
    })
}

/// A worker names its own objects only, by the one key they can have.
fn check_claims(
    job: &FineTuningJob,
    attempt: u32,
    request: &CheckpointRequest,
) -> Result<(), DoorError> {
    let CheckpointRequest {
        step,
        epoch,
        state,
        adapter,
        metrics,
    } = request;
    let prefix = object_key::attempt(&job.project_id, &job.id, attempt);
    let total_steps = job.progress().total_steps.unwrap_or(0);
    let n_epochs = job.progress().hyperparameters.map_or(0, |h| h.n_epochs);
    let wrong = |what: String| Err(DoorError::BadRequest(what));
    if !(1..=total_steps).contains(step) {
        return wrong(format!("step {step} is not one of 1 to {total_steps}"));
    }
    if epoch.is_some_and(|epoch| !(1..=n_epochs).contains(&epoch)) {
        return wrong(format!("epoch {epoch:?} is not one of 1 to {n_epochs}"));
    }
    if metrics.step != *step {
        return wrong(format!(
            "metrics of step {} in a checkpoint of step {step}",
            metrics.step
        ));
    }
    if state.object_key != object_key::checkpoint_state(&prefix, *step) {
        return wrong(format!(
            "state {:?} is not this attempt's step {step}",
            state.object_key
        ));
    }
    if adapter.object_prefix != object_key::checkpoint_adapter(&prefix, *step) {
        return wrong(format!(
            "adapter {:?} is not this attempt's step {step}",
            adapter.object_prefix
        ));
    }
    Ok(())
}

fn row(
    job: &FineTuningJob,
    attempt: u32,
    request: CheckpointRequest,
    now: Timestamp,
) -> Checkpoint {
    let CheckpointRequest {
        step,
        epoch,
        state,
        adapter,
        metrics,
    } = request;
    let name = if Some(step) == job.progress().total_steps {
        job.tuned_model_name()
    } else {
        let nonce = base62(&rand::random::<[u8; 8]>());
        let (slug, suffix) = (&job.organization_slug, job.spec.suffix.as_deref());
        checkpoint_name(&job.spec.model, slug, suffix, &nonce, step)
    };
    Checkpoint {
        id: CheckpointId::mint(rand::random()),
        job_id: job.id.clone(),
        attempt,
        step,
        epoch,
        state,
        adapter,
        name,
        metrics,
        created_at: now,
    }
}
