//! Judging a new job's files: every row is read, rendered and tokenized as training will do it, so
//! that what passes here trains. A file that cannot be reached is tried again, never held against
//! the job.

mod check;

use std::collections::HashMap;

use domain::base_model::BaseModel;
use domain::error::JobError;
use domain::file::File;
use domain::id::{FileId, JobId};
use domain::job::FineTuningJob;
use domain::job_event::JobEvent;
use domain::method::Method;
use domain::time::Timestamp;
use metrics::counter;
use platform::objects::ObjectsError;
use store::StoreError;
use text::formats::RowFormat;
use text::report::FileRole;
use tokio::task::JoinHandle;

use crate::base_text::BaseTextError;
use crate::error::{PassError, applied};
use crate::scheduler::Scheduler;
use check::{Checked, check};

/// Jobs validated at a time; each keeps one core busy.
pub(crate) const AT_A_TIME: usize = 2;
/// Jobs looked at in a pass.
const BATCH: u64 = 64;
/// First wait after the surroundings failed; doubled each time, up to [`MAX_RETRY_S`]. Seconds.
const RETRY_S: i64 = 2;
/// Seconds.
const MAX_RETRY_S: i64 = 60;

/// Where this process stands with a job that is to be validated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Validation {
    /// `n_failures`: how often the surroundings failed before.
    Running { n_failures: u32 },
    /// Not before `at`.
    Retry { at: Timestamp, n_failures: u32 },
}

/// By job. Two schedulers may validate the same job; the slower one's verdict is refused.
pub(crate) type Validations = HashMap<JobId, Validation>;

