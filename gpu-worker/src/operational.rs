//! `GET /metrics` of a worker: what it counted, and how full it is at this moment. Without authentication, as it names no tenant.

use std::sync::Arc;

use platform::telemetry::Metrics;
use poem::web::Data;
use poem::{Response, handler};

use crate::worker::Worker;

/// Starts to record, unless somebody else in this process did; then `/metrics` is theirs.
pub(crate) fn record_metrics() -> Option<Metrics> {
    match Metrics::install() {
        Ok(metrics) => Some(metrics),
        Err(error) => {
            tracing::warn!(%error, "/metrics shows nothing");
            None
        }
    }
}

#[handler]
pub(crate) fn show(worker: Data<&Arc<Worker>>, recorded: Data<&Metrics>) -> Response {
    let device = worker.device.gauges();
    metrics::gauge!("luthier_worker_live_sequences").set(device.n_live);
    metrics::gauge!("luthier_worker_waiting_requests")
        .set(device.n_waiting + worker.places.n_waiting());
    metrics::gauge!("luthier_worker_free_tokens").set(device.n_free_tokens as f64);
    let (memory_bytes, disk_bytes) = worker.adapters.sizes_bytes();
    metrics::gauge!("luthier_worker_adapter_memory_bytes").set(memory_bytes as f64);
    metrics::gauge!("luthier_worker_adapter_disk_bytes").set(disk_bytes as f64);
    Response::builder()
        .content_type("text/plain; version=0.0.4; charset=utf-8")
        .body(recorded.render())
}
