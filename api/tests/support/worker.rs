//! The worker's door as the API sees it: it checks the token, keeps what it was asked, and answers by the last
//! message's text.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use domain::dry_run::MemoryPlan;
use domain::generation::{EchoedToken, FinishReason, TokenLogprob, ToolChoice, TopLogprob};
use domain::id::WorkerId;
use domain::message::{
    EmbedEvent, EmbedRequest, Embedded, ExportError, ExportFormat, ExportRequest, GenerateError,
    GenerateEvent, GenerateRequest, GgufType, PlanRequest, Prompt,
};
use domain::speed::DeviceKind;
use domain::usage::TokenUsage;
use domain::worker::WorkerStatus;
use domain::x_training::GradientCheckpointing;
use platform::config::Secret;
use platform::service_token::{ServiceKey, verify};
use poem::http::StatusCode;
use poem::listener::{Acceptor, Listener, TcpListener};
use poem::web::{Data, Json};
use poem::{Body, EndpointExt, IntoResponse, Request, Response, Route, Server, handler, post};
use tokio::sync::Notify;

/// What an export holds.
pub const EXPORTED: &str = "the whole model";

/// How a worker answers for plans.
#[derive(Clone)]
pub enum Plans {
    /// With [`memory_plan`].
    Told,
    Refused(u16, GenerateError),
    /// As a worker of an earlier version.
    Unknown,
    /// It is silent.
    Never,
}

pub struct FakeWorker {
    pub address: String,
    shared: Arc<Shared>,
}

struct Shared {
    key: ServiceKey,
    asked: Mutex<Vec<GenerateRequest>>,
    /// Said instead of any answer with an adapter.
    refusal: Mutex<Option<(u16, GenerateError)>>,
    exports: Mutex<Vec<ExportRequest>>,
    embedded: Mutex<Vec<Prompt>>,
    planned: Mutex<Vec<PlanRequest>>,
    plans: Mutex<Plans>,
    /// An endless answer was dropped.
    dropped: Arc<Notify>,
}

impl FakeWorker {
    pub async fn start(key: Secret<String>) -> Self {
        let shared = Arc::new(Shared {
            key: ServiceKey::new(&key),
            asked: Mutex::new(Vec::new()),
            refusal: Mutex::new(None),
            exports: Mutex::new(Vec::new()),
            embedded: Mutex::new(Vec::new()),
            planned: Mutex::new(Vec::new()),
            plans: Mutex::new(Plans::Told),
            dropped: Arc::new(Notify::new()),
        });
        let acceptor = TcpListener::bind("127.0.0.1:0")
            .into_acceptor()
            .await
            .unwrap();
        let address = format!(
            "http://{}",
            acceptor.local_addr()[0].as_socket_addr().unwrap()
        );
        let route = Route::new()
            .at("/v1/generate", post(generate))
            .at("/v1/export", post(export))
            .at("/v1/embed", post(embed))
            .at("/v1/plan", post(plan))
            .data(shared.clone());
        tokio::spawn(Server::new_with_acceptor(acceptor).run(route));
        Self { address, shared }
    }

    pub fn status(&self) -> WorkerStatus {
        WorkerStatus {
            worker_id: WorkerId::mint([1; 24]),
            address: self.address.clone(),
            base_models: vec![super::BASE_MODEL.to_owned()],
            adapters: Vec::new(),
            n_live: 0,
            max_live: 8,
            device: "fake".to_owned(),
        }
    }

    /// From now on nothing is answered with an adapter but this.
    pub fn refuse_adapters(&self, status: u16, error: GenerateError) {
        *self.shared.refusal.lock().unwrap() = Some((status, error));
    }

    /// What was asked last.
    pub fn last(&self) -> GenerateRequest {
        self.shared.asked.lock().unwrap().last().unwrap().clone()
    }

    /// How it answers for plans from now on.
    pub fn plans(&self, plans: Plans) {
        *self.shared.plans.lock().unwrap() = plans;
    }

