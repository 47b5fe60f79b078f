//! The worker's HTTP door: `POST /v1/generate` streams one conversation's answers as lines of JSON, `POST /v1/embed` is `embed`'s,
//! `POST /v1/export` is `export`'s, `POST /v1/plan` is `plan`'s, `GET /healthz` says that the process lives. It turns messages into tokens and tokens into text; the
//! device computes.

mod answer;
mod echo;
mod embed;
mod grammar;
mod places;
mod stop;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use domain::generation::{FinishReason, SamplingParams, ToolChoice};
use domain::message::{GenerateError, GenerateEvent, GenerateRequest, Prompt};
use domain::model::ServedModel;
use domain::usage::TokenUsage;
use engine::generate::{Grammar, Sampling};
use engine::lora::Adapter;
use futures::future::{FusedFuture, FutureExt};
use platform::service_token::ServiceKey;
use poem::http::StatusCode;
use poem::web::{Data, Json};
use poem::{Body, IntoResponse, Request, Response, Route, handler};
use serde::Serialize;
use text::chat_model::RenderError;
use tokio::sync::{SemaphorePermit, mpsc};

use self::answer::{Answer, CallPiece, Piece};
use self::echo::Echo;
pub(crate) use self::grammar::Grammars;
pub(crate) use self::places::Places;
use self::places::{Admission, Place, Waiting};
use crate::adapters::AdapterError;
use crate::base_models::{Base, BaseError};
use crate::device::{Ask, DeviceError, Generation, Output, Token};
use crate::request::asked;
use crate::worker::Worker;

/// Lines between the device and a client that reads slowly; the device itself never waits for a client.
const LINES: usize = 64;
/// How often one that waits for a place says so.
const QUEUED_EVERY: Duration = Duration::from_secs(5);
/// Largest request. Bytes: a long conversation with its tools.
const MAX_BODY_BYTES: usize = 32 << 20;

/// The routes, with everything they need.
pub(crate) fn routes(worker: Arc<Worker>, key: ServiceKey) -> impl poem::Endpoint {
    use poem::EndpointExt;
    Route::new()
        .at("/v1/generate", poem::post(generate))
        .at("/v1/embed", poem::post(embed::embed))
        .at("/v1/export", poem::post(crate::export::export))
        .at("/v1/plan", poem::post(crate::plan::plan))
        .at("/healthz", poem::get(healthz))
        .data(worker)
        .data(key)
}

#[handler]
fn healthz() -> &'static str {
    "ok"
}

#[handler]
async fn generate(
    request: &Request,
    body: Body,
    worker: Data<&Arc<Worker>>,
    key: Data<&ServiceKey>,
) -> Response {
    let asked: GenerateRequest = match asked(request, body, key.0, MAX_BODY_BYTES).await {
        Ok(asked) => asked,
        Err(refusal) => return refusal,
    };
    match begin(Arc::clone(worker.0), asked).await {
        Ok(body) => Response::builder()
            .content_type("application/x-ndjson")
            .body(body),
        Err(error) => Json(&error).with_status(status_of(&error)).into_response(),
    }
}

