//! What can happen to a job, and what follows from it.

use crate::attempt::AttemptEnd;
use crate::checkpoint::Checkpoint;
use crate::error::{FailureClass, JobError};
use crate::event::{EventType, Level, NewEvent};
use crate::file::File;
use crate::hyperparameters::ResolvedHyperparameters;
use crate::id::{DispatchId, WorkerId};
use crate::job::{FineTuningJob, JobResult, JobState, Progress};
use crate::metrics::StepMetrics;
use crate::model::TunedModel;
use crate::speed::TrainingSpeed;
use crate::time::Timestamp;
use crate::webhook::WebhookEventType;

/// Lost leases in a row without a newer checkpoint before the job is given up.
pub const MAX_CRASHES_WITHOUT_PROGRESS: u32 = 3;
/// Infra failures in a row without a newer checkpoint before the job is given up.
pub const MAX_FAILURES_WITHOUT_PROGRESS: u32 = 20;

/// What happened. Those with an `attempt` are refused unless it is the current one.
#[derive(Debug, Clone, PartialEq)]
pub enum JobEvent {
    /// Both files are good; the numbers are fixed. `details` become events before the last one.
    Validated {
        hyperparameters: ResolvedHyperparameters,
        total_steps: u64,
        /// The job's `trained_tokens`, if it succeeds.
        planned_tokens: u64,
        details: Vec<NewEvent>,
    },
    /// A file is bad. `details` become events of level error, before the final one.
    ValidationFailed {
        error: JobError,
        details: Vec<NewEvent>,
    },
    /// The scheduler offers the job to the workers of its queue.
    Offered {
        dispatch_id: DispatchId,
    },
    /// Nobody claimed the offer in time.
    OfferExpired {
        dispatch_id: DispatchId,
    },
    /// A worker takes the job. Without a `dispatch_id` it asked the scheduler directly.
    Claimed {
        dispatch_id: Option<DispatchId>,
        worker_id: WorkerId,
        lease_until: Timestamp,
    },
    /// The worker lives; new measurements may come with it.
    Beat {
        attempt: u32,
        lease_until: Timestamp,
        metrics: Vec<StepMetrics>,
        estimated_finish: Option<Timestamp>,
    },
    /// A checkpoint's objects are durable.
    CheckpointSaved {
        attempt: u32,
        checkpoint: Checkpoint,
    },
    /// The last step's checkpoint is durable; only the handover is left.
    Finalizing {
        attempt: u32,
    },
    /// The result is proven.
    Finished {
        attempt: u32,
        result: JobResult,
        model: TunedModel,
        earlier: Vec<TunedModel>,
        result_file: File,
        speed: Option<TrainingSpeed>,
    },
    /// The attempt ended otherwise.
    AttemptFailed {
        attempt: u32,
        class: FailureClass,
        error: JobError,
        retry_backoff_max_s: i64,
    },
    /// The worker stopped because it was asked to (pause or cancel).
    Stopped {
        attempt: u32,
    },
    /// The lease of this attempt ran out.
    LeaseExpired {
        attempt: u32,
        retry_backoff_max_s: i64,
    },
    CancelRequested,
    PauseRequested,
    ResumeRequested,
}

impl JobEvent {
    /// The event's name in a job's history.
    pub fn name(&self) -> &'static str {
        match self {
            JobEvent::Validated { .. } => "validated",
            JobEvent::ValidationFailed { .. } => "validation_failed",
            JobEvent::Offered { .. } => "offered",
            JobEvent::OfferExpired { .. } => "offer_expired",
            JobEvent::Claimed { .. } => "claimed",
            JobEvent::Beat { .. } => "beat",
            JobEvent::CheckpointSaved { .. } => "checkpoint_saved",
            JobEvent::Finalizing { .. } => "finalizing",
            JobEvent::Finished { .. } => "finished",
            JobEvent::AttemptFailed { .. } => "attempt_failed",
            JobEvent::Stopped { .. } => "stopped",
            JobEvent::LeaseExpired { .. } => "lease_expired",
            JobEvent::CancelRequested => "cancel_requested",
            JobEvent::PauseRequested => "pause_requested",
            JobEvent::ResumeRequested => "resume_requested",
        }
    }
}

