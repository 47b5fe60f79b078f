//! Which worker answers, and its answer as events. The bytes of adapters never pass through here.

mod embed;
mod export;
mod plan;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use domain::generation::Priority;
use domain::message::{GenerateError, GenerateEvent, GenerateRequest};
use domain::model::ServedModel;
use domain::time::Timestamp;
use domain::worker::Worker;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, Stream, StreamExt};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::store_error;
use crate::error::{ApiError, Kind};
use crate::state::State;
use crate::wire::decode::echo;

/// A worker says every few seconds that it lives; one that was silent for so long is not asked. Seconds.
const ALIVE_S: i64 = 30;
/// Validity of the token of one call; it is checked when the call begins.
const TOKEN_TTL: Duration = Duration::from_secs(60);
/// A worker that is busy training begins an answer within seconds, and one whose places are taken says so again and again; one that is
/// stopped says nothing.
const SILENT: Duration = Duration::from_secs(60);
/// How often, and how long after each other, one of many texts is asked again for which there is no room.
const PATIENCE: u32 = 20;
const PAUSE: Duration = Duration::from_millis(500);
/// The code of an adapter that is not one of its base model's.
pub const ADAPTER_UNFIT: &str = "adapter_unfit";
/// A line holds one piece of text. Bytes.
const MAX_LINE: usize = 4 * 1024 * 1024;

pub use embed::embed;
pub use export::export;
pub use plan::plan;

/// What a worker says, line by line; a broken connection is a `Failed`.
pub type Events = BoxStream<'static, GenerateEvent>;

/// Asks the best worker, and the next one where that one cannot. Waits until it has begun: the first event is `Started`.
/// Dropping the events ends the generation. Errors: what the client did wrong; 503 where no worker can answer.
pub async fn generate(
    state: &State,
    model: &str,
    request: &GenerateRequest,
) -> Result<Events, ApiError> {
    let last = state.workers.last();
    first_able(state, last, model, &request.model, |worker| {
        ask(state, worker, request).boxed()
    })
    .await
}

/// A worker that was heard of then, or later, is there.
pub fn alive_since(now: Timestamp) -> Timestamp {
    now.plus_s(-ALIVE_S)
}

/// How one of many texts of a request is asked again where nobody waits for it and there is no room for it now: to begin
/// with the first text again would mean never to reach the last.
pub struct Patience {
    tries_left: u32,
}

impl Patience {
    pub fn of(priority: Priority) -> Self {
        Self {
            tries_left: if priority.is_live() { 0 } else { PATIENCE },
        }
    }

    /// What was answered; `None`, after a pause: ask again.
    pub async fn judge<T>(&mut self, answered: Result<T, ApiError>) -> Option<Result<T, ApiError>> {
        match answered {
            Err(error) if error.is_passing() && self.tries_left > 0 => {
                self.tries_left -= 1;
                tokio::time::sleep(PAUSE).await;
                None
            }
            answered => Some(answered),
        }
    }
}

/// Those who live.
pub type Alive = Vec<Arc<Worker>>;

/// Asks the workers that hold the model, best one first, until one answers: those of the last look, then whom another one finds.
async fn first_able<'a, T>(
    state: &State,
    last: Option<Arc<Alive>>,
    name: &str,
    model: &ServedModel,
    ask: impl Fn(Arc<Worker>) -> BoxFuture<'a, Result<T, Refused>>,
) -> Result<T, ApiError> {
    let (mut refusal, mut asked) = (no_worker(name), Vec::new());
    for look in last.map(Some).into_iter().chain([None]) {
        let alive = match look {
            Some(alive) => alive,
            None => look_at_workers(state).await?,
        };
        for worker in ranked(&alive, model) {
            let place = (
                worker.status.worker_id.clone(),
                worker.status.address.clone(),
            );
            if asked.contains(&place) {
                continue;
            }
            match ask(worker.clone()).await {
                Ok(answer) => return Ok(answer),
                Err(Refused::Next(next)) => {
                    tracing::info!(worker = %place.0, reason = %next.message, "asking the next worker");
                    refusal = next;
                    asked.push(place);
                }
                Err(Refused::Final(error)) => return Err(error),
            }
        }
    }
    Err(refusal)
}

async fn look_at_workers(state: &State) -> Result<Arc<Alive>, ApiError> {
    let at = Instant::now();
    let workers = state.store.workers();
    let alive = workers.alive(alive_since(state.now())).await;
    let alive = alive.map_err(store_error)?.into_iter().map(Arc::new);
    Ok(state.workers.keep(at, alive.collect()))
}