    /// The plan that was asked for last.
    pub fn last_planned(&self) -> PlanRequest {
        self.shared.planned.lock().unwrap().last().unwrap().clone()
    }

    /// The export that was asked for last.
    pub fn last_export(&self) -> ExportRequest {
        self.shared.exports.lock().unwrap().last().unwrap().clone()
    }

    /// What was embedded last.
    pub fn last_embedded(&self) -> Prompt {
        self.shared.embedded.lock().unwrap().last().unwrap().clone()
    }

    /// The last words of everything that was asked, in order.
    pub fn last_words(&self) -> Vec<String> {
        let asked = self.shared.asked.lock().unwrap();
        let words = asked.iter().map(|asked| {
            let last = asked.messages.last();
            last.and_then(|message| message.content.clone())
                .unwrap_or_default()
        });
        words.collect()
    }

    pub fn n_asked(&self) -> usize {
        self.shared.asked.lock().unwrap().len()
    }

    /// Whether an endless answer was dropped, or is within ten seconds.
    pub async fn is_dropped(&self) -> bool {
        tokio::time::timeout(Duration::from_secs(10), self.shared.dropped.notified())
            .await
            .is_ok()
    }
}

fn is_authorised(shared: &Shared, request: &Request) -> bool {
    let token = request
        .header("authorization")
        .and_then(|value| value.strip_prefix("Bearer "));
    token.is_some_and(|token| verify(&shared.key, "worker", token).is_ok())
}

/// Answers by the format: bytes for merged and f16, reasons for the other types, no end for q8_0.
#[handler]
async fn export(shared: Data<&Arc<Shared>>, request: &Request, body: Body) -> Response {
    if !is_authorised(&shared, request) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let asked: ExportRequest = serde_json::from_slice(&body.into_bytes().await.unwrap()).unwrap();
    shared.exports.lock().unwrap().push(asked.clone());
    let error = match asked.format {
        ExportFormat::Merged
        | ExportFormat::Gguf {
            file_type: GgufType::F16,
        } => {
            return Response::builder().body(EXPORTED);
        }
        ExportFormat::Gguf {
            file_type: GgufType::Q8_0,
        } => return endless(shared.dropped.clone()),
        ExportFormat::Gguf {
            file_type: GgufType::F32,
        } => ExportError::Unsupported {
            reason: "its tokenizer is not known".to_owned(),
        },
        ExportFormat::Gguf {
            file_type: GgufType::Bf16,
        } => ExportError::Busy,
    };
    let status = match error {
        ExportError::Busy => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::BAD_REQUEST,
    };
    Json(&error).with_status(status).into_response()
}

/// What a training takes here, whatever it is.
pub fn memory_plan() -> MemoryPlan {
    MemoryPlan {
        device: DeviceKind::Gpu,
        gpu_declined: None,
        weights: 16_000,
        adapter: 300,
        activations: 40_000,
        on_host: 2_000,
        available: Some(80_000),
        fits: true,
        pass_tokens: 8_192,
        gradient_checkpointing: GradientCheckpointing::Selective,
        n_recomputed_layers: 3,
        streams_on_host: true,
    }
}

#[handler]
async fn plan(shared: Data<&Arc<Shared>>, request: &Request, body: Body) -> Response {
    if !is_authorised(&shared, request) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let asked: PlanRequest = serde_json::from_slice(&body.into_bytes().await.unwrap()).unwrap();
    shared.planned.lock().unwrap().push(asked);
    let plans = shared.plans.lock().unwrap().clone();
    match plans {
        Plans::Told => Json(&memory_plan()).into_response(),
        Plans::Refused(status, error) => refusal(status, &error),
        Plans::Unknown => StatusCode::NOT_FOUND.into_response(),
        Plans::Never => std::future::pending().await,
    }
}