/// Why there is no verdict yet.
#[derive(Debug, thiserror::Error)]
enum NoVerdict {
    #[error("store: {0}")]
    Store(#[from] StoreError),
    #[error("objects: {0}")]
    Objects(#[from] ObjectsError),
    #[error("{0}")]
    BaseText(#[from] BaseTextError),
    #[error("the row of {0} is gone")]
    NoFile(FileId),
    #[error("reading {file}: {reason}")]
    Read { file: FileId, reason: String },
}

impl Scheduler {
    /// Validates the jobs that are due and waits for the verdicts. Returns how many were started.
    pub async fn validate_pass(&self) -> Result<usize, PassError> {
        let mut n_started = 0;
        loop {
            let started = self.start_validations().await?;
            if started.is_empty() {
                return Ok(n_started);
            }
            n_started += started.len();
            for task in started {
                task.await
                    .expect("a validation does not panic — a bug in validate");
            }
        }
    }

    /// Starts as many validations as there is room for; they end by themselves.
    pub(crate) async fn start_validations(&self) -> Result<Vec<JoinHandle<()>>, PassError> {
        let mut started = Vec::new();
        if self.shared.draining.is_cancelled() {
            return Ok(started);
        }
        let now = self.now().await?;
        let jobs = self.shared.store.jobs().validating(BATCH).await?;
        let mut validations = self.validations();
        validations.retain(|id, validation| {
            matches!(validation, Validation::Running { .. }) || jobs.iter().any(|job| job.id == *id)
        });
        for job in jobs {
            let n_running = validations
                .values()
                .filter(|v| matches!(v, Validation::Running { .. }))
                .count();
            let n_failures = match validations.get(&job.id) {
                _ if n_running >= AT_A_TIME => break,
                None => 0,
                Some(Validation::Retry { at, n_failures }) if *at <= now => *n_failures,
                Some(_) => continue,
            };
            validations.insert(job.id.clone(), Validation::Running { n_failures });
            started.push(tokio::spawn(self.clone().run_validation(job, n_failures)));
        }
        Ok(started)
    }

    fn validations(&self) -> std::sync::MutexGuard<'_, Validations> {
        self.shared
            .validations
            .lock()
            .expect("no holder panics — a bug in validate")
    }

    async fn run_validation(self, job: FineTuningJob, n_failures: u32) {
        let mut mark = Mark {
            scheduler: &self,
            job: &job.id,
            next: None,
        };
        let Err(error) = self.validate(&job).await else {
            return;
        };
        let wait_s = (RETRY_S << n_failures.min(10)).min(MAX_RETRY_S);
        tracing::warn!(job = %job.id, %error, wait_s, "validation postponed");
        mark.next = self.now().await.ok().map(|now| Validation::Retry {
            at: now.plus_s(wait_s),
            n_failures: n_failures + 1,
        });
    }

    async fn validate(&self, job: &FineTuningJob) -> Result<(), NoVerdict> {
        let event = self.verdict(job).await?;
        let now = self.now().await?;
        let Some(next) = applied(self.shared.store.jobs().apply(&job.id, event, now).await)? else {
            tracing::info!(job = %job.id, "verdict came too late");
            return Ok(());
        };
        let (state, error) = (next.state().as_str(), next.progress().error.as_ref());
        counter!("luthier_validations_total", "state" => state).increment(1);
        let code = error.map(|error| error.code.as_str());
        tracing::info!(job = %job.id, state, code, "validated");
        self.announce(&next);
        Ok(())
    }

    async fn verdict(&self, job: &FineTuningJob) -> Result<JobEvent, NoVerdict> {
        let base = self
            .shared
            .store
            .base_models()
            .find(&job.spec.model)
            .await?;
        let Some(base) = base else {
            return Ok(refused(no_such_base(&job.spec.model)));
        };
        let training = self.check_file(job, &base, FileRole::Training, &job.spec.training_file);
        let training = training.await?;
        let validation = match &job.spec.validation_file {
            Some(id) => Some(
                self.check_file(job, &base, FileRole::Validation, id)
                    .await?,
            ),
            None => None,
        };
        let checked: Vec<&Checked> = std::iter::once(&training).chain(&validation).collect();
        let notices = checked.iter().flat_map(|checked| checked.notices.clone());
        // Both files are read to their ends, so that one failed job names everything there is to mend.
        if let Some(error) = checked.iter().find_map(|checked| checked.error.clone()) {
            let lines = checked.iter().flat_map(|checked| checked.events.clone());
            let details = notices.chain(lines).collect();
            return Ok(JobEvent::ValidationFailed { error, details });
        }
        let n_examples = training.n_examples;
        let hyperparameters = job.spec.method.resolve(n_examples, base.hidden_size);
        let steps_per_epoch = n_examples.div_ceil(hyperparameters.batch_size.into());
        let total_steps = u64::from(hyperparameters.n_epochs) * steps_per_epoch;
        tracing::info!(
            job = %job.id,
            n_examples,
            n_tokens = training.n_tokens,
            longest = training.longest,
            n_epochs = hyperparameters.n_epochs,
            batch_size = hyperparameters.batch_size,
            total_steps,
            "files are good"
        );
        Ok(JobEvent::Validated {
            hyperparameters,
            total_steps,
            details: notices.collect(),
        })
    }

    /// Reads one file to its end, off the threads that answer the door.
    async fn check_file(
        &self,
        job: &FineTuningJob,
        base: &BaseModel,
        role: FileRole,
        id: &FileId,
    ) -> Result<Checked, NoVerdict> {
        let file = self.shared.store.files().find_for_job(id).await?;
        let File { object_key, .. } = file.ok_or_else(|| NoVerdict::NoFile(id.clone()))?;
        let model = self.shared.base_texts.get(base).await?;
        let body = self.shared.objects.get(&object_key).await?;
        let format = row_format(&job.spec.method);
        let (file_id, method) = (id.to_string(), job.spec.method.name());
        let data = job.spec.training(base.context_length).data;
        let stop = self.shared.draining.clone();
        let checking = platform::on_own_thread("validation", move || {
            check(body, format, &model, &data, &stop)
                .map(|found| found.judge(role, &file_id, method, &data))
        });
        let failed = |reason: String| NoVerdict::Read {
            file: id.clone(),
            reason,
        };
        checking
            .await
            .map_err(|error| failed(error.to_string()))?
            .map_err(|error| failed(error.to_string()))
    }
}

/// Replaces the job's mark when its validation ends, however it ends.
struct Mark<'a> {
    scheduler: &'a Scheduler,
    job: &'a JobId,
    next: Option<Validation>,
}

impl Drop for Mark<'_> {
    fn drop(&mut self) {
        let mut validations = self.scheduler.validations();
        match self.next.take() {
            Some(next) => validations.insert(self.job.clone(), next),
            None => validations.remove(self.job),
        };
        drop(validations);
        self.scheduler.shared.wake.validated.notify_one();
    }
}

fn row_format(method: &Method) -> RowFormat {
    match method {
        Method::Supervised { .. } => RowFormat::Chat,
        Method::Dpo { .. } => RowFormat::Preference,
    }
}

fn refused(error: JobError) -> JobEvent {
    JobEvent::ValidationFailed {
        error,
        details: Vec::new(),
    }
}

fn no_such_base(name: &str) -> JobError {
    JobError {
        code: "model_not_available".to_owned(),
        message: format!("Model {name} is not available for fine-tuning or does not exist."),
        param: Some("model".to_owned()),
    }
}
