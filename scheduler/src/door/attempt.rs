//! The calls of a running attempt. Each is one event for the job; the answer says what to do next.

use domain::error::FailureClass;
use domain::id::JobId;
use domain::job::{FineTuningJob, JobState};
use domain::job_event::{JobEvent, Reject};
use domain::message::{AttemptReply, BeatRequest, Desired, FailRequest, HelloReply, HelloRequest};
use domain::time::Timestamp;
use domain::worker::WorkerStatus;
use metrics::counter;
use store::ApplyError;

use super::DoorError;
use super::routes::Named;
use crate::scheduler::Scheduler;

impl Scheduler {
    /// A worker is there; it learns which base models are installed.
    pub(super) async fn hello(&self, request: HelloRequest) -> Result<HelloReply, DoorError> {
        let now = self.now().await?;
        self.shared
            .store
            .workers()
            .upsert(&request.status, now)
            .await?;
        Ok(HelloReply {
            base_models: self.shared.store.base_models().list().await?,
        })
    }

    /// Renews the lease and publishes what was measured.
    pub(super) async fn beat(
        &self,
        Named { job, attempt }: Named,
        request: BeatRequest,
    ) -> Result<AttemptReply, DoorError> {
        let BeatRequest {
            status,
            metrics,
            estimated_finish,
        } = request;
        let now = self.now().await?;
        let lease_until = self.lease_until(now);
        let event = JobEvent::Beat {
            attempt,
            lease_until,
            metrics,
            estimated_finish,
        };
        let reply = self.act(&job, event, now).await;
        self.see(&status, now).await;
        reply
    }

    /// The last step's checkpoint is durable; only the handover is left.
    pub(super) async fn finalizing(
        &self,
        Named { job, attempt }: Named,
    ) -> Result<AttemptReply, DoorError> {
        let now = self.now().await?;
        let reply = self
            .act(&job, JobEvent::Finalizing { attempt }, now)
            .await?;
        tracing::info!(%job, attempt, "finalizing");
        Ok(reply)
    }

    /// The attempt ends without a result.
    pub(super) async fn fail(
        &self,
        Named { job, attempt }: Named,
        request: FailRequest,
    ) -> Result<AttemptReply, DoorError> {
        let FailRequest { class, error } = request;
        let now = self.now().await?;
        let code = error.code.clone();
        let retry_backoff_max_s = self.retry_backoff_max_s();
        let event = JobEvent::AttemptFailed {
            attempt,
            class,
            error,
            retry_backoff_max_s,
        };
        let next = self.applied(&job, event, now).await?;
        counter!("luthier_attempts_failed_total", "class" => class_name(class)).increment(1);
        let (class, state) = (class_name(class), next.state().as_str());
        tracing::warn!(%job, attempt, class, code, state, "attempt failed");
        Ok(reply_in(next.state()))
    }

    /// The worker stopped as it was told to.
    pub(super) async fn stopped(
        &self,
        Named { job, attempt }: Named,
    ) -> Result<AttemptReply, DoorError> {
        let now = self.now().await?;
        let next = self
            .applied(&job, JobEvent::Stopped { attempt }, now)
            .await?;
        tracing::info!(%job, attempt, state = next.state().as_str(), "stopped");
        Ok(reply_in(next.state()))
    }

    /// Applies `event`. A job that is to stop answers so instead of refusing.
    pub(crate) async fn act(
        &self,
        job: &JobId,
        event: JobEvent,
        now: Timestamp,
    ) -> Result<AttemptReply, DoorError> {
        match self.shared.store.jobs().apply(job, event, now).await {
            Ok(next) => {
                self.announce(&next);
                Ok(reply_in(next.state()))
            }
            Err(ApplyError::Rejected(Reject::WrongState(
                state @ (JobState::Cancelling | JobState::Pausing),
            ))) => Ok(reply_in(state)),
            Err(error) => Err(error.into()),
        }
    }

    async fn applied(
        &self,
        job: &JobId,
        event: JobEvent,
        now: Timestamp,
    ) -> Result<FineTuningJob, DoorError> {
        let next = self.shared.store.jobs().apply(job, event, now).await?;
        self.announce(&next);
        Ok(next)
    }

    /// Where the worker answers chats is a hint for the API: losing it costs the job nothing.
    async fn see(&self, status: &WorkerStatus, now: Timestamp) {
        if let Err(error) = self.shared.store.workers().upsert(status, now).await {
            tracing::warn!(worker = %status.worker_id, %error, "worker not recorded");
        }
    }
}

/// What a worker on a job in this state is to do.
fn reply_in(state: JobState) -> AttemptReply {
    let desired = match state {
        JobState::Pausing => Desired::Pause,
        JobState::Cancelling => Desired::Cancel,
        _ => Desired::GoOn,
    };
    AttemptReply { desired }
}

fn class_name(class: FailureClass) -> &'static str {
    match class {
        FailureClass::User => "user",
        FailureClass::Infra => "infra",
        FailureClass::Drain => "drain",
    }
}
