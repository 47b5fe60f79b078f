//! An attempt at a job: from the assignment to `finish`, `stopped` or `fail`. It owns the order of things; the device
//! computes, the heart talks to the door meanwhile, and whatever ends the attempt drops this future at an await.

mod checkpoint;
pub(crate) mod config;
mod data;
mod failure;
mod gate;
mod pace;
mod rows;
mod validate;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use domain::message::{Assignment, CheckpointRequest, FailRequest, FinishRequest};
use domain::metrics::StepMetrics;
use domain::model::AdapterRef;
use domain::speed::{DeviceKind, TrainingSpeed};
use domain::time::Timestamp;
use domain::x_training::FrozenWeights;
use engine::batch::Example;
use engine::lora::Adapter;
use engine::train::PreferenceStepReport;
use text::formats::Expected;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use self::checkpoint::Saved;
use self::data::Plan;
use self::failure::Failure;
use self::pace::Pace;
use self::rows::Rows;
use self::validate::ratio;
use crate::adapters::{AdapterError, sha256_hex};
use crate::base_models::Base;
use crate::device::{DeviceError, FirstAdapter, TrainedOn, Training, TrainingRun, TrainingStart};
use crate::door_client::{AttemptDoor, DoorError};
use crate::heart::{Directive, Drop as Dropped, Heart};
use crate::worker::Worker;

/// Interval checkpoints that may fail in a row; the job goes on, but a crash would cost more and more.
const MAX_MISSED_CHECKPOINTS: u32 = 3;
/// How long a worker that shuts down tries to say that it stopped.
const FAREWELL: Duration = Duration::from_secs(20);

/// How an attempt ended well.
enum End {
    Finished,
    Paused,
}

/// Runs an attempt to its end and tells the door. `claimed_at`: just before the claim was sent.
pub(crate) async fn run(worker: &Arc<Worker>, assignment: Assignment, claimed_at: Instant) {
    let door = worker.door.attempt(&assignment.job_id, assignment.attempt);
    let heart = Arc::new(Heart::new(worker, door.clone(), &assignment, claimed_at));
    let _current = Current::set(worker, &assignment, &heart);
    let beating = Arc::clone(&heart);
    let _beats = AbortOnDropHandle::new(tokio::spawn(async move { beating.run().await }));
    let (job, attempt) = (assignment.job_id.clone(), assignment.attempt);
    tracing::info!(%job, attempt, resume = assignment.resume.as_ref().map(|r| r.step), "attempt begins");

    let attempt_to_run = Attempt {
        worker,
        assignment: &assignment,
        heart: &heart,
        door: &door,
    };
    let ended = tokio::select! {
        biased;
        why = heart.dropped() => Err(why),
        end = attempt_to_run.run() => Ok(end),
    };
    let told = match ended {
        Ok(Ok(End::Finished)) => Ok(()),
        Ok(Ok(End::Paused)) | Err(Dropped::Cancelled) => farewell(worker, door.stopped()).await,
        Ok(Err(failure)) => {
            tracing::warn!(%job, attempt, class = ?failure.class, message = failure.error.message, "attempt failed");
            let request = FailRequest {
                class: failure.class,
                error: failure.error,
            };
            farewell(worker, door.fail(&request)).await
        }
        Err(Dropped::Stale) => Err(DoorError::Stale),
    };
    match told {
        Ok(()) => tracing::info!(%job, attempt, "attempt ended"),
        // Without our word the lease runs out, which ends the attempt as well.
        Err(error) => tracing::warn!(%job, attempt, %error, "attempt dropped"),
    }
}

/// Waits for a last call, but not for ever once the process is to end.
async fn farewell<T>(
    worker: &Worker,
    call: impl Future<Output = Result<T, DoorError>>,
) -> Result<(), DoorError> {
    let too_long = async {
        worker.draining.cancelled().await;
        tokio::time::sleep(FAREWELL).await;
    };
    tokio::select! {
        told = call => told.map(|_| ()),
        () = too_long => Err(DoorError::Unavailable("no answer before the shutdown".to_owned())),
    }
}

/// Makes the attempt known to the worker while it runs, so that a broadcast reaches its heart.
struct Current<'a>(&'a Worker);

