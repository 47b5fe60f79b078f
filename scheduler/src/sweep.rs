//! Sweeping up: bytes that no row names any more, or never did, and rows nobody needs.
//!
//! Rows go before objects, so that no reader follows a row to an object that is gone.

use std::collections::{HashMap, HashSet};

use domain::id::{AdapterId, FileId, JobId, PartId};
use domain::time::Timestamp;
use metrics::counter;
use platform::objects::ObjectMeta;

use crate::error::PassError;
use crate::scheduler::Scheduler;

/// An object is written before its row; one without a row may still get it for this long. Seconds.
const ORPHAN_AGE_S: i64 = 24 * 3600;
/// Workers silent for this long are forgotten. Seconds.
const WORKER_AGE_S: i64 = 3600;
/// Dry runs and their reports are kept this long. Seconds.
const DRY_RUN_AGE_S: i64 = 24 * 3600;
/// Sent messages are kept this long, for whoever looks into an incident. Seconds.
const SENT_AGE_S: i64 = 24 * 3600;
/// Rows of one kind, dropped at a time.
const ROWS: u64 = 1000;
/// Who completes an upload when its time ends still finds its parts for this long. Seconds.
const UPLOAD_GRACE_S: i64 = 3600;
/// A late call hears for this long what became of an upload. Seconds.
const UPLOAD_AGE_S: i64 = 7 * 24 * 3600;
/// Webhook deliveries that are over are kept as long after what they tell of. Seconds.
const DELIVERY_AGE_S: i64 = 14 * 24 * 3600;
/// Deleted files, and parts of uploads, taken at a time.
const BATCH: u64 = 100;
/// Everything tenants own.
const TENANTS: &str = "projects/";

impl Scheduler {
    /// Removes what is no longer needed. Returns how many objects went.
    pub async fn sweep_pass(&self) -> Result<usize, PassError> {
        let now = self.now().await?;
        let store = &self.shared.store;
        let n_expired = store.files().expire(now).await?;
        if n_expired > 0 {
            tracing::info!(n_expired, "files expired");
        }
        store
            .workers()
            .remove_older(now.plus_s(-WORKER_AGE_S))
            .await?;
        store.outbox().purge_sent(now.plus_s(-SENT_AGE_S)).await?;
        store.idempotency().purge(now).await?;
        store.kept_replies().purge(now).await?;
        while store.batches().purge_results(ROWS).await? == ROWS {}
        self.sweep_stored_answers(now).await?;
        let webhooks = store.webhooks();
        let before = now.plus_s(-DELIVERY_AGE_S);
        while webhooks.purge_deliveries(before, ROWS).await? == ROWS {}
        webhooks.purge_secrets(now).await?;
        store.dry_runs().purge(now.plus_s(-DRY_RUN_AGE_S)).await?;
        let n_deleted = self.sweep_deleted_files().await?
            + self.sweep_parts(now).await?
            + self.sweep_orphans(now).await?;
        store.uploads().purge(now.plus_s(-UPLOAD_AGE_S)).await?;
        counter!("luthier_objects_swept_total").increment(n_deleted as u64);
        Ok(n_deleted)
    }

    /// Chat completions and responses that were kept as long as they are to be.
    async fn sweep_stored_answers(&self, now: Timestamp) -> Result<(), PassError> {
        let ttl_s = i64::try_from(self.shared.config.stored_answer_ttl_s).unwrap_or(i64::MAX);
        if ttl_s == 0 {
            return Ok(());
        }
        let until = Timestamp(now.0.saturating_sub(ttl_s.saturating_mul(1_000_000)));
        let store = &self.shared.store;
        let n_expired = store.chat_completions().remove_older(until).await?
            + store.responses().remove_older(until).await?;
        if n_expired > 0 {
            tracing::info!(n_expired, "stored answers expired");
        }
        Ok(())
    }