/// (n, 0, -1) of n tokens, a token a character.
#[handler]
async fn embed(shared: Data<&Arc<Shared>>, request: &Request, body: Body) -> Response {
    if !is_authorised(&shared, request) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let asked: EmbedRequest = serde_json::from_slice(&body.into_bytes().await.unwrap()).unwrap();
    let n = match &asked.input {
        Prompt::Text(text) if text == "too long" => {
            let error = GenerateError::ContextLengthExceeded {
                context_length: 512,
                prompt_tokens: 900,
            };
            return refusal(400, &error);
        }
        Prompt::Text(text) if text == "busy" => return refusal(503, &GenerateError::Busy),
        Prompt::Text(text) => text.len(),
        Prompt::Tokens(ids) => ids.len(),
    };
    shared.embedded.lock().unwrap().push(asked.input);
    let last = EmbedEvent::Embedded(Embedded {
        embedding: vec![n as f32, 0.0, -1.0],
        prompt_tokens: n as u64,
    });
    let lines = [EmbedEvent::Queued, last].map(|event| serde_json::to_string(&event).unwrap());
    Response::builder()
        .content_type("application/x-ndjson")
        .body(lines.join("\n") + "\n")
}

#[handler]
async fn generate(shared: Data<&Arc<Shared>>, request: &Request, body: Body) -> Response {
    if !is_authorised(&shared, request) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let asked: GenerateRequest = serde_json::from_slice(&body.into_bytes().await.unwrap()).unwrap();
    shared.asked.lock().unwrap().push(asked.clone());
    if let (Some((status, error)), Some(_)) =
        (&*shared.refusal.lock().unwrap(), &asked.model.adapter)
    {
        return refusal(*status, error);
    }
    match said(&asked) {
        "too long" => refusal(
            400,
            &GenerateError::ContextLengthExceeded {
                context_length: 512,
                prompt_tokens: 900,
            },
        ),
        "unrenderable" => refusal(
            400,
            &GenerateError::Unrenderable {
                reason: "roles must alternate".to_owned(),
            },
        ),
        "unanswerable" => refusal(
            400,
            &GenerateError::Unanswerable {
                param: "response_format.json_schema.schema".to_owned(),
                reason: "no such keyword".to_owned(),
            },
        ),
        "busy" => refusal(503, &GenerateError::Busy),
        "no adapter" => refusal(
            503,
            &GenerateError::AdapterUnavailable {
                reason: "secret path".to_owned(),
                is_unfit: false,
            },
        ),
        "broken" => refusal(
            500,
            &GenerateError::Internal {
                reason: "secret reason".to_owned(),
            },
        ),
        "breaks off" => lines(answer(&asked).into_iter().take(2).collect()),
        "endless" => endless(shared.dropped.clone()),
        _ => lines(answer(&asked)),
    }
}

/// The last message's text.
fn said(asked: &GenerateRequest) -> &str {
    let last = asked.messages.last();
    last.and_then(|last| last.content.as_deref())
        .unwrap_or_default()
}

fn refusal(status: u16, error: &GenerateError) -> Response {
    Response::builder()
        .status(StatusCode::from_u16(status).unwrap())
        .body(serde_json::to_vec(error).unwrap())
}

fn line(event: &GenerateEvent) -> Vec<u8> {
    let mut line = serde_json::to_vec(event).unwrap();
    line.push(b'\n');
    line
}

fn lines(events: Vec<GenerateEvent>) -> Response {
    let bytes: Vec<u8> = events.iter().flat_map(line).collect();
    Response::builder()
        .content_type("application/x-ndjson")
        .body(bytes)
}

