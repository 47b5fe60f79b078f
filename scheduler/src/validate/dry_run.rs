//! The report on a dry run: its files are judged as a job's, and looked at more closely.

use domain::dry_run::{DryRun, Plan, Report};
use domain::error::JobError;
use text::report::FileRole;

use super::doctor::Doctor;
use super::{NoVerdict, no_such_base};
use crate::scheduler::Scheduler;

impl Scheduler {
    /// Writes the report into the row.
    pub(super) async fn report_on(&self, dry_run: &DryRun) -> Result<(), NoVerdict> {
        let report = match self.report(dry_run).await {
            // No job pins these files: they may go while they are read.
            Err(NoVerdict::NoFile { role, .. }) => Report {
                error: Some(file_gone(role)),
                ..Report::default()
            },
            report => report?,
        };
        let code = report.error.as_ref().map(|error| error.code.as_str());
        tracing::info!(dry_run = %dry_run.id, code, "reported on");
        let finished = self.shared.store.dry_runs().finish(&dry_run.id, &report);
        if !finished.await? {
            tracing::info!(dry_run = %dry_run.id, "report came too late");
        }
        Ok(())
    }

    async fn report(&self, dry_run: &DryRun) -> Result<Report, NoVerdict> {
        let spec = &dry_run.spec;
        let found = self.shared.store.base_models().find(&spec.model).await?;
        let Some(base) = found else {
            return Ok(Report {
                error: Some(no_such_base(&spec.model)),
                ..Report::default()
            });
        };
        let (role, file) = (FileRole::Training, &spec.training_file);
        let (found, doctor) = self.read(spec, &base, role, file, Doctor::new()).await?;
        let mut error = found.error(role, file, &spec.method);
        let (training, rows) = doctor.report(&found);
        let mut report = Report::default();
        if let Some(file) = &spec.validation_file {
            let role = FileRole::Validation;
            let doctor = Doctor::beside(rows);
            let (found, doctor) = self.read(spec, &base, role, file, doctor).await?;
            error = error.or_else(|| found.error(role, file, &spec.method));
            report.leaked = doctor.leaked();
            report.validation = Some(doctor.report(&found).0);
        }
        if error.is_none() {
            let (n_examples, n_tokens) = (training.n_examples, training.n_tokens);
            report.plan = Some(Plan::new(
                &spec.method,
                base.hidden_size,
                n_examples,
                n_tokens,
            ));
        }
        report.training = Some(training);
        report.error = error;
        Ok(report)
    }
}

fn file_gone(role: FileRole) -> JobError {
    JobError {
        code: "invalid_value".to_owned(),
        message: format!("The {} was deleted while it was read.", role.param()),
        param: Some(role.param().to_owned()),
    }
}