/// Those that hold the base model: first the ones with room, of these the ones that hold the adapter, of these the
/// least busy.
fn ranked<'w>(alive: &'w [Arc<Worker>], model: &ServedModel) -> Vec<&'w Arc<Worker>> {
    let adapter = model.adapter.as_ref().map(|adapter| &adapter.sha256);
    let mut able: Vec<&Arc<Worker>> = alive
        .iter()
        .filter(|worker| worker.status.base_models.contains(&model.base_model))
        .collect();
    able.sort_by_key(|worker| {
        let status = &worker.status;
        let holds = adapter.is_none_or(|sha256| status.adapters.contains(sha256));
        let load = u64::from(status.n_live) * 1000 / u64::from(status.max_live.max(1));
        (status.n_live >= status.max_live, !holds, load)
    });
    able
}

/// Why a worker does not answer.
enum Refused {
    /// Another worker may.
    Next(ApiError),
    /// No worker would.
    Final(ApiError),
}

/// What `next` gives, unless the worker is silent for too long.
async fn unless_silent<T>(next: impl Future<Output = T>) -> Result<T, Refused> {
    let next = tokio::time::timeout(SILENT, next).await;
    next.map_err(|_elapsed| {
        unreachable_worker(format!("nothing came within {} s", SILENT.as_secs()))
    })
}

/// Errors: the worker cannot be reached. Its answer may be a refusal.
async fn post(
    state: &State,
    worker: &Worker,
    path: &str,
    request: &impl Serialize,
) -> Result<reqwest::Response, Refused> {
    let token = platform::service_token::issue(&state.service_key, "worker", TOKEN_TTL);
    let address = worker.status.address.trim_end_matches('/');
    let post = state.http.post(format!("{address}{path}"));
    let sent = post.bearer_auth(token).json(request).send().await;
    sent.map_err(|error| unreachable_worker(error.to_string()))
}

/// Sends the request and waits until the answer begins.
async fn ask(
    state: &State,
    worker: Arc<Worker>,
    request: &GenerateRequest,
) -> Result<Events, Refused> {
    let response = unless_silent(post(state, &worker, "/v1/generate", request)).await??;
    if !response.status().is_success() {
        return Err(unless_silent(refused(response, mapped)).await?);
    }
    let chunks = response.bytes_stream();
    let mut events = events(chunks.map(|chunk| chunk.map_err(io::Error::other)));
    loop {
        match unless_silent(events.next()).await? {
            Some(GenerateEvent::Queued) => {}
            Some(GenerateEvent::Failed { error }) => return Err(mapped(error)),
            Some(first) => return Ok(futures::stream::iter([first]).chain(events).boxed()),
            None => return Err(unreachable_worker("an empty reply".to_owned())),
        }
    }
}

fn unreachable_worker(detail: String) -> Refused {
    let message = "The worker that serves this model does not respond. Please try again shortly.";
    Refused::Next(ApiError::overloaded(message).detail(detail))
}

/// Why the worker refused, as `mapped` tells it.
async fn refused(response: reqwest::Response, mapped: fn(GenerateError) -> Refused) -> Refused {
    let status = response.status();
    match response.json::<GenerateError>().await {
        Ok(error) => mapped(error),
        Err(_) => refused_without_reason(status),
    }
}

fn refused_without_reason(status: reqwest::StatusCode) -> Refused {
    let detail = format!("the worker answered {status} without a reason");
    Refused::Next(ApiError::internal(detail))
}

fn mapped(error: GenerateError) -> Refused {
    let shown = api_error(&error);
    match error {
        GenerateError::ContextLengthExceeded { .. }
        | GenerateError::Unrenderable { .. }
        | GenerateError::Unanswerable { .. }
        | GenerateError::AdapterUnavailable { is_unfit: true, .. } => Refused::Final(shown),
        _ => Refused::Next(shown),
    }
}

/// What the client reads of a worker's error.
pub fn api_error(error: &GenerateError) -> ApiError {
    match error {
        GenerateError::ContextLengthExceeded {
            context_length,
            prompt_tokens,
        } => ApiError::invalid(
            "messages",
            "context_length_exceeded",
            format!(
                "This model's maximum context length is {context_length} tokens. However, your messages resulted in \
                 {prompt_tokens} tokens. Please reduce the length of the messages."
            ),
        ),
        GenerateError::Unrenderable { reason } => ApiError::invalid(
            "messages",
            "invalid_value",
            format!("The chat template of this model refuses these messages: {reason}."),
        ),
        GenerateError::Unanswerable { param, reason } => ApiError::invalid(
            param.clone(),
            "invalid_value",
            format!("Invalid value for '{param}': {reason}."),
        ),
        GenerateError::Busy => {
            ApiError::overloaded("All workers are busy. Please try again shortly.")
        }
        GenerateError::AdapterUnavailable {
            reason,
            is_unfit: true,
        } => ApiError::invalid(
            "model",
            ADAPTER_UNFIT,
            format!("The adapter cannot be used on its base model: {reason}."),
        ),
        GenerateError::AdapterUnavailable { reason, .. } => ApiError::new(
            Kind::Unavailable,
            "The weights of this model cannot be loaded at the moment. Please try again shortly.",
        )
        .retry_after(5)
        .detail(reason.clone()),
        GenerateError::ModelNotInstalled { model } => no_worker(model),
        GenerateError::Internal { reason } => {
            ApiError::internal(format!("the worker failed: {reason}"))
        }
    }
}

