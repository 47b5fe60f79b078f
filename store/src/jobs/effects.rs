//! What follows from a change of a job, as rows of the same transaction; one statement per table.

use std::collections::BTreeMap;

use domain::event::NewEvent;
use domain::id::{EventId, JobId};
use domain::job::FineTuningJob;
use domain::job_event::Effect;
use domain::message::{ControlMessage, OfferMessage, train_queue};
use domain::time::Timestamp;
use domain::webhook::WebhookEvent;
use sea_orm::sea_query::OnConflict;
use sea_orm::{
    ActiveValue, ColumnTrait, DatabaseTransaction, EntityTrait, IntoActiveModel, QueryFilter,
};

use crate::convert::{code, int, json, shown};
use crate::entity::{
    attempt, checkpoint, event, file, job_transition, metric, model, outbox, training_speed, usage,
};
use crate::error::StoreError;
use crate::{checkpoints, files, metrics, models, training_speeds, webhooks};

/// The version of the messages this program writes.
const MESSAGE_VERSION: u32 = 1;
/// The queue that every worker hears.
const CONTROL_QUEUE: &str = "control";
/// Rows per INSERT: 8 columns each, and PostgreSQL takes 65,535 parameters.
const ROWS_PER_INSERT: usize = 1_000;

/// The effects of one event, sorted by table.
#[derive(Default)]
pub struct Batch {
    events: Vec<NewEvent>,
    /// By step: one statement cannot write a row twice, and the last measurement stands.
    metrics: BTreeMap<u64, metric::ActiveModel>,
    checkpoints: Vec<checkpoint::ActiveModel>,
    models: Vec<model::ActiveModel>,
    files: Vec<file::ActiveModel>,
    usage: Vec<usage::ActiveModel>,
    speeds: Vec<training_speed::ActiveModel>,
    begun: Vec<attempt::ActiveModel>,
    ended: Vec<(u32, String)>,
    messages: Vec<outbox::ActiveModel>,
    webhook: Option<WebhookEvent>,
}

impl Batch {
    /// `job`: as it is after the event.
    pub fn sort(
        effects: Vec<Effect>,
        job: &FineTuningJob,
        now: Timestamp,
    ) -> Result<Self, StoreError> {
        let mut batch = Batch::default();
        for effect in effects {
            batch.add(effect, job, now)?;
        }
        Ok(batch)
    }

    fn add(
        &mut self,
        effect: Effect,
        job: &FineTuningJob,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        match effect {
            Effect::AppendEvent(event) => self.events.push(event),
            Effect::UpsertMetrics(m) => {
                self.metrics
                    .insert(m.step, metrics::to_row(&job.id, &m)?.into_active_model());
            }
            Effect::InsertCheckpoint(checkpoint) => {
                self.checkpoints
                    .push(checkpoints::to_row(&checkpoint)?.into_active_model());
            }
            Effect::InsertModel(model) => {
                self.models
                    .push(models::to_row(&model)?.into_active_model());
            }
            Effect::InsertFile(file) => self.files.push(files::to_row(&file)?.into_active_model()),
            Effect::RecordTrainedTokens(n) => self.usage.push(usage_row(job, n, now)?),
            Effect::RecordSpeed(speed) => {
                let row = training_speeds::to_row(job, speed, now);
                self.speeds.push(row.into_active_model());
            }
            Effect::BeginAttempt { number, worker_id } => {
                let row = attempt::Model {
                    job_id: job.id.to_string(),
                    number: i64::from(number),
                    worker_id: worker_id.to_string(),
                    claimed_at: now.0,
                    ended_at: None,
                    ending: None,
                };
                self.begun.push(row.into_active_model());
            }
            Effect::EndAttempt { number, end } => self.ended.push((number, code(&end))),
            Effect::PublishOffer { dispatch_id } => {
                let job_id = job.id.clone();
                let offer = OfferMessage {
                    version: MESSAGE_VERSION,
                    job_id,
                    dispatch_id,
                };
                self.messages
                    .push(message_row(train_queue(&job.spec.model), json(&offer), now));
            }
            Effect::PublishControl => {
                let control = ControlMessage {
                    version: MESSAGE_VERSION,
                    job_id: job.id.clone(),
                };
                self.messages
                    .push(message_row(CONTROL_QUEUE.to_owned(), json(&control), now));
            }
            Effect::RaiseWebhook(event_type) => {
                self.webhook = Some(WebhookEvent::new(event_type, job.id.as_str(), now)?);
            }
        }
        Ok(())
    }

    pub fn n_events(&self) -> i64 {
        self.events.len() as i64
    }

