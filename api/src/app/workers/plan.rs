//! What a training would take of a worker's memory.

use std::sync::Arc;
use std::time::Duration;

use domain::dry_run::MemoryPlan;
use domain::message::{GenerateError, PlanRequest};
use domain::model::ServedModel;
use domain::worker::Worker;
use futures::FutureExt;

use super::{Refused, first_able, mapped, post, refused_without_reason, unreachable_worker};
use crate::state::State;

/// How long an answer waits for the plan: it is something beside others, and a worker that has to fetch the base first needs longer.
const WAIT: Duration = Duration::from_secs(5);

/// Asks the best worker that serves the base, and the next one where that one cannot. Errors: why none told.
pub async fn plan(state: &State, request: &PlanRequest) -> Result<MemoryPlan, String> {
    let base_model = &request.base_model;
    let model = ServedModel {
        base_model: base_model.clone(),
        adapter: None,
    };
    let asked = first_able(state, None, base_model, &model, |worker| {
        ask(state, worker, request).boxed()
    });
    let late = |_elapsed| {
        format!(
            "No worker told within {} s what memory the job would need: it may be loading the base model. Please ask for this dry run \
             again shortly.",
            WAIT.as_secs()
        )
    };
    let told = tokio::time::timeout(WAIT, asked).await.map_err(late)?;
    told.map_err(|error| {
        let detail = error.detail.as_deref();
        tracing::info!(base_model, reason = error.message, detail, "no memory plan");
        error.message
    })
}

async fn ask(
    state: &State,
    worker: Arc<Worker>,
    request: &PlanRequest,
) -> Result<MemoryPlan, Refused> {
    let response = post(state, &worker, "/v1/plan", request).await?;
    let status = response.status();
    let bytes = response.bytes().await;
    let bytes = bytes.map_err(|error| unreachable_worker(error.to_string()))?;
    if !status.is_success() {
        let error = serde_json::from_slice::<GenerateError>(&bytes);
        return Err(error.map_or_else(|_| refused_without_reason(status), mapped));
    }
    let plan = serde_json::from_slice(&bytes);
    plan.map_err(|error| unreachable_worker(format!("its plan is unreadable: {error}")))
}
