//! The door through which every change of a job goes: read, let the domain decide, write under guard, carry out the
//! effects; one transaction.

use domain::id::{JobId, ProjectId};
use domain::job::FineTuningJob;
use domain::job_event::JobEvent;
use domain::time::Timestamp;
use sea_orm::{ColumnTrait, DatabaseTransaction, EntityTrait, QueryFilter, QuerySelect};

use super::{Jobs, effects, row};
use crate::entity::job::{Column, Entity, Model};
use crate::error::{ApplyError, StoreError};

/// The row is locked while the domain decides, so a race is only lost to a writer that takes no lock; then the next
/// try sees its work.
const TRIES: u32 = 5;

impl Jobs<'_> {
    /// Applies an event to a job, whosever it is: for the scheduler.
    pub async fn apply(
        self,
        id: &JobId,
        event: JobEvent,
        now: Timestamp,
    ) -> Result<FineTuningJob, ApplyError> {
        self.apply_scoped(None, id, event, now).await
    }

    /// Applies an event to a job of this project: for the API.
    pub async fn apply_in_project(
        self,
        project: &ProjectId,
        id: &JobId,
        event: JobEvent,
        now: Timestamp,
    ) -> Result<FineTuningJob, ApplyError> {
        self.apply_scoped(Some(project), id, event, now).await
    }

    async fn apply_scoped(
        self,
        project: Option<&ProjectId>,
        id: &JobId,
        event: JobEvent,
        now: Timestamp,
    ) -> Result<FineTuningJob, ApplyError> {
        let work = async {
            for _ in 0..TRIES {
                if let Some(job) = self.try_apply(project, id, event.clone(), now).await? {
                    return Ok(job);
                }
            }
            let reason = format!("{TRIES} others changed job {id} meanwhile");
            Err(ApplyError::Store(StoreError::Unavailable(reason)))
        };
        match project {
            Some(project) => self.0.of(project).bounded(work).await,
            None => self.0.bounded(work).await,
        }
    }

    /// `None`: another writer was faster.
    async fn try_apply(
        self,
        project: Option<&ProjectId>,
        id: &JobId,
        event: JobEvent,
        now: Timestamp,
    ) -> Result<Option<FineTuningJob>, ApplyError> {
        let mut select = Entity::find_by_id(id.as_str()).lock_exclusive();
        if let Some(project) = project {
            select = select.filter(Column::ProjectId.eq(project.as_str()));
        }
        let tx = self.0.begin().await?;
        let stored = select.one(&tx).await?.ok_or(ApplyError::NotFound)?;
        let n_events = stored.n_events;
        let job = row::to_domain(stored)?;
        let name = event.name();
        let (next, all) = job.apply(event, now)?;
        let effects = effects::Batch::sort(all, &next, now)?;
        let new_row = row::from_domain(&next, n_events + effects.n_events())?;
        if !write(&tx, &job, new_row).await? {
            return Ok(None);
        }
        effects::record_transition(&tx, name, &job, &next, now).await?;
        effects.carry_out(&tx, &next, n_events, now).await?;
        tx.commit().await?;
        Ok(Some(next))
    }
}

/// Writes the row over the one that was read; false when that is no longer there.
async fn write(
    tx: &DatabaseTransaction,
    read: &FineTuningJob,
    new: Model,
) -> Result<bool, StoreError> {
    let read = read.progress();
    let done = Entity::update_many()
        .col_expr(Column::State, new.state.into())
        .col_expr(Column::Version, new.version.into())
        .col_expr(Column::Attempt, new.attempt.into())
        .col_expr(Column::WorkerId, new.worker_id.into())
        .col_expr(Column::DispatchId, new.dispatch_id.into())
        .col_expr(Column::StateSince, new.state_since.into())
        .col_expr(Column::LeaseUntil, new.lease_until.into())
        .col_expr(Column::NotBefore, new.not_before.into())
        .col_expr(Column::NEvents, new.n_events.into())
        .col_expr(Column::PlannedTokens, new.planned_tokens.into())
        .col_expr(Column::Progress, new.progress.into())
        .filter(Column::Id.eq(new.id))
        .filter(Column::Version.eq(read.version))
        .filter(Column::Attempt.eq(read.attempt))
        .filter(Column::State.eq(read.state.as_str()))
        .exec(tx)
        .await?;
    Ok(done.rows_affected == 1)
}