    /// `n_events`: how many events the job had before.
    pub async fn carry_out(
        self,
        tx: &DatabaseTransaction,
        job: &FineTuningJob,
        n_events: i64,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        append_events(tx, &job.id, n_events, self.events, now).await?;
        upsert_metrics(tx, self.metrics.into_values().collect()).await?;
        insert_all::<checkpoint::Entity>(tx, self.checkpoints).await?;
        insert_all::<file::Entity>(tx, self.files).await?;
        insert_all::<model::Entity>(tx, self.models).await?;
        insert_all::<usage::Entity>(tx, self.usage).await?;
        insert_all::<training_speed::Entity>(tx, self.speeds).await?;
        insert_all::<attempt::Entity>(tx, self.begun).await?;
        for (number, ending) in self.ended {
            end_attempt(tx, &job.id, number, ending, now).await?;
        }
        insert_all::<outbox::Entity>(tx, self.messages).await?;
        if let Some(event) = &self.webhook {
            webhooks::raise(tx, &job.project_id, event).await?;
        }
        Ok(())
    }
}

fn usage_row(
    job: &FineTuningJob,
    n: u64,
    now: Timestamp,
) -> Result<usage::ActiveModel, StoreError> {
    let row = usage::Model {
        job_id: job.id.to_string(),
        kind: crate::usage::TRAINED_TOKENS.to_owned(),
        project_id: job.project_id.to_string(),
        quantity: int(n)?,
        created_at: now.0,
    };
    Ok(row.into_active_model())
}

fn message_row(queue: String, body: String, now: Timestamp) -> outbox::ActiveModel {
    outbox::ActiveModel {
        id: ActiveValue::NotSet,
        queue: ActiveValue::Set(queue),
        body: ActiveValue::Set(body),
        created_at: ActiveValue::Set(now.0),
        claimed_until: ActiveValue::Set(None),
        sent_at: ActiveValue::Set(None),
    }
}

async fn insert_all<E: EntityTrait>(
    tx: &DatabaseTransaction,
    rows: Vec<E::ActiveModel>,
) -> Result<(), StoreError> {
    if !rows.is_empty() {
        E::insert_many(rows).exec_without_returning(tx).await?;
    }
    Ok(())
}

async fn upsert_metrics(
    tx: &DatabaseTransaction,
    mut rows: Vec<metric::ActiveModel>,
) -> Result<(), StoreError> {
    use metric::Column as C;
    let conflict = OnConflict::columns([C::JobId, C::Step])
        .update_columns([
            C::NTokens,
            C::TrainLoss,
            C::TrainMeanTokenAccuracy,
            C::ValidLoss,
            C::ValidMeanTokenAccuracy,
            C::FullValidLoss,
            C::FullValidMeanTokenAccuracy,
        ])
        .to_owned();
    while !rows.is_empty() {
        let rest = rows.split_off(rows.len().min(ROWS_PER_INSERT));
        metric::Entity::insert_many(rows)
            .on_conflict(conflict.clone())
            .exec_without_returning(tx)
            .await?;
        rows = rest;
    }
    Ok(())
}

/// Gives each event its place: `seq` goes on from `n_events`, and the id is made of the job's id and `seq`.
pub async fn append_events(
    tx: &DatabaseTransaction,
    job: &JobId,
    n_events: i64,
    events: Vec<NewEvent>,
    now: Timestamp,
) -> Result<(), StoreError> {
    let job_part = job
        .as_str()
        .strip_prefix(JobId::PREFIX)
        .unwrap_or(job.as_str());
    let mut rows: Vec<event::ActiveModel> = Vec::with_capacity(events.len());
    for (event, seq) in events.into_iter().zip(n_events + 1..) {
        let row = event::Model {
            job_id: job.to_string(),
            seq,
            id: format!("{}{job_part}-{seq}", EventId::PREFIX),
            level: code(&event.level),
            event_type: code(&event.event_type),
            message: shown(&event.message),
            data: json(&event.data),
            created_at: now.0,
        };
        rows.push(row.into_active_model());
    }
    while !rows.is_empty() {
        let rest = rows.split_off(rows.len().min(ROWS_PER_INSERT));
        event::Entity::insert_many(rows)
            .exec_without_returning(tx)
            .await?;
        rows = rest;
    }
    Ok(())
}

async fn end_attempt(
    tx: &DatabaseTransaction,
    job: &JobId,
    number: u32,
    ending: String,
    now: Timestamp,
) -> Result<(), StoreError> {
    attempt::Entity::update_many()
        .col_expr(attempt::Column::EndedAt, now.0.into())
        .col_expr(attempt::Column::Ending, ending.into())
        .filter(attempt::Column::JobId.eq(job.as_str()))
        .filter(attempt::Column::Number.eq(number))
        .exec(tx)
        .await?;
    Ok(())
}

/// Beats leave no line: there is one every few seconds, and they change no state.
pub async fn record_transition(
    tx: &DatabaseTransaction,
    event: &str,
    from: &FineTuningJob,
    to: &FineTuningJob,
    now: Timestamp,
) -> Result<(), StoreError> {
    if event == "beat" {
        return Ok(());
    }
    let row = job_transition::Model {
        job_id: to.id.to_string(),
        version: int(to.progress().version)?,
        event: event.to_owned(),
        from_state: from.state().as_str().to_owned(),
        to_state: to.state().as_str().to_owned(),
        attempt: i64::from(to.progress().attempt),
        created_at: now.0,
    };
    job_transition::Entity::insert(row.into_active_model())
        .exec_without_returning(tx)
        .await?;
    Ok(())
}