    /// Files that clients deleted and no live job reads. Their tombstones already hide them.
    async fn sweep_deleted_files(&self) -> Result<usize, PassError> {
        let files = self.shared.store.files();
        let mut n_deleted = 0;
        loop {
            let batch = files.deleted_unpinned(BATCH).await?;
            let mut n_purged = 0;
            for file in &batch {
                self.shared.objects.delete(&file.object_key).await?;
                if files.purge(&file.id).await? {
                    n_purged += 1;
                    tracing::info!(file = %file.id, "deleted file swept");
                }
            }
            n_deleted += n_purged;
            // Without a purged row the next batch would be the same one.
            if batch.len() < BATCH as usize || n_purged == 0 {
                return Ok(n_deleted);
            }
        }
    }

    /// Parts of uploads that are over, so that nobody reads them any more.
    async fn sweep_parts(&self, now: Timestamp) -> Result<usize, PassError> {
        let uploads = self.shared.store.uploads();
        let expired_by = now.plus_s(-UPLOAD_GRACE_S);
        let mut n_deleted = 0;
        loop {
            let batch = uploads.leftover_parts(expired_by, BATCH).await?;
            for part in &batch {
                self.shared.objects.delete(&part.object_key).await?;
                uploads.remove_part(&part.id).await?;
                tracing::debug!(upload = %part.upload_id, part = %part.id, "part swept");
            }
            n_deleted += batch.len();
            if batch.len() < BATCH as usize {
                return Ok(n_deleted);
            }
        }
    }

    /// Objects old enough to have a row, without one: left by a crash or by a stale attempt.
    async fn sweep_orphans(&self, now: Timestamp) -> Result<usize, PassError> {
        let until = now.unix_s() - ORPHAN_AGE_S;
        let from = self.sweep_from();
        let objects = self.shared.objects.list(TENANTS).await?;
        let due: Vec<ObjectMeta> = objects
            .into_iter()
            .filter(|o| (from..until).contains(&o.modified_at))
            .collect();
        let mut rows = Rows::default();
        let mut n_deleted = 0;
        for object in due {
            if self.is_orphan(&object.key, &mut rows).await? {
                self.shared.objects.delete(&object.key).await?;
                n_deleted += 1;
                tracing::info!(key = object.key, "orphan object swept");
            }
        }
        self.set_swept_until(until);
        Ok(n_deleted)
    }

    /// What an earlier pass looked at was kept for its row. Rows that went since then took their
    /// objects with them, unless the process died in between, and the first pass after a start
    /// looks at everything. Unix seconds.
    fn sweep_from(&self) -> i64 {
        *self
            .shared
            .swept_until
            .lock()
            .expect("no holder panics — a bug in the sweep")
    }

    fn set_swept_until(&self, unix_s: i64) {
        *self
            .shared
            .swept_until
            .lock()
            .expect("no holder panics — a bug in the sweep") = unix_s;
    }

    async fn is_orphan(&self, key: &str, rows: &mut Rows) -> Result<bool, PassError> {
        match Owner::of(key) {
            Some(Owner::File(file)) => Ok(self
                .shared
                .store
                .files()
                .find_for_job(&file)
                .await?
                .is_none()),
            Some(Owner::Part(part)) => Ok(!self.shared.store.uploads().has_part(&part).await?),
            Some(Owner::Step { job, folder }) => {
                if !rows.steps.contains_key(&job) {
                    let checkpoints = self.shared.store.checkpoints().all(&job).await?;
                    let folders = checkpoints.into_iter().filter_map(|checkpoint| {
                        let key = checkpoint.state.object_key;
                        key.rsplit_once('/').map(|(folder, _)| folder.to_owned())
                    });
                    rows.steps.insert(job.clone(), folders.collect());
                }
                Ok(!rows.steps[&job].contains(&folder))
            }
            Some(Owner::Adapter { folder }) => {
                Ok(!self.shared.store.models().names_adapter(&folder).await?)
            }
            // A key that we did not make is not ours to delete.
            None => Ok(false),
        }
    }