#[cfg(test)]
mod tests {
    use domain::hyperparameters::Hyperparameters;
    use domain::id::{FileId, JobId, OrganizationId, ProjectId};
    use domain::job::JobSpec;
    use domain::method::Method;
    use domain::project::Project;

    use super::*;
    use crate::{InsertLimits, Store, StoreConfig};

    async fn stored_job(store: &Store) -> FineTuningJob {
        let now = Timestamp(1);
        let default = store.projects().ensure_default([[1; 24], [2; 24]], now);
        let Project {
            id: project_id,
            organization_id,
            ..
        } = default.await.unwrap();
        let file = domain::file::File {
            id: FileId::mint([3; 24]),
            project_id: project_id.clone(),
            filename: "a.jsonl".into(),
            purpose: domain::file::Purpose::FineTune,
            size_bytes: 1,
            sha256: "aa".into(),
            object_key: "k".into(),
            created_at: now,
            expires_at: None,
        };
        store.files().insert(&file, None).await.unwrap();
        let (job, events) = new_job(project_id, organization_id, file.id, now);
        store
            .jobs()
            .insert(&job, events, &InsertLimits::default(), None)
            .await
            .unwrap();
        job
    }

    fn new_job(
        project: ProjectId,
        organization: OrganizationId,
        training_file: FileId,
        now: Timestamp,
    ) -> (FineTuningJob, Vec<domain::event::NewEvent>) {
        let spec = JobSpec {
            model: "tiny".into(),
            training_file,
            validation_file: None,
            suffix: None,
            seed: 1,
            method: Method::Supervised {
                hyperparameters: Hyperparameters::default(),
            },
            metadata: None,
            x_training: None,
        };
        let id = JobId::mint([4; 24]);
        FineTuningJob::create(
            id,
            project,
            organization,
            "luthier".into(),
            spec,
            "n".into(),
            now,
        )
    }

    fn validated() -> JobEvent {
        let hyperparameters = Hyperparameters::default().resolve(10, 1e-3);
        JobEvent::Validated {
            hyperparameters,
            total_steps: 6,
            planned_tokens: 5_070,
            details: Vec::new(),
        }
    }

    fn claimed() -> JobEvent {
        let worker_id = domain::id::WorkerId::mint([5; 24]);
        JobEvent::Claimed {
            dispatch_id: None,
            worker_id,
            lease_until: Timestamp(10),
        }
    }

    /// The lock makes this race impossible from outside, so the guard is tried by itself.
    #[tokio::test]
    async fn a_decision_about_a_job_that_is_no_more_is_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}/test.db", folder.path().display());
        let store = Store::connect(&StoreConfig::new(url)).await.unwrap();
        store.migrate().await.unwrap();
        let id = stored_job(&store).await.id;
        let beat = |lease_until| JobEvent::Beat {
            attempt: 1,
            lease_until: Timestamp(lease_until),
            metrics: Vec::new(),
            estimated_finish: None,
        };
        for event in [validated(), claimed()] {
            store.jobs().apply(&id, event, Timestamp(2)).await.unwrap();
        }
        // State and attempt stay: only the version tells that the read is outdated.
        let read = store.jobs().get_internal(&id).await.unwrap().unwrap();
        let decided_too_late = read.apply(beat(20), Timestamp(3)).unwrap().0;
        let meanwhile = store
            .jobs()
            .apply(&id, beat(30), Timestamp(3))
            .await
            .unwrap();

        let tx = store.begin().await.unwrap();
        let row = row::from_domain(&decided_too_late, 9).unwrap();
        assert!(!write(&tx, &read, row.clone()).await.unwrap());
        assert!(write(&tx, &meanwhile, row).await.unwrap());
        tx.rollback().await.unwrap();
        assert_eq!(
            store.jobs().get_internal(&read.id).await.unwrap(),
            Some(meanwhile)
        );
    }
}