/// "Hello", then " wörld" of each answer, cut off where there is "no room"; where calls are required, two calls instead. What is echoed
/// with log-probabilities is "Once" and " é"; no tokens are no answer.
fn answer(asked: &GenerateRequest) -> Vec<GenerateEvent> {
    if asked.tool_choice == ToolChoice::Required {
        return calls();
    }
    let mut events = vec![GenerateEvent::Started { prompt_tokens: 7 }];
    let is_scored = asked.max_tokens == Some(0);
    for index in 0..asked.n {
        if asked.echo_logprobs {
            events.extend(echoed(index, asked.top_logprobs.unwrap()));
        }
        for text in ["Hello", " wörld"] {
            if is_scored {
                break;
            }
            events.push(GenerateEvent::Delta {
                index,
                text: text.to_owned(),
                logprobs: asked
                    .top_logprobs
                    .map(|top| logprob(text, top))
                    .into_iter()
                    .collect(),
            });
        }
        let is_cut = said(asked) == "no room" || is_scored;
        events.push(GenerateEvent::Finished {
            index,
            finish_reason: match is_cut {
                true => FinishReason::Length,
                false => FinishReason::Stop,
            },
        });
    }
    let usage = TokenUsage {
        prompt_tokens: 7,
        cached_tokens: 4,
        completion_tokens: u64::from(!is_scored) * 3 * u64::from(asked.n),
    };
    events.push(GenerateEvent::Done { usage });
    events
}

/// One answer that calls `get` twice, arguments in pieces.
fn calls() -> Vec<GenerateEvent> {
    let mut events = vec![GenerateEvent::Started { prompt_tokens: 7 }];
    for call in 0..2 {
        events.push(GenerateEvent::ToolCall {
            index: 0,
            call,
            id: format!("call_{call}"),
            name: "get".to_owned(),
        });
        for arguments in ["{\"n\": ", "1}"] {
            events.push(GenerateEvent::ToolArguments {
                index: 0,
                call,
                arguments: arguments.to_owned(),
            });
        }
    }
    events.push(GenerateEvent::Finished {
        index: 0,
        finish_reason: FinishReason::ToolCalls,
    });
    let usage = TokenUsage {
        prompt_tokens: 7,
        cached_tokens: 0,
        completion_tokens: 20,
    };
    events.push(GenerateEvent::Done { usage });
    events
}

/// The text, and tokens in two lines.
fn echoed(index: u32, top: u8) -> [GenerateEvent; 2] {
    let line = |text: &str, token: &str, offset: u64| {
        let told = logprob(token, top);
        let is_first = offset == 0;
        let token = EchoedToken {
            token: told.token,
            offset,
            logprob: (!is_first).then_some(told.logprob),
            top: if is_first { Vec::new() } else { told.top },
        };
        GenerateEvent::Echo {
            index,
            text: text.to_owned(),
            tokens: vec![token],
        }
    };
    [line("Once é", "Once", 0), line("", " é", 4)]
}

fn logprob(text: &str, top: u8) -> TokenLogprob {
    let likeliest = TopLogprob {
        token: text.to_owned(),
        bytes: text.as_bytes().to_vec(),
        logprob: -0.5,
    };
    TokenLogprob {
        token: text.to_owned(),
        bytes: text.as_bytes().to_vec(),
        logprob: -0.5,
        top: vec![likeliest; usize::from(top)],
    }
}

fn endless(dropped: Arc<Notify>) -> Response {
    struct OnDrop(Arc<Notify>);
    impl Drop for OnDrop {
        fn drop(&mut self) {
            self.0.notify_one();
        }
    }
    let guard = OnDrop(dropped);
    let started = line(&GenerateEvent::Started { prompt_tokens: 7 });
    let events = futures::stream::unfold((guard, Some(started)), |(guard, first)| async move {
        let bytes = match first {
            Some(first) => first,
            None => {
                tokio::time::sleep(Duration::from_millis(20)).await;
                line(&GenerateEvent::Delta {
                    index: 0,
                    text: "x".to_owned(),
                    logprobs: Vec::new(),
                })
            }
        };
        Some((Ok::<_, std::io::Error>(bytes), (guard, None)))
    });
    Response::builder().body(Body::from_bytes_stream(events))
}