pub(crate) fn status_of(error: &GenerateError) -> StatusCode {
    match error {
        GenerateError::ContextLengthExceeded { .. }
        | GenerateError::Unrenderable { .. }
        | GenerateError::Unanswerable { .. } => StatusCode::BAD_REQUEST,
        GenerateError::ModelNotInstalled { .. } => StatusCode::NOT_FOUND,
        GenerateError::AdapterUnavailable { .. } | GenerateError::Busy => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        GenerateError::Internal { .. } => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// Everything that can be refused before the first line.
async fn begin(worker: Arc<Worker>, asked: GenerateRequest) -> Result<Body, GenerateError> {
    let base = base_of(&worker, &asked.model.base_model).await?;
    let (prompt, max_new_tokens) = prompt(&worker, &base, &asked)?;
    let echo = Echo::of(&base, &asked, prompt.len())?;
    let asked = Arc::new(asked);
    let grammar = worker.grammars.get(&base, &asked).await?;
    let (lines, reader) = mpsc::channel(LINES);
    let conversation = Conversation {
        worker: Arc::clone(&worker),
        base,
        asked,
        prompt,
        echo,
        max_new_tokens,
        grammar,
        lines,
    };
    let admission = worker.places.admit(conversation.asked.priority);
    match admission.ok_or(GenerateError::Busy)? {
        Admission::Now(place) => drop(tokio::spawn(conversation.start(place).await?.run())),
        Admission::Later(waiting) => drop(tokio::spawn(conversation.wait(waiting))),
    }
    Ok(spelled(reader))
}

/// The base model of that name. Errors: also where nothing new is begun.
pub(crate) async fn base_of(worker: &Worker, name: &str) -> Result<Arc<Base>, GenerateError> {
    if worker.draining.is_cancelled() {
        return Err(GenerateError::Busy);
    }
    let found = worker.bases.find(name).await;
    found.map_err(|error| match error {
        BaseError::NotInstalled(model) => GenerateError::ModelNotInstalled { model },
        error => internal(&error),
    })
}

/// Events as lines, as they come.
fn spelled<T: Serialize + Send + 'static>(reader: mpsc::Receiver<T>) -> Body {
    let reader = futures::stream::unfold(reader, |mut reader| async {
        Some((reader.recv().await?, reader))
    });
    Body::from_bytes_stream(futures::StreamExt::map(reader, |event: T| {
        let mut line = serde_json::to_vec(&event).expect("an event is JSON — a bug in message");
        line.push(b'\n');
        Ok::<_, std::io::Error>(line)
    }))
}

/// The conversation in tokens, and how many more there is room for, if more are asked for.
fn prompt(
    worker: &Worker,
    base: &Base,
    asked: &GenerateRequest,
) -> Result<(Vec<u32>, usize), GenerateError> {
    let tools = (!asked.tools.is_empty()).then_some(asked.tools.as_slice());
    let prompt = match &asked.prompt {
        None => base.chat.prompt(&asked.messages, tools),
        Some(Prompt::Text(text)) => base.chat.text_prompt(text),
        Some(Prompt::Tokens(ids)) => Ok(known(base, ids, "prompt")?.to_vec()),
    };
    let prompt = prompt.map_err(unrenderable)?;
    let wanted = asked.max_tokens.map_or(usize::MAX, |n| n as usize);
    let room = check_length(worker, base, prompt.len(), wanted.min(1))?;
    Ok((prompt, room.min(wanted)))
}

fn unrenderable(error: RenderError) -> GenerateError {
    GenerateError::Unrenderable {
        reason: error.to_string(),
    }
}

/// How many tokens there is room for behind `n_tokens`. Errors: fewer than `least`.
fn check_length(
    worker: &Worker,
    base: &Base,
    n_tokens: usize,
    least: usize,
) -> Result<usize, GenerateError> {
    let limit = worker.device.limits.max_cached_tokens;
    let context_length = base.context_length().min(limit);
    let room = context_length.checked_sub(n_tokens);
    room.filter(|room| *room >= least)
        .ok_or(GenerateError::ContextLengthExceeded {
            context_length: context_length as u64,
            prompt_tokens: n_tokens as u64,
        })
}

/// Token ids of a client, who calls them `param`, if the model has them all.
fn known<'a>(base: &Base, ids: &'a [u32], param: &str) -> Result<&'a [u32], GenerateError> {
    let n_tokens = base.chat.tokenizer().n_tokens();
    let unanswerable = |reason: String| GenerateError::Unanswerable {
        param: param.to_owned(),
        reason,
    };
    if ids.is_empty() {
        return Err(unanswerable(
            "a text of tokens needs at least one".to_owned(),
        ));
    }
    match ids.iter().find(|id| **id as usize >= n_tokens) {
        Some(id) => {
            let reason = format!("token {id} is not in the model's vocabulary of {n_tokens}");
            Err(unanswerable(reason))
        }
        None => Ok(ids),
    }
}

fn sampling(asked: &SamplingParams) -> Sampling {
    Sampling {
        temperature: asked.temperature,
        top_p: asked.top_p,
        top_k: asked.top_k.map_or(usize::MAX, |k| k as usize),
        min_p: asked.min_p,
        frequency_penalty: asked.frequency_penalty,
        presence_penalty: asked.presence_penalty,
        seed: asked.seed.unwrap_or_else(rand::random),
        logit_bias: asked.logit_bias.clone(),
    }
}

