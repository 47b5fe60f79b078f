//! The operational listener: metrics and health, for the operator's network only.

use platform::telemetry::Metrics;
use poem::web::Data;
use poem::{Endpoint, EndpointExt, Response, Route, get, handler};

use crate::routes::health;
use crate::state::Shared;

/// `/metrics`, `/healthz`, `/readyz`.
pub fn endpoint(state: Shared, recorded: Option<Metrics>) -> impl Endpoint<Output = Response> {
    let mut route = Route::new()
        .at("/healthz", get(healthz))
        .at("/readyz", get(readyz));
    if let Some(recorded) = recorded {
        route = route.at("/metrics", get(metrics).data(recorded));
    }
    route.data(state).map_to_response()
}

#[handler]
fn metrics(recorded: Data<&Metrics>) -> Response {
    Response::builder()
        .content_type("text/plain; version=0.0.4; charset=utf-8")
        .body(recorded.render())
}

#[handler]
fn healthz() -> Response {
    poem::IntoResponse::into_response(health::alive())
}

#[handler]
async fn readyz(state: Data<&Shared>) -> Response {
    poem::IntoResponse::into_response(health::readiness(&state).await)
}
