//! The verdict on a new job: its files are good, its hyperparameters are numbers and its project can pay for it, or it fails and
//! every bad line is named.

use domain::dry_run::Plan;
use domain::error::JobError;
use domain::job::FineTuningJob;
use domain::job_event::JobEvent;
use metrics::counter;
use text::report::FileRole;

use super::{NoVerdict, no_such_base};
use crate::error::applied;
use crate::scheduler::Scheduler;

impl Scheduler {
    /// Applies the verdict to the job.
    pub(super) async fn judge(&self, job: &FineTuningJob) -> Result<(), NoVerdict> {
        let verdict = self.verdict(job).await?;
        // One at a time: of two that fit alone, and not together, the second one does not.
        let _judging = self.shared.judging.lock().await;
        let now = self.now().await?;
        let event = self.within_spend_limit(job, verdict, now).await?;
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
        let spec = &job.spec;
        let Some(base) = self.shared.store.base_models().find(&spec.model).await? else {
            return Ok(refused(no_such_base(&spec.model)));
        };
        let training = (FileRole::Training, &spec.training_file);
        let validation = spec.validation_file.as_ref();
        let validation = validation.map(|file| (FileRole::Validation, file));
        let mut read = Vec::new();
        // Both files are read to their ends, so that one failed job names everything there is to mend.
        for (role, file) in std::iter::once(training).chain(validation) {
            let (found, ()) = self.read(spec, &base, role, file, ()).await?;
            read.push((role, file, found));
        }
        let data = spec.training(base.context_length).data;
        let notices = read.iter();
        let notices = notices.flat_map(|(role, _, found)| found.notices(*role, &data));
        let mut errors = read.iter();
        let error = errors.find_map(|(role, file, found)| found.error(*role, file, &spec.method));
        if let Some(error) = error {
            let lines = read.iter();
            let lines = lines.flat_map(|(role, _, found)| found.report.events(*role));
            let details = notices.chain(lines).collect();
            return Ok(JobEvent::ValidationFailed { error, details });
        }
        let (_, _, training) = &read[0];
        let (n_examples, n_tokens) = (training.report.n_examples, training.n_tokens);
        let plan = Plan::new(&spec.method, base.hidden_size, n_examples, n_tokens);
        tracing::info!(
            job = %job.id,
            n_examples,
            n_tokens,
            longest = training.longest,
            n_epochs = plan.hyperparameters.n_epochs,
            batch_size = plan.hyperparameters.batch_size,
            total_steps = plan.total_steps,
            "files are good"
        );
        Ok(JobEvent::Validated {
            hyperparameters: plan.hyperparameters,
            total_steps: plan.total_steps,
            planned_tokens: plan.trained_tokens,
            details: notices.collect(),
        })
    }
}

fn refused(error: JobError) -> JobEvent {
    JobEvent::ValidationFailed {
        error,
        details: Vec::new(),
    }
}
