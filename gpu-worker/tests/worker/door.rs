//! A scheduler's door that does what a test says and remembers what it was told.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use domain::base_model::BaseModel;
use domain::message::{
    Assignment, AttemptReply, BeatRequest, CheckpointRequest, ClaimReply, ClaimRequest, Desired,
    FailRequest, FinishRequest, HelloReply, HelloRequest,
};
use domain::metrics::StepMetrics;
use domain::worker::WorkerStatus;
use platform::service_token::{self, ServiceKey};
use poem::http::StatusCode;
use poem::listener::TcpAcceptor;
use poem::web::{Data, Json, Path};
use poem::{EndpointExt, IntoResponse, Request, Response, Route, handler, post};
use serde_json::Value;
use tokio::sync::watch;

/// Far beyond what a busy machine needs; only a bug waits this long.
const PATIENCE: Duration = Duration::from_secs(180);

/// What the door answers, and what it heard.
#[derive(Default)]
pub struct Script {
    pub base_models: Vec<BaseModel>,
    pub assignments: VecDeque<Assignment>,
    pub desired: Option<Desired>,
    pub claims: Vec<ClaimRequest>,
    /// Any call on an attempt below this is answered 409.
    pub current_attempt: u32,
    /// Every call is answered 503.
    pub down: bool,
    pub statuses: Vec<WorkerStatus>,
    /// Calls on an attempt other than beats, in order: `checkpoint`, `finalizing`, …
    pub calls: Vec<String>,
    pub n_beats: usize,
    pub metrics: Vec<StepMetrics>,
    pub checkpoints: Vec<CheckpointRequest>,
    pub finish: Option<FinishRequest>,
    pub fail: Option<FailRequest>,
}

impl Script {
    pub fn last_step(&self) -> u64 {
        self.metrics.iter().map(|m| m.step).max().unwrap_or(0)
    }
}

pub struct Door {
    pub url: String,
    pub key: ServiceKey,
    script: Arc<Mutex<Script>>,
    changed: watch::Sender<u64>,
}

impl Door {
    pub async fn open(key: ServiceKey) -> Arc<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let door = Arc::new(Self {
            url,
            key,
            script: Arc::default(),
            changed: watch::channel(0).0,
        });
        let attempt = Route::new().at("/:job/attempts/:n/:verb", post(on_attempt));
        let routes = Route::new()
            .at("/door/v1/hello", post(hello))
            .at("/door/v1/claim", post(claim))
            .nest("/door/v1/jobs", attempt)
            .data(Arc::clone(&door));
        let acceptor = TcpAcceptor::from_tokio(listener).unwrap();
        tokio::spawn(poem::Server::new_with_acceptor(acceptor).run(routes));
        door
    }

    /// Reads or changes the script.
    pub fn with<T>(&self, f: impl FnOnce(&mut Script) -> T) -> T {
        let result = f(&mut self.script.lock().unwrap());
        self.changed.send_modify(|n| *n += 1);
        result
    }

    /// Waits until the script is as `ready` says.
    pub async fn until(&self, what: &str, ready: impl Fn(&Script) -> bool) {
        let mut changed = self.changed.subscribe();
        let wait = async {
            while !ready(&self.script.lock().unwrap()) {
                changed.changed().await.unwrap();
            }
        };
        if tokio::time::timeout(PATIENCE, wait).await.is_err() {
            let script = self.script.lock().unwrap();
            panic!(
                "not within {PATIENCE:?}: {what}; calls {:?}, step {}, failed {:?}",
                script.calls,
                script.last_step(),
                script.fail
            );
        }
    }

    fn refuses(&self, request: &Request) -> Option<Response> {
        if self.with(|script| script.down) {
            return Some(StatusCode::SERVICE_UNAVAILABLE.into_response());
        }
        let token = request
            .header("authorization")
            .and_then(|value| value.strip_prefix("Bearer "));
        let known =
            token.is_some_and(|token| service_token::verify(&self.key, "door", token).is_ok());
        (!known).then(|| StatusCode::UNAUTHORIZED.into_response())
    }
}

#[handler]
fn hello(request: &Request, Json(body): Json<HelloRequest>, door: Data<&Arc<Door>>) -> Response {
    if let Some(refusal) = door.refuses(request) {
        return refusal;
    }
    let base_models = door.with(|script| {
        script.statuses.push(body.status);
        script.base_models.clone()
    });
    Json(HelloReply { base_models }).into_response()
}

#[handler]
async fn claim(
    request: &Request,
    Json(body): Json<ClaimRequest>,
    door: Data<&Arc<Door>>,
) -> Response {
    if let Some(refusal) = door.refuses(request) {
        return refusal;
    }
    let n_looks = 1 + 20 * body.wait_s.min(1);
    door.with(|script| script.claims.push(body));
    // Held for a moment only: tests hand out jobs at any time.
    for _ in 0..n_looks {
        if let Some(assignment) = door.with(|script| script.assignments.pop_front()) {
            return Json(ClaimReply {
                assignment: Some(assignment),
            })
            .into_response();
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Json(ClaimReply { assignment: None }).into_response()
}

#[handler]
fn on_attempt(
    request: &Request,
    Path((_job, attempt, verb)): Path<(String, u32, String)>,
    Json(body): Json<Value>,
    door: Data<&Arc<Door>>,
) -> Response {
    if let Some(refusal) = door.refuses(request) {
        return refusal;
    }
    door.with(|script| {
        if attempt < script.current_attempt {
            script.calls.push(format!("stale {verb}"));
            return StatusCode::CONFLICT.into_response();
        }
        if verb != "beat" {
            script.calls.push(verb.clone());
        }
        match verb.as_str() {
            "beat" => {
                let beat: BeatRequest = serde_json::from_value(body).unwrap();
                script.n_beats += 1;
                script.statuses.push(beat.status);
                script.metrics.extend(beat.metrics);
            }
            "checkpoint" => script
                .checkpoints
                .push(serde_json::from_value(body).unwrap()),
            "finish" => script.finish = Some(serde_json::from_value(body).unwrap()),
            "fail" => script.fail = Some(serde_json::from_value(body).unwrap()),
            "finalizing" | "stopped" => {}
            other => panic!("unknown call {other}"),
        }
        Json(AttemptReply {
            desired: script.desired.unwrap_or(Desired::GoOn),
        })
        .into_response()
    })
}