    /// Drops a job's checkpoints that nobody resumes from or talks to. Failing costs only space:
    /// the rows stay for the next call, the objects for the sweep.
    pub(crate) async fn drop_superseded(&self, job: &JobId) {
        if let Err(error) = self.try_drop_superseded(job).await {
            tracing::warn!(%job, %error, "superseded checkpoints stay for now");
            // A row may be gone and its old objects still there.
            self.set_swept_until(0);
        }
    }

    async fn try_drop_superseded(&self, job: &JobId) -> Result<(), PassError> {
        let checkpoints = self.shared.store.checkpoints();
        for checkpoint in checkpoints.superseded(job).await? {
            checkpoints.remove(&checkpoint.id).await?;
            let Some((folder, _)) = checkpoint.state.object_key.rsplit_once('/') else {
                continue;
            };
            for object in self.shared.objects.list(&format!("{folder}/")).await? {
                self.shared.objects.delete(&object.key).await?;
            }
            tracing::debug!(%job, step = checkpoint.step, "superseded checkpoint dropped");
        }
        Ok(())
    }
}

/// What was read already in this pass.
#[derive(Default)]
struct Rows {
    /// The step folders that checkpoint rows name.
    steps: HashMap<JobId, HashSet<String>>,
}

/// Whose row an object waits for.
#[derive(Debug, PartialEq, Eq)]
enum Owner {
    File(FileId),
    Part(PartId),
    /// `folder` is the key without the file's name.
    Adapter {
        folder: String,
    },
    /// `folder` is the key up to and with `step-{n}`.
    Step {
        job: JobId,
        folder: String,
    },
}

impl Owner {
    /// Reads a key as `domain::object_key` writes it.
    fn of(key: &str) -> Option<Self> {
        let parts: Vec<&str> = key.split('/').collect();
        match parts[..] {
            ["projects", _, "files", file] => FileId::parse(file).ok().map(Owner::File),
            ["projects", _, "uploads", _, part] => PartId::parse(part).ok().map(Owner::Part),
            ["projects", _, "adapters", adapter, _] => {
                let folder = parts[..4].join("/");
                AdapterId::parse(adapter)
                    .ok()
                    .map(|_| Owner::Adapter { folder })
            }
            ["projects", _, "jobs", job, "attempts", _, step, ..] if step.starts_with("step-") => {
                let folder = parts[..7].join("/");
                JobId::parse(job)
                    .ok()
                    .map(|job| Owner::Step { job, folder })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use domain::id::{ProjectId, UploadId};
    use domain::object_key;

    use super::*;

    #[test]
    fn every_key_we_make_has_an_owner_and_no_other_has() {
        let (project, job) = (ProjectId::mint([1; 24]), JobId::mint([2; 24]));
        let file = FileId::mint([3; 24]);
        let prefix = object_key::attempt(&project, &job, 2);
        let folder = format!("{prefix}/step-40");
        let step = Some(Owner::Step { job, folder });
        assert_eq!(
            Owner::of(&object_key::file(&project, &file)),
            Some(Owner::File(file))
        );
        assert_eq!(Owner::of(&object_key::checkpoint_state(&prefix, 40)), step);
        let (upload, part) = (UploadId::mint([5; 24]), PartId::mint([6; 24]));
        assert_eq!(
            Owner::of(&object_key::upload_part(&project, &upload, &part)),
            Some(Owner::Part(part))
        );
        let adapter = object_key::checkpoint_adapter(&prefix, 40);
        assert_eq!(Owner::of(&format!("{adapter}/adapter_config.json")), step);
        let folder = object_key::adapter(&project, &AdapterId::mint([4; 24]));
        assert_eq!(
            Owner::of(&format!("{folder}/adapter_config.json")),
            Some(Owner::Adapter { folder })
        );
        for foreign in [
            "base-models/x/y/config.json",
            "projects/p/notes",
            "projects/p/files/f",
        ] {
            assert_eq!(Owner::of(foreign), None, "{foreign}");
        }
    }
}
