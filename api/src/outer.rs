//! What surrounds every route: request id, caller, timing, the envelope for whatever goes wrong, one line of log.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use domain::rate_limit::RateStatus;
use futures::FutureExt;
use poem::error::ResponseError;
use poem::http::uri::{PathAndQuery, Scheme};
use poem::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use poem::{Endpoint, IntoResponse, PathPattern, Request, Response};

use crate::app::repeat::BeganAt;
use crate::auth::{Principal, authenticate};
use crate::document;
use crate::error::{ApiError, Kind, preflight_status};
use crate::kept::{self, Kept};
use crate::state::Shared;
use crate::wire::decode::echo;

/// The API version OpenAI names in every reply.
const OPENAI_VERSION: HeaderValue = HeaderValue::from_static("2020-10-01");
/// What a browser's script may read of a reply.
const EXPOSED: HeaderValue = HeaderValue::from_static(
    "x-request-id, openai-processing-ms, openai-version, openai-organization, openai-model, retry-after, \
     content-disposition, idempotent-replayed, x-should-retry, x-ratelimit-limit-requests, x-ratelimit-limit-tokens, \
     x-ratelimit-remaining-requests, x-ratelimit-remaining-tokens, x-ratelimit-reset-requests, x-ratelimit-reset-tokens",
);

/// The outermost endpoint of the public listener.
pub struct Outer<E> {
    /// Shared with requests that go on when their client leaves.
    inner: Arc<E>,
    state: Shared,
    /// What 405 names, by the shape of the path.
    methods: HashMap<String, HeaderValue>,
}

impl<E> Outer<E> {
    pub fn new(inner: E, state: Shared) -> Self {
        let methods = document::methods();
        Self {
            inner: Arc::new(inner),
            state,
            methods,
        }
    }
}

/// What is known of a request before it is answered.
struct Seen {
    id: String,
    method: Method,
    path: String,
    is_https: bool,
    begun: Instant,
}

/// What became of a request.
struct Answered {
    outcome: Result<Response, ApiError>,
    /// The pattern of the path, where a route has matched.
    route: Option<PathPattern>,
}

impl From<Result<Response, ApiError>> for Answered {
    fn from(outcome: Result<Response, ApiError>) -> Self {
        Self {
            outcome,
            route: None,
        }
    }
}

impl<E: Endpoint + 'static> Endpoint for Outer<E> {
    type Output = Response;

    async fn call(&self, mut request: Request) -> poem::Result<Response> {
        let seen = Seen {
            id: request_id(),
            method: request.method().clone(),
            path: request.uri().path().to_owned(),
            is_https: *request.scheme() == Scheme::HTTPS,
            begun: Instant::now(),
        };
        let is_api = is_api(&seen.path);
        if is_api && seen.method == Method::OPTIONS {
            return Ok(preflight(&request));
        }
        let began_at = BeganAt(self.state.now());
        request.extensions_mut().insert(began_at);
        let mut caller = None;
        let Answered { outcome, route } = match self.admit(&mut request, is_api, &mut caller).await
        {
            Ok(()) => self.answer(request, caller.as_ref()).await,
            Err(error) => Err(error).into(),
        };
        let (mut response, error) = match outcome {
            Ok(response) => (response, None),
            Err(error) => (error.as_response(), Some(error)),
        };
        let rate = response.data::<RateStatus>().copied();
        if let Some(methods) = self.methods_instead(route.as_ref(), error.as_ref()) {
            response.headers_mut().insert(header::ALLOW, methods);
        }
        if matches!(caller, Some(Principal::Admin(_))) && seen.method != Method::GET {
            // Whatever an administrator took away is gone at once in this process.
            self.state.keys.forget();
        }
        decorate(response.headers_mut(), &seen, is_api, caller.as_ref());
        if let Some(rate) = rate {
            tell_rate(response.headers_mut(), &rate);
        }
        let outcome = (response.status(), error.as_ref());
        note(&seen, route.as_ref(), outcome, caller.as_ref());
        Ok(response)
    }
}