/// What the transaction that stores the job must also do.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    AppendEvent(NewEvent),
    /// Insert or overwrite the row of this step.
    UpsertMetrics(StepMetrics),
    InsertCheckpoint(Box<Checkpoint>),
    InsertModel(Box<TunedModel>),
    InsertFile(Box<File>),
    /// Exactly one row per job.
    RecordTrainedTokens(u64),
    /// At most one row per job: what later ones may expect.
    RecordSpeed(TrainingSpeed),
    BeginAttempt {
        number: u32,
        worker_id: WorkerId,
    },
    EndAttempt {
        number: u32,
        end: AttemptEnd,
    },
    /// Outbox: offer the job on the queue of its base model.
    PublishOffer {
        dispatch_id: DispatchId,
    },
    /// Outbox: tell the workers at once what the next beat would tell them.
    PublishControl,
    /// Tell the project's endpoints that the job ended.
    RaiseWebhook(WebhookEventType),
}

/// Why an event changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reject {
    /// The caller's attempt is not the current one: it must drop everything.
    #[error("attempt {named} is no longer current (it is {current})")]
    StaleAttempt { named: u32, current: u32 },
    /// The offer was withdrawn or taken.
    #[error("the offer is no longer open")]
    StaleOffer,
    /// The state does not allow it.
    #[error("a job that is {} cannot do this", .0.as_str())]
    WrongState(JobState),
}

type Applied = Result<(FineTuningJob, Vec<Effect>), Reject>;

impl FineTuningJob {
    /// The next job and its effects, or why nothing changes. The version rises by one with every success.
    pub fn apply(&self, event: JobEvent, now: Timestamp) -> Applied {
        let mut next = self.clone();
        next.p.version += 1;
        let mut effects = Vec::new();
        next.advance(event, now, &mut effects)?;
        if next.p.state != self.p.state {
            next.p.state_since = now;
            effects.extend(WebhookEventType::of_job(next.p.state).map(Effect::RaiseWebhook));
        }
        Ok((next, effects))
    }

