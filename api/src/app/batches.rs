//! Batches: made, followed and cancelled from here, and what answers one request of them. `crate::batches` runs them.

use domain::batch::{Batch, BatchEndpoint, BatchSpec};
use domain::file::Purpose;
use domain::generation::Priority;
use domain::id::BatchId;
use domain::page::{Page, PageRequest};
use domain::project::Project;
use poem_openapi::types::ToJSON;
use serde_json::Value;
use store::{BatchError, StoreError};

use super::ledger::Consumer;
use super::repeat::{Created, Repeat, Request, fingerprint};
use super::{chat, completion, embeddings, files, response, store_error};
use crate::auth::Caller;
use crate::body::Decode;
use crate::error::{ApiError, Kind};
use crate::state::{Shared, State};
use crate::wire::batches::{BatchOrder, INPUT_FILE};
use crate::wire::chat::ChatOrder;
use crate::wire::chat_reply::ChatCompletion;
use crate::wire::completion::CompletionOrder;
use crate::wire::decode::{Fields, echo};
use crate::wire::embeddings::EmbeddingOrder;
use crate::wire::fine_tuning::unknown_file;
use crate::wire::response::ResponseOrder;
use crate::wire::response_reply::ResponseObject;

const CREATE: &str = "POST /batches";

/// Makes a batch, or finds the one that the same request made before. Its file is only looked up. Errors: 400; 429 where the
/// project has spent what it may.
pub async fn create(
    state: &State,
    caller: &Caller,
    order: BatchOrder,
    raw: &Value,
    repeat: &Repeat,
) -> Result<Created<Batch>, ApiError> {
    let request = Request {
        caller,
        endpoint: CREATE,
        repeat,
        fingerprint: fingerprint(raw),
    };
    if let Some(id) = request.made_earlier(state).await? {
        return replayed(state, caller, &id).await;
    }
    state.spendings.check(state, &caller.project).await?;
    let spec = checked(state, &caller.project, order).await?;
    let (id, now) = (BatchId::mint(state.entropy()), state.now());
    let batch = Batch::new(id, caller.project.id.clone(), spec, now);
    let entry = request.entry(now);
    match state.store.batches().insert(&batch, Some(&entry)).await {
        Ok(()) => {
            state.batch_made.notify_one();
            Ok(Created::new(batch))
        }
        // The same request came twice at once, and the other was faster.
        Err(StoreError::Repeated { object_id }) => replayed(state, caller, &object_id).await,
        // The file was deleted since it was looked at.
        Err(StoreError::NotFound) => Err(unknown_file(INPUT_FILE, batch.spec.input_file.as_str())),
        Err(error) => Err(store_error(error)),
    }
}

async fn replayed(state: &State, caller: &Caller, id: &str) -> Result<Created<Batch>, ApiError> {
    get(state, &caller.project, id).await.map(Created::replay)
}

async fn checked(
    state: &State,
    project: &Project,
    order: BatchOrder,
) -> Result<BatchSpec, ApiError> {
    let id = order.input_file;
    let file = files::find(state, project, &id).await?;
    let file = file.ok_or_else(|| unknown_file(INPUT_FILE, id.as_str()))?;
    if file.purpose != Purpose::Batch {
        let message = format!(
            "Invalid {INPUT_FILE}: the file {id} has the purpose '{}', but 'batch' is needed.",
            file.purpose.as_str()
        );
        return Err(ApiError::invalid(INPUT_FILE, "invalid_value", message));
    }
    Ok(BatchSpec {
        endpoint: order.endpoint,
        input_file: id,
        metadata: order.metadata,
        output_expires_after_s: order.output_expires_after_s,
    })
}

/// Errors: 404 for an unknown `after`.
pub async fn list(
    state: &State,
    project: &Project,
    page: &PageRequest,
) -> Result<Page<Batch>, ApiError> {
    let listed = state.store.batches().list(&project.id, page).await;
    listed.map_err(store_error)
}

/// Errors: 404.
pub async fn get(state: &State, project: &Project, id: &str) -> Result<Batch, ApiError> {
    let found = state
        .store
        .batches()
        .find(&project.id, &batch_id(id)?)
        .await;
    found.map_err(store_error)?.ok_or_else(|| unknown(id))
}

/// Errors: 404; 400 for a batch that is over or writes its files (a 409 would be sent again and again by the SDKs).
pub async fn cancel(state: &State, project: &Project, id: &str) -> Result<Batch, ApiError> {
    let (batches, batch) = (state.store.batches(), batch_id(id)?);
    let cancelled = batches.cancel(&project.id, &batch, state.now()).await;
    cancelled.map_err(|error| match error {
        BatchError::Store(StoreError::NotFound) => unknown(id),
        BatchError::Store(error) => store_error(error),
        BatchError::WrongStatus(at) => {
            let message = format!("Cannot cancel a batch with status '{}'.", at.0.as_str());
            ApiError::new(Kind::BadRequest, message).code("invalid_batch_state")
        }
        BatchError::Stale => ApiError::internal("a client holds no lease — a bug in the store"),
    })
}

/// What the endpoint says to the body of a request: its reply's JSON. Errors: as the route's own.
pub async fn answer(
    state: &Shared,
    project: &Project,
    endpoint: BatchEndpoint,
    body: Value,
) -> Result<Value, ApiError> {
    refuse_stream(&body)?;
    let (priority, consumer) = (Priority::Spare, Consumer::Batch(project));
    Ok(match endpoint {
        BatchEndpoint::ChatCompletions => {
            let order = ChatOrder {
                priority,
                ..decoded(body)?
            };
            let answer = chat::begin(state, project, order).await?;
            let whole = chat::whole(answer.counted(state, consumer)).await?;
            json(&ChatCompletion::from(whole))
        }
        BatchEndpoint::Completions => {
            let order = CompletionOrder {
                priority,
                ..decoded(body)?
            };
            let answers = completion::begin(state, project, order).await?;
            json(&completion::whole(answers.counted(state, consumer)).await?)
        }
        BatchEndpoint::Responses => {
            let order = ResponseOrder {
                priority,
                ..decoded(body)?
            };
            let whole = response::whole(response::begin(state, consumer, order).await?).await?;
            json(&ResponseObject::from(whole))
        }
        BatchEndpoint::Embeddings => {
            let order = EmbeddingOrder {
                priority,
                ..decoded(body)?
            };
            json(&embeddings::create(state, consumer, order).await?.list)
        }
    })
}

fn decoded<O: Decode>(body: Value) -> Result<O, ApiError> {
    O::decode(Fields::root(body)?)
}

fn json(reply: &impl ToJSON) -> Value {
    reply.to_json().unwrap_or_default()
}

fn refuse_stream(body: &Value) -> Result<(), ApiError> {
    if body["stream"] != true {
        return Ok(());
    }
    let message = "A request of a batch cannot be streamed: leave 'stream' out.";
    Err(ApiError::unsupported("stream", message))
}

fn batch_id(id: &str) -> Result<BatchId, ApiError> {
    BatchId::parse(id).map_err(|_| unknown(id))
}

fn unknown(id: &str) -> ApiError {
    ApiError::not_found(format!("No batch found with id '{}'.", echo(id))).param("batch_id")
}