impl<E: Endpoint + 'static> Outer<E> {
    /// The caller first: without a key nothing else on `/v1` is told.
    async fn admit(
        &self,
        request: &mut Request,
        is_api: bool,
        caller: &mut Option<Principal>,
    ) -> Result<(), ApiError> {
        if is_api {
            let found = authenticate(&self.state, request).await?;
            request.extensions_mut().insert(found.clone());
            *caller = Some(found);
            one_segment_models(request);
        }
        Ok(())
    }

    /// The methods that the path knows, where it was asked with another one.
    fn methods_instead(
        &self,
        route: Option<&PathPattern>,
        error: Option<&ApiError>,
    ) -> Option<HeaderValue> {
        let route = route?;
        let is_wrong = error.is_some_and(|error| error.kind == Kind::MethodNotAllowed);
        is_wrong.then(|| self.methods.get(&document::shape(&route.0)).cloned())?
    }

    /// A POST that comes again is told what it was told.
    async fn answer(&self, mut request: Request, caller: Option<&Principal>) -> Answered {
        let kept = match caller {
            Some(caller) => kept::find(&self.state, caller, &mut request).await,
            None => Ok(Kept::No),
        };
        match kept {
            Ok(Kept::No) => ask(&*self.inner, request).await,
            Ok(Kept::Told(response)) => Answered {
                outcome: Ok(response),
                route: self.route(request).await,
            },
            Ok(Kept::First(keeper)) => {
                let (inner, state) = (self.inner.clone(), self.state.clone());
                // A task of its own: whatever it makes is remembered, though the client be gone.
                let asked = tokio::spawn(async move {
                    let answered = ask(&*inner, request).await;
                    let outcome = keeper.keep(&state, answered.outcome).await;
                    Answered {
                        outcome,
                        ..answered
                    }
                });
                let failed = |_| Err(ApiError::internal("a request's task ended")).into();
                asked.await.unwrap_or_else(failed)
            }
            Err(error) => Answered {
                outcome: Err(error),
                route: self.route(request).await,
            },
        }
    }

    /// The route of a request that it is not asked to answer. The router tells it of a method that it refuses, too.
    async fn route(&self, mut request: Request) -> Option<PathPattern> {
        request.set_method(Method::TRACE);
        ask(&*self.inner, request).await.route
    }
}

async fn ask(inner: &impl Endpoint, request: Request) -> Answered {
    let (method, path) = (request.method().clone(), echo(request.uri().path()));
    match AssertUnwindSafe(inner.call(request)).catch_unwind().await {
        Ok(Ok(response)) => {
            let response = response.into_response();
            let route = response.data().cloned();
            Answered {
                outcome: Ok(response),
                route,
            }
        }
        Ok(Err(error)) => {
            let route = error.data().cloned();
            Answered {
                outcome: Err(ApiError::from_poem(error, &method, &path)),
                route,
            }
        }
        Err(_panic) => Err(ApiError::internal("a handler panicked")).into(),
    }
}

fn is_api(path: &str) -> bool {
    path == "/v1" || path.starts_with("/v1/")
}

/// Some clients send a model's name with bare slashes: everything behind `/v1/models/` is the name.
fn one_segment_models(request: &mut Request) {
    let uri = request.uri();
    let Some(name) = uri.path().strip_prefix("/v1/models/") else {
        return;
    };
    if !name.contains('/') {
        return;
    }
    let query = uri
        .query()
        .map(|query| format!("?{query}"))
        .unwrap_or_default();
    let path = format!("/v1/models/{}{query}", name.replace('/', "%2F"));
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = PathAndQuery::try_from(path).ok();
    if let Ok(uri) = Uri::from_parts(parts) {
        *request.uri_mut() = uri;
    }
}

