//! Judging the files of new jobs, and of orders that are to be judged only: every row is read, rendered and tokenized as
//! training will do it, so that what passes here trains. A file that cannot be reached is tried again, never held against
//! the job.

mod body;
mod doctor;
mod dry_run;
mod job;
mod spend_limit;

use std::collections::HashMap;
use std::num::NonZeroUsize;

use domain::base_model::BaseModel;
use domain::dry_run::DryRun;
use domain::error::JobError;
use domain::file::File;
use domain::id::{DryRunId, FileId, JobId, ProjectId};
use domain::job::{FineTuningJob, JobSpec};
use domain::time::Timestamp;
use platform::objects::ObjectsError;
use store::StoreError;
use text::check::{Found, See, check};
use text::formats::Expected;
use text::report::FileRole;
use tokio::task::JoinHandle;

use self::body::Blocking;
use crate::base_text::BaseTextError;
use crate::error::PassError;
use crate::scheduler::Scheduler;

/// Jobs validated at a time, and dry runs made; each may keep every core busy. Neither waits for the other.
pub(crate) const AT_A_TIME: usize = 2;
/// Jobs looked at in a pass.
const BATCH: u64 = 64;
/// First wait after the surroundings failed; doubled each time, up to [`MAX_RETRY_S`]. Seconds.
const RETRY_S: i64 = 2;
/// Seconds.
const MAX_RETRY_S: i64 = 60;

/// Where this process stands with what is to be validated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Validation {
    /// `n_failures`: how often the surroundings failed before.
    Running { n_failures: u32 },
    /// Not before `at`.
    Retry { at: Timestamp, n_failures: u32 },
}

/// Two schedulers may validate the same; the slower one's verdict is refused.
pub(crate) type Validations = HashMap<WorkId, Validation>;

/// What is to be validated.
enum Work {
    Job(Box<FineTuningJob>),
    DryRun(Box<DryRun>),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum WorkId {
    Job(JobId),
    DryRun(ProjectId, DryRunId),
}

impl Work {
    fn id(&self) -> WorkId {
        match self {
            Work::Job(job) => WorkId::Job(job.id.clone()),
            Work::DryRun(dry_run) => WorkId::DryRun(dry_run.project_id.clone(), dry_run.id.clone()),
        }
    }