    fn advance(
        &mut self,
        event: JobEvent,
        now: Timestamp,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Reject> {
        use JobState as S;
        match event {
            JobEvent::Validated {
                hyperparameters,
                total_steps,
                planned_tokens,
                details,
            } => {
                self.expect_state(&[S::Validating])?;
                effects.extend(details.into_iter().map(Effect::AppendEvent));
                self.p.state = S::Queued;
                self.p.hyperparameters = Some(hyperparameters);
                self.p.total_steps = Some(total_steps);
                self.p.planned_tokens = Some(planned_tokens);
                say(effects, "Files validated, moving job to queued state");
            }
            JobEvent::ValidationFailed { error, details } => {
                self.expect_state(&[S::Validating])?;
                effects.extend(details.into_iter().map(Effect::AppendEvent));
                self.fail(error, effects);
            }
            JobEvent::Offered { dispatch_id } => {
                self.expect_state(&[S::Queued])?;
                self.p.state = S::Dispatched;
                self.p.dispatch_id = Some(dispatch_id.clone());
                effects.push(Effect::PublishOffer { dispatch_id });
            }
            JobEvent::OfferExpired { dispatch_id } => {
                self.expect_offer(Some(&dispatch_id))?;
                self.p.state = S::Queued;
                self.p.dispatch_id = None;
            }
            JobEvent::Claimed {
                dispatch_id,
                worker_id,
                lease_until,
            } => {
                self.claim(dispatch_id.as_ref(), worker_id, lease_until, now, effects)?;
            }
            JobEvent::Beat {
                attempt,
                lease_until,
                metrics,
                estimated_finish,
            } => {
                self.expect_attempt(attempt)?;
                self.p.lease_until = Some(lease_until);
                self.p.estimated_finish = estimated_finish.or(self.p.estimated_finish);
                self.measure(metrics, effects);
            }
            JobEvent::CheckpointSaved {
                attempt,
                checkpoint,
            } => {
                self.expect_attempt(attempt)?;
                self.save_checkpoint(checkpoint, effects)?;
            }
            JobEvent::Finalizing { attempt } => {
                self.expect_attempt(attempt)?;
                self.expect_state(&[S::Running, S::Pausing, S::Finalizing])?;
                self.p.state = S::Finalizing;
            }
            JobEvent::Finished {
                attempt,
                result,
                model,
                earlier,
                result_file,
                speed,
            } => {
                self.expect_attempt(attempt)?;
                self.expect_state(&[S::Finalizing])?;
                self.finish(result, model, earlier, result_file, now, effects);
                effects.extend(speed.map(Effect::RecordSpeed));
            }
            JobEvent::AttemptFailed {
                attempt,
                class,
                error,
                retry_backoff_max_s,
            } => {
                self.expect_attempt(attempt)?;
                self.attempt_failed(class, error, retry_backoff_max_s, now, effects);
            }
            JobEvent::Stopped { attempt } => {
                self.expect_attempt(attempt)?;
                self.expect_state(&[S::Pausing, S::Cancelling])?;
                self.stopped(effects);
            }
            JobEvent::LeaseExpired {
                attempt,
                retry_backoff_max_s,
            } => {
                self.expect_attempt(attempt)?;
                if self.p.lease_until.is_some_and(|until| until >= now) {
                    return Err(Reject::WrongState(self.p.state));
                }
                self.lease_expired(retry_backoff_max_s, now, effects);
            }
            JobEvent::CancelRequested => self.request_cancel(effects)?,
            JobEvent::PauseRequested => self.request_pause(effects)?,
            JobEvent::ResumeRequested => {
                self.expect_state(&[S::Paused])?;
                self.p.state = S::Queued;
                say(effects, "Job resumed, moving job to queued state");
            }
        }
        Ok(())
    }

    fn expect_state(&self, allowed: &[JobState]) -> Result<(), Reject> {
        if allowed.contains(&self.p.state) {
            Ok(())
        } else {
            Err(Reject::WrongState(self.p.state))
        }
    }

    /// The attempt must be the current one and still hold the job.
    fn expect_attempt(&self, named: u32) -> Result<(), Reject> {
        if named != self.p.attempt || !self.p.state.is_leased() {
            return Err(Reject::StaleAttempt {
                named,
                current: self.p.attempt,
            });
        }
        Ok(())
    }

    fn expect_offer(&self, named: Option<&DispatchId>) -> Result<(), Reject> {
        let open = self.p.state == JobState::Dispatched && self.p.dispatch_id.as_ref() == named;
        if open {
            Ok(())
        } else {
            Err(Reject::StaleOffer)
        }
    }

    fn claim(
        &mut self,
        dispatch_id: Option<&DispatchId>,
        worker_id: WorkerId,
        lease_until: Timestamp,
        now: Timestamp,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Reject> {
        match dispatch_id {
            Some(_) => self.expect_offer(dispatch_id)?,
            None if matches!(self.p.state, JobState::Queued | JobState::Dispatched) => {}
            None => return Err(Reject::StaleOffer),
        }
        let p = &mut self.p;
        p.state = JobState::Running;
        p.attempt += 1;
        p.dispatch_id = None;
        p.not_before = None;
        p.worker_id = Some(worker_id.clone());
        p.lease_until = Some(lease_until);
        p.checkpoint_step_at_claim = p.checkpoint_step;
        effects.push(Effect::BeginAttempt {
            number: p.attempt,
            worker_id,
        });
        if p.started_at.is_none() {
            p.started_at = Some(now);
            say(effects, "Fine-tuning job started");
        } else {
            say(
                effects,
                format!("Fine-tuning job resuming from step {}", p.checkpoint_step),
            );
        }
        Ok(())
    }

    /// Publishes each step once: a step computed again after a resume overwrites its row, silently.
    fn measure(&mut self, metrics: Vec<StepMetrics>, effects: &mut Vec<Effect>) {
        for m in metrics {
            if m.step > self.p.last_step {
                self.p.last_step = m.step;
                effects.push(Effect::AppendEvent(step_event(
                    &m,
                    self.p.total_steps.unwrap_or(m.step),
                )));
            }
            effects.push(Effect::UpsertMetrics(m));
        }
    }

    fn save_checkpoint(
        &mut self,
        checkpoint: Checkpoint,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Reject> {
        self.expect_state(&[JobState::Running, JobState::Pausing, JobState::Finalizing])?;
        if checkpoint.step <= self.p.checkpoint_step {
            // The reply to the first call was lost: the row is there already.
            return Ok(());
        }
        let p = &mut self.p;
        p.checkpoint_step = checkpoint.step;
        p.failures_without_progress = 0;
        p.crashes_without_progress = 0;
        if checkpoint.epoch.is_some() {
            say(
                effects,
                format!(
                    "Checkpoint created at step {} with Snapshot ID: {}",
                    checkpoint.step, checkpoint.name
                ),
            );
        }
        effects.push(Effect::InsertCheckpoint(Box::new(checkpoint)));
        Ok(())
    }

    fn finish(
        &mut self,
        result: JobResult,
        model: TunedModel,
        earlier: Vec<TunedModel>,
        result_file: File,
        now: Timestamp,
        effects: &mut Vec<Effect>,
    ) {
        say(
            effects,
            format!("New fine-tuned model created: {}", result.fine_tuned_model),
        );
        effects.push(Effect::InsertFile(Box::new(result_file)));
        effects.push(Effect::InsertModel(Box::new(model)));
        effects.extend(
            earlier
                .into_iter()
                .map(|m| Effect::InsertModel(Box::new(m))),
        );
        effects.push(Effect::RecordTrainedTokens(result.trained_tokens));
        self.p.finished_at = Some(now);
        self.p.estimated_finish = None;
        self.p.result = Some(result);
        self.p.state = JobState::Succeeded;
        self.release(AttemptEnd::Succeeded, effects);
        say(effects, "The job has successfully completed");
    }

    fn attempt_failed(
        &mut self,
        class: FailureClass,
        error: JobError,
        backoff_max_s: i64,
        now: Timestamp,
        effects: &mut Vec<Effect>,
    ) {
        if self.end_if_asked_to_stop(effects) {
            return;
        }
        match class {
            FailureClass::User => {
                self.release(AttemptEnd::Failed, effects);
                self.fail(error, effects);
            }
            FailureClass::Drain => {
                self.release(AttemptEnd::Released, effects);
                self.p.state = JobState::Queued;
                say(
                    effects,
                    "The worker is shutting down, moving job to queued state",
                );
            }
            FailureClass::Infra => {
                self.release(AttemptEnd::Failed, effects);
                self.p.failures_without_progress += 1;
                if self.p.failures_without_progress >= MAX_FAILURES_WITHOUT_PROGRESS {
                    self.fail(error, effects);
                } else {
                    let message = format!(
                        "Attempt {} ended early, retrying: {}",
                        self.p.attempt, error.message
                    );
                    effects.push(Effect::AppendEvent(NewEvent::message(Level::Warn, message)));
                    self.requeue(backoff_max_s, now);
                }
            }
        }
    }

    fn lease_expired(&mut self, backoff_max_s: i64, now: Timestamp, effects: &mut Vec<Effect>) {
        self.release(AttemptEnd::Lost, effects);
        match self.p.state {
            JobState::Cancelling => self.cancelled(effects),
            JobState::Pausing => self.paused(effects),
            _ => {
                self.p.failures_without_progress += 1;
                self.p.crashes_without_progress += 1;
                if self.p.crashes_without_progress >= MAX_CRASHES_WITHOUT_PROGRESS {
                    self.fail(crash_loop(self.p.attempt), effects);
                    return;
                }
                let step = self.p.checkpoint_step;
                let message = format!("The worker stopped responding, resuming from step {step}");
                effects.push(Effect::AppendEvent(NewEvent::message(Level::Warn, message)));
                self.requeue(backoff_max_s, now);
            }
        }
    }

    /// Back to the queue after 5 s · 2^k, at most `backoff_max_s`; at once after the first failure.
    fn requeue(&mut self, backoff_max_s: i64, now: Timestamp) {
        let k = self.p.failures_without_progress;
        let wait_s = if k <= 1 {
            0
        } else {
            (5_i64 << (k - 2).min(16)).min(backoff_max_s)
        };
        self.p.not_before = Some(now.plus_s(wait_s));
        self.p.state = JobState::Queued;
    }

    fn request_cancel(&mut self, effects: &mut Vec<Effect>) -> Result<(), Reject> {
        use JobState as S;
        match self.p.state {
            S::Validating | S::Queued | S::Dispatched | S::Paused => self.cancelled(effects),
            // Idempotent while the worker has not answered yet.
            S::Cancelling => {}
            S::Running | S::Finalizing | S::Pausing => {
                self.p.state = S::Cancelling;
                effects.push(Effect::PublishControl);
            }
            S::Succeeded | S::Failed | S::Cancelled => {
                return Err(Reject::WrongState(self.p.state));
            }
        }
        Ok(())
    }

    fn request_pause(&mut self, effects: &mut Vec<Effect>) -> Result<(), Reject> {
        use JobState as S;
        match self.p.state {
            S::Queued | S::Dispatched => self.paused(effects),
            S::Running => {
                self.p.state = S::Pausing;
                effects.push(Effect::PublishControl);
            }
            _ => return Err(Reject::WrongState(self.p.state)),
        }
        Ok(())
    }

    fn stopped(&mut self, effects: &mut Vec<Effect>) {
        if self.p.state == JobState::Pausing {
            self.release(AttemptEnd::Released, effects);
            self.paused(effects);
        } else {
            self.release(AttemptEnd::Cancelled, effects);
            self.cancelled(effects);
        }
    }

    /// A failure while the client waits for a pause or a cancel is that pause or cancel.
    fn end_if_asked_to_stop(&mut self, effects: &mut Vec<Effect>) -> bool {
        let asked = matches!(self.p.state, JobState::Pausing | JobState::Cancelling);
        if asked {
            self.stopped(effects);
        }
        asked
    }

    fn cancelled(&mut self, effects: &mut Vec<Effect>) {
        self.p.state = JobState::Cancelled;
        self.p.dispatch_id = None;
        self.p.estimated_finish = None;
        say(effects, "The job has been cancelled");
    }

    fn paused(&mut self, effects: &mut Vec<Effect>) {
        self.p.state = JobState::Paused;
        self.p.dispatch_id = None;
        self.p.estimated_finish = None;
        say(
            effects,
            format!("The job has been paused at step {}", self.p.checkpoint_step),
        );
    }

    fn fail(&mut self, error: JobError, effects: &mut Vec<Effect>) {
        effects.push(Effect::AppendEvent(NewEvent::message(
            Level::Error,
            error.message.clone(),
        )));
        self.p.state = JobState::Failed;
        self.p.dispatch_id = None;
        self.p.estimated_finish = None;
        self.p.error = Some(error);
    }

    fn release(&mut self, end: AttemptEnd, effects: &mut Vec<Effect>) {
        let Progress {
            attempt,
            lease_until,
            worker_id,
            estimated_finish,
            ..
        } = &mut self.p;
        *lease_until = None;
        *worker_id = None;
        *estimated_finish = None;
        effects.push(Effect::EndAttempt {
            number: *attempt,
            end,
        });
    }
}

fn say(effects: &mut Vec<Effect>, message: impl Into<String>) {
    effects.push(Effect::AppendEvent(NewEvent::info(message)));
}

fn crash_loop(attempt: u32) -> JobError {
    JobError {
        code: "worker_crash_loop".into(),
        message: format!(
            "The worker stopped {MAX_CRASHES_WITHOUT_PROGRESS} times in a row without progress (last attempt: {attempt}). \
             The operator finds the reason in the worker's log."
        ),
        param: None,
    }
}

/// OpenAI's line for a step: two decimals in the text, full numbers in the data.
fn step_event(m: &StepMetrics, total_steps: u64) -> NewEvent {
    let mut message = format!(
        "Step {}/{total_steps}: training loss={:.2}",
        m.step, m.train_loss
    );
    if let Some(loss) = m.valid_loss {
        message += &format!(", validation loss={loss:.2}");
    }
    if let Some(loss) = m.full_valid_loss {
        message += &format!(", full validation loss={loss:.2}");
    }
    let mut data = serde_json::to_value(m).expect("numbers become JSON — a bug in StepMetrics");
    data["total_steps"] = total_steps.into();
    NewEvent {
        level: Level::Info,
        event_type: EventType::Metrics,
        message,
        data,
    }
}