pub(crate) fn refusal(error: DeviceError) -> GenerateError {
    match error {
        DeviceError::Busy => GenerateError::Busy,
        error => internal(&error),
    }
}

pub(crate) fn internal(error: &impl std::error::Error) -> GenerateError {
    tracing::error!(%error, "cannot answer");
    GenerateError::Internal {
        reason: error.to_string(),
    }
}

/// The model's adapter, in memory.
async fn adapter_of(
    worker: &Worker,
    base: &Arc<Base>,
    model: &ServedModel,
) -> Result<Option<Arc<Adapter>>, GenerateError> {
    let Some(reference) = &model.adapter else {
        return Ok(None);
    };
    let adapter = worker.adapters.get(reference, base).await;
    adapter.map(Some).map_err(|error| {
        tracing::warn!(sha256 = reference.sha256, %error, "an adapter cannot be loaded");
        GenerateError::AdapterUnavailable {
            reason: error.to_string(),
            is_unfit: matches!(error, AdapterError::Unfit(_)),
        }
    })
}

/// Brings the files of the adapter of a conversation that waits to this host, once it is among the first who wait: `began` from then
/// on. It is among them until what is returned is dropped.
async fn fetch_ahead<'a>(
    worker: &'a Worker,
    base: &Base,
    model: &ServedModel,
    began: &AtomicBool,
) -> Option<SemaphorePermit<'a>> {
    let reference = model.adapter.as_ref()?;
    let turn = worker.adapters.turn_ahead().await;
    began.store(true, Ordering::Relaxed);
    worker.adapters.fetch_ahead(reference, base).await;
    Some(turn)
}

/// A conversation that can be answered.
struct Conversation {
    worker: Arc<Worker>,
    base: Arc<Base>,
    asked: Arc<GenerateRequest>,
    prompt: Vec<u32>,
    echo: Option<Echo>,
    max_new_tokens: usize,
    grammar: Option<Arc<dyn Grammar>>,
    lines: mpsc::Sender<GenerateEvent>,
}

impl Conversation {
    /// Waits for its place, and says so, then is answered; the client may leave at any time. Its adapter's files come meanwhile.
    async fn wait(self, waiting: Waiting) {
        let lines = self.lines.clone();
        let mut queued = tokio::time::interval(QUEUED_EVERY);
        let mut turn = std::pin::pin!(waiting.place());
        let (worker, base) = (Arc::clone(&self.worker), Arc::clone(&self.base));
        let (asked, began) = (Arc::clone(&self.asked), AtomicBool::new(false));
        let fetch = fetch_ahead(&worker, &base, &asked.model, &began).fuse();
        let mut fetch = std::pin::pin!(fetch);
        let mut ahead = None;
        let place = loop {
            tokio::select! {
                place = &mut turn => break place,
                turn = &mut fetch, if !fetch.is_terminated() => ahead = turn,
                _ = queued.tick() => {
                    if lines.send(GenerateEvent::Queued).await.is_err() {
                        return;
                    }
                }
                () = lines.closed() => return,
            }
        };
        // Files that are on their way are not asked for twice.
        if began.load(Ordering::Relaxed) && !fetch.is_terminated() {
            ahead = fetch.await;
        }
        drop(ahead);
        match self.start(place).await {
            Ok(stream) => stream.run().await,
            // A client that left needs no error.
            Err(error) => drop(lines.send(GenerateEvent::Failed { error }).await),
        }
    }