/// `req_` and 32 hexadecimal digits, as OpenAI's.
fn request_id() -> String {
    format!("req_{:032x}", rand::random::<u128>())
}

/// Scripts of any origin may call `/v1`: it is opened by a key they must hold, never by a cookie.
fn preflight(request: &Request) -> Response {
    let mut response = Response::builder().status(preflight_status()).finish();
    let headers = response.headers_mut();
    headers.insert(
        header::ACCESS_CONTROL_ALLOW_ORIGIN,
        HeaderValue::from_static("*"),
    );
    let methods = HeaderValue::from_static("GET, POST, DELETE, OPTIONS");
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
    if let Some(wanted) = request
        .headers()
        .get(header::ACCESS_CONTROL_REQUEST_HEADERS)
    {
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, wanted.clone());
    }
    headers.insert(
        header::ACCESS_CONTROL_MAX_AGE,
        HeaderValue::from_static("86400"),
    );
    headers.insert(
        header::VARY,
        HeaderValue::from_static("access-control-request-headers"),
    );
    response
}

fn decorate(headers: &mut HeaderMap, seen: &Seen, is_api: bool, caller: Option<&Principal>) {
    let id = HeaderValue::try_from(&seen.id).expect("hexadecimal digits — a bug in request_id");
    headers.insert("x-request-id", id);
    let took_ms = u64::try_from(seen.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    headers.insert("openai-processing-ms", took_ms.into());
    headers.insert("openai-version", OPENAI_VERSION);
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    if is_api {
        headers.insert(
            header::ACCESS_CONTROL_ALLOW_ORIGIN,
            HeaderValue::from_static("*"),
        );
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
    }
    if seen.is_https {
        let year = HeaderValue::from_static("max-age=31536000");
        headers.insert(header::STRICT_TRANSPORT_SECURITY, year);
    }
    let slug = caller.map(|caller| HeaderValue::try_from(caller.organization_slug()));
    if let Some(Ok(slug)) = slug {
        headers.insert("openai-organization", slug);
    }
}

fn tell_rate(headers: &mut HeaderMap, rate: &RateStatus) {
    for (name, value) in crate::wire::rate_limits::headers(rate) {
        let value = HeaderValue::try_from(value).expect("digits and units");
        headers.insert(name, value);
    }
}

/// One line a request: never a body, a key or a file name.
fn note(
    seen: &Seen,
    route: Option<&PathPattern>,
    (status, error): (StatusCode, Option<&ApiError>),
    caller: Option<&Principal>,
) {
    let route = route.map_or("unmatched", |pattern| &pattern.0);
    let took = seen.begun.elapsed();
    let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    let project = caller
        .and_then(Principal::project)
        .map(|project| project.id.as_str());
    let detail = error.and_then(|error| error.detail.as_deref());
    let (id, method, code) = (seen.id.as_str(), seen.method.as_str(), status.as_u16());
    if status.is_server_error() {
        tracing::error!(
            request_id = id,
            method,
            route,
            status = code,
            ms,
            project,
            detail,
            "request"
        );
    } else {
        tracing::info!(
            request_id = id,
            method,
            route,
            status = code,
            ms,
            project,
            detail,
            "request"
        );
    }
    let labels = [
        ("method", known_method(&seen.method).to_owned()),
        ("route", route.to_owned()),
        ("status", code.to_string()),
    ];
    metrics::counter!("luthier_http_requests_total", &labels).increment(1);
    metrics::histogram!("luthier_http_request_seconds", &labels[..2]).record(took.as_secs_f64());
}

/// What a client makes up as a method is no label of its own: labels are kept for ever.
fn known_method(method: &Method) -> &str {
    match *method {
        Method::GET | Method::HEAD | Method::POST | Method::PUT | Method::PATCH => method.as_str(),
        Method::DELETE | Method::OPTIONS => method.as_str(),
        _ => "other",
    }
}