    fn name(&self) -> &str {
        match self {
            Work::Job(job) => job.id.as_str(),
            Work::DryRun(dry_run) => dry_run.id.as_str(),
        }
    }
}

/// Why there is no verdict yet.
#[derive(Debug, thiserror::Error)]
enum NoVerdict {
    #[error("store: {0}")]
    Store(#[from] StoreError),
    #[error("objects: {0}")]
    Objects(#[from] ObjectsError),
    #[error("{0}")]
    BaseText(#[from] BaseTextError),
    #[error("the row of {file} is gone")]
    NoFile { role: FileRole, file: FileId },
    #[error("reading {file}: {reason}")]
    Read { file: FileId, reason: String },
}

impl Scheduler {
    /// Validates what is due and waits for the verdicts. Returns how many were started.
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
        if self.shared.draining.is_cancelled() {
            return Ok(Vec::new());
        }
        let now = self.now().await?;
        let due = self.due().await?;
        let mut validations = self.validations();
        validations.retain(|id, validation| {
            matches!(validation, Validation::Running { .. })
                || due.iter().any(|work| work.id() == *id)
        });
        let mut started = Vec::new();
        for work in due {
            let id = work.id();
            let n_failures = match validations.get(&id) {
                None => 0,
                Some(Validation::Retry { at, n_failures }) if *at <= now => *n_failures,
                Some(_) => continue,
            };
            if has_room(&validations, &id) {
                validations.insert(id, Validation::Running { n_failures });
                started.push(tokio::spawn(self.clone().run_validation(work, n_failures)));
            }
        }
        Ok(started)
    }

    /// Everything that waits for a verdict, oldest first of its kind.
    async fn due(&self) -> Result<Vec<Work>, PassError> {
        let jobs = self.shared.store.jobs().validating(BATCH).await?;
        let dry_runs = self.shared.store.dry_runs().unfinished(BATCH).await?;
        let jobs = jobs.into_iter().map(|job| Work::Job(Box::new(job)));
        let dry_runs = dry_runs.into_iter();
        let dry_runs = dry_runs.map(|dry_run| Work::DryRun(Box::new(dry_run)));
        Ok(jobs.chain(dry_runs).collect())
    }

    fn validations(&self) -> std::sync::MutexGuard<'_, Validations> {
        self.shared
            .validations
            .lock()
            .expect("no holder panics — a bug in validate")
    }

    async fn run_validation(self, work: Work, n_failures: u32) {
        let mut mark = Mark {
            scheduler: &self,
            id: work.id(),
            next: None,
        };
        let judged = match &work {
            Work::Job(job) => self.judge(job).await,
            Work::DryRun(dry_run) => self.report_on(dry_run).await,
        };
        let Err(error) = judged else {
            return;
        };
        let wait_s = (RETRY_S << n_failures.min(10)).min(MAX_RETRY_S);
        tracing::warn!(id = work.name(), %error, wait_s, "validation postponed");
        mark.next = self.now().await.ok().map(|now| Validation::Retry {
            at: now.plus_s(wait_s),
            n_failures: n_failures + 1,
        });
    }

    /// Reads one file to its end, off the threads that answer the door, and shows `see` its good rows.
    async fn read<S: See + Send + 'static>(
        &self,
        spec: &JobSpec,
        base: &BaseModel,
        role: FileRole,
        id: &FileId,
        mut see: S,
    ) -> Result<(Found, S), NoVerdict> {
        let file = self.shared.store.files().find_for_job(id).await?;
        let gone = || NoVerdict::NoFile {
            role,
            file: id.clone(),
        };
        let File { object_key, .. } = file.ok_or_else(gone)?;
        let model = self.shared.base_texts.get(base).await?;
        let body = self.shared.objects.get(&object_key).await?;
        let data = spec.training(base.context_length).data;
        let expected = Expected::of(spec.method.preference().as_ref(), &data);
        let body = Blocking::new(body, self.shared.draining.clone());
        let n_threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        let checking = platform::on_own_thread("validation", move || {
            let found = check(body, expected, &model, &data, n_threads, &mut see)?;
            Ok::<_, std::io::Error>((found, see))
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

/// Whether one more may run. Of a project's dry runs one runs at a time, so that others get their turn.
fn has_room(validations: &Validations, id: &WorkId) -> bool {
    let running = validations.iter();
    let running = running.filter(|(_, v)| matches!(v, Validation::Running { .. }));
    let of_jobs = |id: &WorkId| matches!(id, WorkId::Job(_));
    let same_kind = running.filter(|(other, _)| of_jobs(other) == of_jobs(id));
    let same_kind: Vec<&WorkId> = same_kind.map(|(other, _)| other).collect();
    let is_same_project = |other: &&WorkId| match (other, id) {
        (WorkId::DryRun(theirs, _), WorkId::DryRun(project, _)) => theirs == project,
        _ => false,
    };
    same_kind.len() < AT_A_TIME && !same_kind.iter().any(is_same_project)
}

/// Replaces the mark of what is validated when that ends, however it ends.
struct Mark<'a> {
    scheduler: &'a Scheduler,
    id: WorkId,
    next: Option<Validation>,
}

impl Drop for Mark<'_> {
    fn drop(&mut self) {
        let mut validations = self.scheduler.validations();
        match self.next.take() {
            Some(next) => validations.insert(self.id.clone(), next),
            None => validations.remove(&self.id),
        };
        drop(validations);
        self.scheduler.shared.wake.validated.notify_one();
    }
}

fn no_such_base(name: &str) -> JobError {
    JobError {
        code: "model_not_available".to_owned(),
        message: format!("Model {name} is not available for fine-tuning or does not exist."),
        param: Some("model".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_and_dry_runs_have_places_of_their_own_and_projects_take_turns() {
        let running = Validation::Running { n_failures: 0 };
        let job = |n: u8| WorkId::Job(JobId::mint([n; 24]));
        let dry_run = |project: u8, n: u8| {
            WorkId::DryRun(ProjectId::mint([project; 24]), DryRunId::mint([n; 24]))
        };
        let mut validations: Validations = HashMap::new();
        let mut start = |id: WorkId| {
            let room = has_room(&validations, &id);
            if room {
                validations.insert(id, running);
            }
            room
        };
        assert!(start(job(1)) && start(job(2)) && !start(job(3)));
        assert!(start(dry_run(1, 1)) && !start(dry_run(1, 2)));
        assert!(start(dry_run(2, 3)) && !start(dry_run(3, 4)));
    }
}