impl<'a> Current<'a> {
    fn set(worker: &'a Worker, assignment: &Assignment, heart: &Arc<Heart>) -> Self {
        let current = Some((assignment.job_id.clone(), Arc::clone(heart)));
        *worker
            .current
            .lock()
            .expect("no panic while locked — a bug in worker") = current;
        Self(worker)
    }
}

impl Drop for Current<'_> {
    fn drop(&mut self) {
        if let Ok(mut current) = self.0.current.lock() {
            *current = None;
        }
    }
}

/// What the parts of an attempt share.
struct Attempt<'a> {
    worker: &'a Arc<Worker>,
    assignment: &'a Assignment,
    heart: &'a Heart,
    door: &'a AttemptDoor,
}

/// The rows and the trainer of an attempt, between two steps.
struct Session {
    base: Arc<Base>,
    /// How the base's weights are held in this training.
    frozen_weights: FrozenWeights,
    training: Training,
    plan: Plan,
    rows: Rows,
    valid: Rows,
    /// Whether answers are compared with what the reference says of them.
    has_reference: bool,
    evaluated_at_once: usize,
    pace: Pace,
    began_after: u64,
    last_checkpoint_at: Instant,
    missed_checkpoints: u32,
}

impl Attempt<'_> {
    async fn run(&self) -> Result<End, Failure> {
        let mut session = self.prepare().await?;
        let mut step = session.began_after;
        let mut last = StepMetrics {
            step,
            ..StepMetrics::default()
        };
        let mut saved: Option<Saved> = None;
        while step < session.plan.total_steps {
            let directive = self.heart.between_steps().await;
            if directive != Directive::GoOn {
                if step > session.began_after
                    && saved.as_ref().is_none_or(|saved| saved.step < step)
                {
                    self.save(&mut session, None, last).await?;
                }
                return if directive == Directive::Pause {
                    Ok(End::Paused)
                } else {
                    Err(Failure::drain())
                };
            }
            step += 1;
            last = self.step(&mut session, step).await?;
            session.pace.step_ended(last.n_tokens, Instant::now());
            self.heart.measured(last, session.estimated_finish(step));
            let epoch = session.plan.epoch_ended_by(step);
            if epoch.is_some() {
                self.heart.flush().await?;
                saved = Some(self.save(&mut session, epoch, last).await?);
            } else if session.last_checkpoint_at.elapsed() >= self.worker.checkpoint_interval {
                saved = self.save_if_possible(&mut session, last).await?.or(saved);
            }
        }
        let saved = match saved {
            Some(saved) => saved,
            // Resumed after the last step: only the handover was missing.
            None => {
                let epoch = session.plan.epoch_ended_by(step);
                self.save(&mut session, epoch, last).await?
            }
        };
        self.hand_over(&session, saved).await
    }

    /// Everything before the first step.
    async fn prepare(&self) -> Result<Session, Failure> {
        let Assignment {
            hyperparameters,
            seed,
            total_steps,
            ..
        } = self.assignment;
        let training = config::training(self.assignment);
        let base = self
            .worker
            .bases
            .prepare(&self.assignment.base_model)
            .await?;
        let training_file = &self.assignment.training_file;
        let data = &training.data;
        let expected = Expected::of(self.assignment.preference.as_ref(), data);
        let load = |file, param| data::load(self.worker, &base, file, expected, data, param);
        let rows = load(training_file, "training_file").await?;
        let valid = match &self.assignment.validation_file {
            Some(file) => load(file, "validation_file").await?,
            None => Rows::none(),
        };
        let plan = Plan::new(rows.len(), hyperparameters, *seed, *total_steps)?;
        let adapter = match &self.assignment.start {
            Some(start) => {
                let dropout = training.adapter.dropout as f32;
                FirstAdapter::Given(Box::new(
                    self.continued_adapter(start, &base, dropout).await?,
                ))
            }
            None => FirstAdapter::Fresh {
                config: config::lora_config(&training.adapter),
                seed: (*seed).into(),
            },
        };
        let frozen_weights = base.held(training.precision.frozen_weights());
        let config = config::train_config(self.assignment, &training);
        let has_reference = config.keeps_first();
        let asked = self.assignment.preference.as_ref();
        let evaluated_at_once = validate::rows_at_once(asked, plan.batch_size);
        let max_length = data.max_length as usize;
        let start = TrainingStart {
            base: base.folder_as(frozen_weights),
            adapter,
            run: TrainingRun {
                config,
                precision_on_gpu: config::precision_on_gpu(&training),
                memory: config::memory_level(&training),
                longest: rows.longest(max_length).max(valid.longest(max_length)),
                state: self.resume_state().await?,
            },
        };
        let training = self.worker.device.begin_training(start).await;
        let training = training.map_err(|error| match error {
            DeviceError::BadAdapter(reason) => Failure::bad_option("x_training.adapter", reason),
            error => error.into(),
        })?;
        let now = Instant::now();
        Ok(Session {
            base,
            frozen_weights,
            training,
            plan,
            rows,
            valid,
            has_reference,
            evaluated_at_once,
            pace: Pace::default(),
            began_after: self
                .assignment
                .resume
                .as_ref()
                .map_or(0, |resume| resume.step),
            last_checkpoint_at: now,
            missed_checkpoints: 0,
        })
    }

    /// The adapter that the job goes on from, as it is in the bucket.
    async fn continued_adapter(
        &self,
        start: &AdapterRef,
        base: &Base,
        dropout: f32,
    ) -> Result<Adapter, Failure> {
        let adapter = self.worker.adapters.get(start, base).await;
        let adapter = adapter.map_err(|error| match error {
            AdapterError::Unfit(reason) => {
                Failure::bad_option("x_training.adapter.continue_from", reason)
            }
            error => Failure::infra(format!("the adapter to go on from cannot be had: {error}")),
        })?;
        let adapter = Adapter::clone(&adapter).with_lora_dropout(dropout);
        adapter
            .map_err(|error| Failure::bad_option("x_training.adapter.dropout", error.to_string()))
    }

    async fn resume_state(&self) -> Result<Option<Vec<u8>>, Failure> {
        let Some(resume) = &self.assignment.resume else {
            return Ok(None);
        };
        let state = self
            .worker
            .objects
            .get_bytes(&resume.state.object_key)
            .await?;
        let found = sha256_hex(&state);
        if found != resume.state.sha256 {
            let step = resume.step;
            tracing::error!(
                key = resume.state.object_key,
                found,
                "a checkpoint is damaged"
            );
            return Err(Failure::infra(format!(
                "the checkpoint of step {step} is damaged"
            )));
        }
        Ok(Some(state.into()))
    }

    /// One optimizer step, and the validation that is due after it.
    async fn step(&self, session: &mut Session, step: u64) -> Result<StepMetrics, Failure> {
        let places = session.plan.batch(step);
        let (n_rows, on) = (places.len(), session.training.on);
        let failed = |error: DeviceError, longest: usize| match error {
            // A pass has as many tokens there whatever the batch: others have taken the card's memory.
            DeviceError::OutOfMemory(reason) if on == TrainedOn::Gpu => Failure::infra(reason),
            DeviceError::OutOfMemory(_) => Failure::batch_too_large(n_rows, longest),
            DeviceError::Diverged(reason) => Failure::diverged(&reason),
            // A batch of which the context's end leaves nothing to learn.
            DeviceError::BadInput(reason) => Failure::bad_data("training_file", reason),
            error => error.into(),
        };
        let mut measured = match &mut session.rows {
            Rows::Conversations(examples) => {
                let batch: Vec<Example> = places.iter().map(|i| examples[*i].clone()).collect();
                let longest = batch.iter().map(|e| e.tokens.len()).max().unwrap_or(0);
                let report = session.training.step(batch).await;
                let report = report.map_err(|error| failed(error, longest))?;
                StepMetrics {
                    step,
                    train_loss: report.loss.into(),
                    train_mean_token_accuracy: ratio(
                        report.n_correct as f64,
                        report.n_label_tokens,
                    ),
                    n_tokens: report.n_tokens,
                    ..StepMetrics::default()
                }
            }
            Rows::Compared(answers) => {
                let (training, has_reference) = (&session.training, session.has_reference);
                let stepped = async {
                    let batch = answers.choose(training, has_reference, &places).await?;
                    training.step_compared(batch).await
                };
                let stepped = stepped.await;
                let PreferenceStepReport { rows, n_tokens, .. } =
                    stepped.map_err(|error| failed(error, answers.longest(&places)))?;
                StepMetrics {
                    step,
                    train_loss: ratio(rows.loss_sum, rows.n_rows),
                    // Of the rows those that the rewards put right.
                    train_mean_token_accuracy: ratio(rows.n_right as f64, rows.n_rows),
                    n_tokens,
                    ..StepMetrics::default()
                }
            }
        };
        metrics::counter!("luthier_worker_trained_tokens_total").increment(measured.n_tokens);
        metrics::counter!("luthier_worker_training_steps_total").increment(1);
        if session.plan.epoch_ended_by(step).is_some() && session.valid.len() > 0 {
            session
                .validate(step, self.assignment.seed, &mut measured)
                .await?;
        }
        Ok(measured)
    }

    /// Makes a checkpoint: objects, then the row.
    async fn save(
        &self,
        session: &mut Session,
        epoch: Option<u32>,
        metrics: StepMetrics,
    ) -> Result<Saved, Failure> {
        let snapshot = session.training.snapshot().await?;
        let at = checkpoint::At {
            step: metrics.step,
            epoch,
            frozen_weights: session.frozen_weights,
        };
        let saved = checkpoint::save(self.worker, self.assignment, at, snapshot).await?;
        let request = CheckpointRequest {
            step: metrics.step,
            epoch,
            state: saved.state.clone(),
            adapter: saved.adapter.clone(),
            metrics,
        };
        self.heart
            .hear(self.door.checkpoint(&request).await)
            .await?;
        session.last_checkpoint_at = Instant::now();
        session.missed_checkpoints = 0;
        Ok(saved)
    }

    /// As `save`, but a bucket that is away for a while costs only safety.
    async fn save_if_possible(
        &self,
        session: &mut Session,
        metrics: StepMetrics,
    ) -> Result<Option<Saved>, Failure> {
        match self.save(session, None, metrics).await {
            Ok(saved) => Ok(Some(saved)),
            Err(failure) if session.missed_checkpoints < MAX_MISSED_CHECKPOINTS => {
                session.missed_checkpoints += 1;
                session.last_checkpoint_at = Instant::now();
                tracing::warn!(
                    reason = failure.error.message,
                    "an interval checkpoint was missed"
                );
                Ok(None)
            }
            Err(failure) => Err(failure),
        }
    }

    /// From the last checkpoint to `finish`: the adapter is ready to serve before the job succeeds.
    async fn hand_over(&self, session: &Session, saved: Saved) -> Result<End, Failure> {
        self.heart.flush().await?;
        self.heart.hear(self.door.finalizing().await).await?;
        let adapter = self.worker.adapters.read(
            &saved.adapter,
            &saved.adapter_config,
            &saved.adapter_weights,
            &session.base,
        )?;
        let compared = match session.valid.len() {
            0 => session.rows.wanted(),
            _ => session.valid.wanted(),
        };
        gate::check(&session.training, &compared, &adapter).await?;
        // Announces the adapter, so that the API knows where it is the moment the job succeeds.
        self.heart.flush().await?;
        let trained_tokens =
            session.rows.n_tokens() * u64::from(self.assignment.hyperparameters.n_epochs);
        let request = FinishRequest {
            trained_tokens,
            adapter: saved.adapter,
            speed: session.speed(),
        };
        self.heart.hear(self.door.finish(&request).await).await?;
        Ok(End::Finished)
    }
}

impl Session {
    fn speed(&self) -> Option<TrainingSpeed> {
        Some(TrainingSpeed {
            device: match self.training.on {
                TrainedOn::Cpu => DeviceKind::Cpu,
                TrainedOn::Gpu => DeviceKind::Gpu,
            },
            tokens_per_s: self.pace.tokens_per_s()?,
        })
    }

    /// `None`: too early to say.
    fn estimated_finish(&self, step: u64) -> Option<Timestamp> {
        let left_s = self.pace.seconds_for(self.plan.total_steps - step)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
        let finish = now + Duration::try_from_secs_f64(left_s).ok()?;
        i64::try_from(finish.as_micros()).ok().map(Timestamp)
    }
}