    /// Loads the adapter and begins.
    async fn start(self, place: Place) -> Result<Stream, GenerateError> {
        let (worker, base, asked) = (self.worker, self.base, self.asked);
        let adapter = adapter_of(&worker, &base, &asked.model).await?;
        let frozen_weights = asked.model.frozen_weights();
        let prompt_tokens = self.prompt.len() as u64;
        let n = asked.n.max(1);
        let ask = Ask {
            base: base.folder_as(frozen_weights),
            request: engine::generate::GenerateRequest {
                prompt: self.prompt,
                adapter,
                scope: asked.scope.as_str().into(),
                sampling: sampling(&asked.sampling),
                max_new_tokens: self.max_new_tokens,
                stop_token_ids: [base.chat.stop_token_ids(), &asked.stop_token_ids].concat(),
                top_logprobs: asked.top_logprobs.map(usize::from),
                grammar: self.grammar,
            },
            n,
        };
        let is_scored = self.echo.as_ref().is_some_and(|echo| echo.n_scores() > 0);
        let scoring = is_scored.then(|| ask.scoring());
        let answers = (self.max_new_tokens > 0).then_some(ask);
        let asks: Vec<Ask> = scoring.into_iter().chain(answers).collect();
        let mut stream = Stream {
            worker,
            base,
            asked,
            n,
            prompt_tokens,
            echo: self.echo,
            asks: asks.into_iter(),
            generation: None,
            lines: self.lines,
            _place: place,
        };
        stream.ask_next().await?;
        metrics::counter!("luthier_worker_generate_requests_total").increment(1);
        metrics::counter!("luthier_worker_prompt_tokens_total").increment(prompt_tokens);
        Ok(stream)
    }
}

/// A conversation being answered. When the client leaves, `lines` closes; dropping `generation` frees the slots.
struct Stream {
    worker: Arc<Worker>,
    base: Arc<Base>,
    asked: Arc<GenerateRequest>,
    n: u32,
    prompt_tokens: u64,
    echo: Option<Echo>,
    /// What is still to be asked of the device, one after the other: scores of the prompt, answers.
    asks: std::vec::IntoIter<Ask>,
    /// What was asked last; `None`: that was all.
    generation: Option<Generation>,
    lines: mpsc::Sender<GenerateEvent>,
    _place: Place,
}

/// Why a stream ends early.
enum Ended {
    /// The client is gone.
    Gone,
    Failed(GenerateError),
}

impl From<GenerateError> for Ended {
    fn from(error: GenerateError) -> Self {
        Ended::Failed(error)
    }
}

impl Stream {
    async fn run(mut self) {
        let lines = self.lines.clone();
        let left = tokio::select! {
            answered = self.answer() => match answered {
                Ok(()) => false,
                Err(Ended::Gone) => true,
                Err(Ended::Failed(error)) => {
                    lines.send(GenerateEvent::Failed { error }).await.is_err()
                }
            },
            () = lines.closed() => true,
        };
        if left {
            tracing::debug!("a client left before the end of its answer");
        }
    }

    async fn answer(&mut self) -> Result<(), Ended> {
        let (base, asked) = (Arc::clone(&self.base), Arc::clone(&self.asked));
        let mut answers: Vec<Answer<'_>> = (0..self.n)
            .map(|_| Answer::new(&base.chat, &asked))
            .collect();
        self.send(GenerateEvent::Started {
            prompt_tokens: self.prompt_tokens,
        })
        .await?;
        let mut is_scored = false;
        if let Some(echo) = self.echo.take() {
            let scores = self.scores(echo.n_scores()).await?;
            is_scored = !scores.is_empty();
            for event in echo.events(&base.chat, self.n, &scores) {
                self.send(event).await?;
            }
        }
        if is_scored {
            self.ask_next().await?;
        }
        if self.generation.is_none() {
            for (index, answer) in (0..).zip(&mut answers) {
                self.end(answer, index, FinishReason::Length).await?;
            }
        }
        let mut cached_tokens = 0;
        while answers.iter().any(|answer| !answer.ended) {
            let token = self.next().await?;
            // The others find what the first has just read, or its scores have.
            if token.index == 0 && !is_scored {
                cached_tokens = token.n_reused as u64;
            }
            let answer = &mut answers[token.index as usize];
            if !answer.ended {
                self.add(answer, &token).await?;
            }
        }
        let completion_tokens = answers.iter().map(|answer| answer.n_tokens).sum();
        metrics::counter!("luthier_worker_completion_tokens_total").increment(completion_tokens);
        let usage = TokenUsage {
            prompt_tokens: self.prompt_tokens,
            cached_tokens,
            completion_tokens,
        };
        self.send(GenerateEvent::Done { usage }).await
    }