fn no_worker(model: &str) -> ApiError {
    let message = format!(
        "No worker serves the model '{}' at the moment. Please try again shortly.",
        echo(model)
    );
    ApiError::overloaded(message).retry_after(2)
}

/// The lines of a worker's reply.
fn events<T: DeserializeOwned + From<GenerateError> + 'static>(
    chunks: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
) -> BoxStream<'static, T> {
    let start = Some((chunks.boxed(), BytesMut::new()));
    futures::stream::unfold(start, |reading| async move {
        let (mut chunks, mut buffer) = reading?;
        loop {
            if let Some(end) = memchr::memchr(b'\n', &buffer) {
                let line = buffer.split_to(end + 1);
                if line.trim_ascii().is_empty() {
                    continue;
                }
                return Some(match serde_json::from_slice(&line) {
                    Ok(event) => (event, Some((chunks, buffer))),
                    Err(error) => (
                        broken(format!("a line of the worker is unreadable: {error}")),
                        None,
                    ),
                });
            }
            if buffer.len() > MAX_LINE {
                return Some((broken("a line of the worker does not end".to_owned()), None));
            }
            match chunks.next().await? {
                Ok(chunk) => buffer.extend_from_slice(&chunk),
                Err(error) => {
                    return Some((
                        broken(format!("the worker's reply broke off: {error}")),
                        None,
                    ));
                }
            }
        }
    })
    .boxed()
}

fn broken<T: From<GenerateError>>(reason: String) -> T {
    GenerateError::Internal { reason }.into()
}

#[cfg(test)]
mod tests {
    use domain::id::WorkerId;
    use domain::model::{AdapterRef, ServedModel};
    use domain::worker::WorkerStatus;
    use domain::x_training::FrozenWeights;

    use super::*;

    fn worker(address: &str, adapters: &[&str], n_live: u32) -> Worker {
        Worker {
            status: WorkerStatus {
                worker_id: WorkerId::mint([1; 24]),
                address: address.to_owned(),
                base_models: vec!["m".to_owned()],
                adapters: adapters.iter().map(|a| (*a).to_owned()).collect(),
                n_live,
                max_live: 4,
                device: "cpu".to_owned(),
            },
            seen_at: Timestamp(0),
        }
    }

    fn request(base_model: &str, adapter: Option<&str>) -> GenerateRequest {
        let adapter = adapter.map(|sha256| AdapterRef {
            object_prefix: "p".to_owned(),
            sha256: sha256.to_owned(),
            size_bytes: 1,
            frozen_weights: FrozenWeights::Stored,
        });
        let model = ServedModel {
            base_model: base_model.to_owned(),
            adapter,
        };
        GenerateRequest::new(model, String::new(), Vec::new())
    }

    #[test]
    fn the_worker_that_holds_the_adapter_comes_first_unless_it_is_full() {
        let order = |request: &GenerateRequest, full_holder: bool| -> Vec<String> {
            let workers = [
                worker("busy", &[], 3),
                worker("holder", &["a"], if full_holder { 4 } else { 2 }),
                worker("idle", &[], 0),
            ];
            ranked(&workers.map(Arc::new), &request.model)
                .into_iter()
                .map(|w| w.status.address.clone())
                .collect()
        };
        assert_eq!(
            order(&request("m", Some("a")), false),
            ["holder", "idle", "busy"]
        );
        assert_eq!(
            order(&request("m", Some("a")), true),
            ["idle", "busy", "holder"]
        );
        assert_eq!(
            order(&request("m", None), false),
            ["idle", "holder", "busy"]
        );
        assert_eq!(order(&request("other", None), false), Vec::<String>::new());
    }

    #[tokio::test]
    async fn lines_are_read_however_they_are_cut_and_a_broken_reply_ends_with_failed() {
        let text = b"{\"type\":\"started\",\"prompt_tokens\":3}\n\n{\"type\":\"failed\",\"error\":{\"code\":\"busy\"}}\n{";
        for size in [1, 5, 1000] {
            let chunks: Vec<_> = text
                .chunks(size)
                .map(|c| Ok(Bytes::copy_from_slice(c)))
                .collect();
            let chunks = futures::stream::iter(chunks).chain(futures::stream::iter([Err(
                io::ErrorKind::ConnectionReset.into(),
            )]));
            let read: Vec<GenerateEvent> = events(chunks).collect().await;
            assert_eq!(read[0], GenerateEvent::Started { prompt_tokens: 3 });
            assert_eq!(
                read[1],
                GenerateEvent::Failed {
                    error: GenerateError::Busy
                }
            );
            assert!(matches!(
                &read[2],
                GenerateEvent::Failed {
                    error: GenerateError::Internal { .. }
                }
            ));
            assert_eq!(read.len(), 3);
        }
    }
}
