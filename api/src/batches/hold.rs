//! A batch in this process's hands: its lease is renewed beside the work, and the work ends with it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use domain::batch::{Batch, BatchEvent, BatchStatus, LineError};
use domain::id::ProjectId;
use domain::project::Project;
use platform::objects::ObjectsError;
use store::batches::Batches;
use store::{BatchError, Lease, StoreError};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

use super::Runner;
use super::input::{Input, InputError, Verdict, judge};
use crate::app;
use crate::error::{ApiError, Kind};

/// How soon a cancellation, and a change of the project, is noticed at the latest.
const NOTICE: Duration = Duration::from_secs(2);

/// Why a batch is put down without being over. Whoever takes it next goes on where it was.
#[derive(Debug, thiserror::Error)]
pub enum HoldError {
    #[error(transparent)]
    Batch(#[from] BatchError),
    #[error(transparent)]
    Input(#[from] InputError),
    #[error(transparent)]
    Objects(#[from] ObjectsError),
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error("the lease could not be renewed in time")]
    LeaseOver,
}

impl From<StoreError> for HoldError {
    fn from(error: StoreError) -> Self {
        HoldError::Batch(error.into())
    }
}

/// Works on a batch until it is over, another process has it, or `stop`.
pub async fn hold(
    runner: Arc<Runner>,
    lease: Lease,
    batch: Batch,
    since: Instant,
    stop: CancellationToken,
) {
    let id = batch.id.clone();
    tracing::info!(batch = %id, run = lease.run, status = batch.status().as_str(), "batch taken");
    let closing = stop.child_token();
    let ended = tokio::select! {
        ended = work(&runner, &lease, batch, &stop, &closing) => ended,
        lost = keep(&runner, &lease, since, &closing) => lost,
    };
    match ended {
        Ok(()) => {}
        Err(HoldError::Batch(BatchError::Stale)) => {
            tracing::warn!(batch = %id, run = lease.run, "another process has the batch");
        }
        // Not released: whoever tries again does so after the lease's time.
        Err(error) => tracing::warn!(batch = %id, run = lease.run, %error, "batch put down"),
    }
}

/// Renews the lease until it is lost, and closes the batch when its client cancels it.
async fn keep(
    runner: &Runner,
    lease: &Lease,
    since: Instant,
    closing: &CancellationToken,
) -> Result<(), HoldError> {
    let batches = runner.state.store.batches();
    let mut until = since + runner.lease_ttl;
    loop {
        sleep(NOTICE.min(runner.lease_ttl / 3)).await;
        let asked = Instant::now();
        let renew = async {
            let (_, until) = runner.term().await?;
            Ok::<_, HoldError>(batches.renew(lease, until).await?)
        };
        let renewed = timeout_at(until, renew).await;
        match renewed.map_err(|_elapsed| HoldError::LeaseOver)? {
            Ok(batch) => {
                until = asked + runner.lease_ttl;
                cancel_if_archived(runner, &batch).await?;
                if batch.status() == BatchStatus::Cancelling {
                    closing.cancel();
                }
            }
            Err(HoldError::Batch(BatchError::Store(error))) => {
                tracing::warn!(batch = %lease.batch_id, %error, "lease not renewed");
            }
            Err(error) => return Err(error),
        }
    }
}

/// An archived project's keys open nothing any more, so nobody else can cancel its batches.
async fn cancel_if_archived(runner: &Runner, batch: &Batch) -> Result<(), HoldError> {
    let store = &runner.state.store;
    let project = store.projects().find(&batch.project_id).await?;
    let is_archived = project.is_some_and(|project| project.archived_at.is_some());
    let is_open = matches!(
        batch.status(),
        BatchStatus::Validating | BatchStatus::InProgress
    );
    if is_archived && is_open {
        let now = runner.state.now();
        store
            .batches()
            .cancel(&batch.project_id, &batch.id, now)
            .await?;
    }
    Ok(())
}

/// From where the batch stands to its end.
async fn work(
    runner: &Arc<Runner>,
    lease: &Lease,
    mut batch: Batch,
    stop: &CancellationToken,
    closing: &CancellationToken,
) -> Result<(), HoldError> {
    let held = Arc::new(Held::of(runner, lease, &batch, stop, closing).await?);
    while !batch.status().is_over() {
        let moved = match batch.status() {
            BatchStatus::Validating => held.validate(&batch).await,
            BatchStatus::InProgress => held.answer(&batch).await,
            _ => held.finish(&batch).await,
        };
        if stop.is_cancelled() {
            return Ok(held.batches().release(lease).await?);
        }
        batch = match moved {
            // Its client cancelled it meanwhile, or the reply to what we said was lost.
            Err(HoldError::Batch(BatchError::WrongStatus(_))) => {
                let (_, until) = runner.term().await?;
                held.batches().renew(lease, until).await?
            }
            moved => moved?,
        };
    }
    tracing::info!(batch = %batch.id, status = batch.status().as_str(), "batch over");
    metrics::counter!("luthier_batches_total", "status" => batch.status().as_str()).increment(1);
    Ok(())
}

/// What the work on a batch needs.
pub(super) struct Held {
    pub runner: Arc<Runner>,
    pub lease: Lease,
    pub project_id: ProjectId,
    /// As it was then.
    project: Mutex<(Arc<Project>, Instant)>,
    pub input: Input,
    /// The process shall end.
    pub stop: CancellationToken,
    /// No request is begun any more: the process shall end, the client cancelled, or the window is over.
    pub closing: CancellationToken,
}

impl Held {
    async fn of(
        runner: &Arc<Runner>,
        lease: &Lease,
        batch: &Batch,
        stop: &CancellationToken,
        closing: &CancellationToken,
    ) -> Result<Self, HoldError> {
        let state = &runner.state;
        let project = state.store.projects().find(&batch.project_id).await?;
        let file = state.store.files().find_for_job(&batch.spec.input_file);
        let file = file.await?.ok_or(StoreError::NotFound)?;
        Ok(Self {
            runner: runner.clone(),
            lease: lease.clone(),
            project_id: batch.project_id.clone(),
            project: Mutex::new((
                Arc::new(project.ok_or(StoreError::NotFound)?),
                Instant::now(),
            )),
            input: Input {
                objects: state.objects.clone(),
                key: file.object_key,
                size_bytes: file.size_bytes,
            },
            stop: stop.clone(),
            closing: closing.clone(),
        })
    }

    /// Its project: what that may do can change while the batch runs, and is noticed soon. Errors: 503.
    pub async fn project(&self) -> Result<Arc<Project>, ApiError> {
        let (known, since) = {
            let project = self.project.lock();
            project.unwrap_or_else(PoisonError::into_inner).clone()
        };
        if since.elapsed() < NOTICE {
            return Ok(known);
        }
        let projects = self.runner.state.store.projects();
        let found = projects.find(&self.project_id).await;
        let found = found.map_err(app::store_error)?.map(Arc::new);
        let project = found.unwrap_or(known);
        let mut last = self.project.lock().unwrap_or_else(PoisonError::into_inner);
        *last = (Arc::clone(&project), Instant::now());
        Ok(project)
    }

    pub fn batches(&self) -> Batches<'_> {
        self.runner.state.store.batches()
    }

    /// Tells the batch; how it stands then.
    pub async fn tell(&self, event: BatchEvent) -> Result<Batch, HoldError> {
        let now = self.runner.state.now();
        Ok(self.batches().apply(&self.lease, event, now).await?)
    }

    async fn validate(&self, batch: &Batch) -> Result<Batch, HoldError> {
        let event = match judge(&self.input, batch.spec.endpoint).await? {
            Verdict::Good { total, model } => {
                let state = &self.runner.state;
                let refused = |error| BatchEvent::Refused {
                    errors: vec![of_model(error)],
                };
                let project = self.project().await?;
                match app::models::find_served(state, &project, &model).await {
                    Ok(Some(_)) => BatchEvent::Validated { total, model },
                    Ok(None) => refused(app::chat::unknown(&model)),
                    Err(error) if error.kind == Kind::Forbidden => refused(error),
                    Err(error) => return Err(error.into()),
                }
            }
            Verdict::Bad(errors) => BatchEvent::Refused { errors },
        };
        self.tell(event).await
    }
}

/// The refusal of a model, as the batch shows it.
fn of_model(error: ApiError) -> LineError {
    LineError {
        code: error.code.unwrap_or_default().to_owned(),
        message: error.message,
        param: Some("body.model".to_owned()),
        line: None,
    }
}