    /// Begins what is to be asked next, if there is something.
    async fn ask_next(&mut self) -> Result<(), GenerateError> {
        self.generation = match self.asks.next() {
            Some(ask) => Some(self.worker.device.generate(ask).await.map_err(refusal)?),
            None => None,
        };
        Ok(())
    }

    /// The next token of what was asked last.
    async fn next(&mut self) -> Result<Token, Ended> {
        let next = match &mut self.generation {
            Some(generation) => generation.next().await,
            None => None,
        };
        let error = match next {
            Some(Output::Token(token)) => return Ok(token),
            Some(Output::Failed(DeviceError::Grammar(reason))) => GenerateError::Unanswerable {
                param: grammar::param(&self.asked).to_owned(),
                reason,
            },
            Some(Output::Failed(error)) => internal(&error),
            None => internal(&DeviceError::Broken("it fell silent".to_owned())),
        };
        Err(error.into())
    }

    /// What the model says of the `n` tokens of the prompt after the first.
    async fn scores(&mut self, n: usize) -> Result<Vec<Token>, Ended> {
        let mut scores = Vec::with_capacity(n);
        while scores.len() < n {
            scores.push(self.next().await?);
        }
        Ok(scores)
    }

    async fn add(&self, answer: &mut Answer<'_>, token: &Token) -> Result<(), Ended> {
        use engine::generate::FinishReason as Engine;
        let (index, finished) = (token.index, token.finished);
        let mut finish_reason = finished.map(|reason| match reason {
            Engine::Stop | Engine::Complete => FinishReason::Stop,
            Engine::Length => FinishReason::Length,
        });
        let mut stopped = false;
        // The token that ends the turn is no part of the answer.
        if finished != Some(Engine::Stop) {
            let piece = answer.push(token);
            stopped = piece.stopped;
            self.show(index, piece).await?;
        }
        if finished.is_some() && !stopped {
            let mut rest = answer.finish();
            // Whoever scores texts counts on an entry for every token that was drawn.
            if finished == Some(Engine::Stop) && self.asked.echo_logprobs && !rest.stopped {
                rest.logprobs.push(answer.describe(token));
            }
            stopped = rest.stopped;
            self.show(index, rest).await?;
        }
        if stopped {
            finish_reason = Some(FinishReason::Stop);
            self.generation.iter().for_each(|asked| asked.stop(index));
        }
        // A client that names a function knows that it is called; OpenAI says `stop` then.
        let is_named = matches!(self.asked.tool_choice, ToolChoice::Named(_));
        if finish_reason == Some(FinishReason::Stop) && answer.n_calls() > 0 && !is_named {
            finish_reason = Some(FinishReason::ToolCalls);
        }
        match finish_reason {
            Some(finish_reason) => self.end(answer, index, finish_reason).await,
            None => Ok(()),
        }
    }

    async fn end(
        &self,
        answer: &mut Answer<'_>,
        index: u32,
        finish_reason: FinishReason,
    ) -> Result<(), Ended> {
        answer.ended = true;
        self.send(GenerateEvent::Finished {
            index,
            finish_reason,
        })
        .await
    }

    async fn show(&self, index: u32, piece: Piece) -> Result<(), Ended> {
        let Piece {
            text,
            logprobs,
            calls,
            ..
        } = piece;
        if !(text.is_empty() && logprobs.is_empty()) {
            let delta = GenerateEvent::Delta {
                index,
                text,
                logprobs,
            };
            self.send(delta).await?;
        }
        for piece in calls {
            let event = match piece {
                CallPiece::Begins { call, id, name } => GenerateEvent::ToolCall {
                    index,
                    call,
                    id,
                    name,
                },
                CallPiece::Arguments { call, arguments } => GenerateEvent::ToolArguments {
                    index,
                    call,
                    arguments,
                },
            };
            self.send(event).await?;
        }
        Ok(())
    }

    async fn send(&self, event: GenerateEvent) -> Result<(), Ended> {
        self.lines.send(event).await.map_err(|_| Ended::Gone)
    }
}
