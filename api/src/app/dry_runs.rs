//! Dry runs: ordered here and reported on by the scheduler, who has the tokenizers. Nothing is made but the report.

use std::time::Duration;

use domain::dry_run::{DryRun, Estimates, MAX_UNFINISHED, MemoryPlan, Plan, Price, Report};
use domain::id::DryRunId;
use domain::job::JobSpec;
use domain::message::PlanRequest;
use domain::price::{amount_of, price};
use domain::project::Project;
use domain::speed::seconds_for;
use tokio::time::{Instant, sleep};

use super::fine_tuning::checked;
use super::{files, store_error, workers};
use crate::error::{ApiError, Kind};
use crate::state::State;
use crate::wire::decode::echo;
use crate::wire::dry_runs::{DryRunObject, FileOrder};
use crate::wire::fine_tuning::JobOrder;

/// How long an answer waits for the report; proxies commonly give up after a minute.
const WAIT: Duration = Duration::from_secs(50);
/// Finished jobs whose speed counts: the newest.
const SPEEDS: u64 = 20;
/// Between two looks at the row: at first, and at most.
const PAUSES: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(1)];

/// A job's dry run, with its report if that comes in time. Errors: 400 as for the job; 429.
pub async fn order(
    state: &State,
    project: &Project,
    order: JobOrder,
) -> Result<DryRunObject, ApiError> {
    let dry_run = DryRun {
        id: DryRunId::mint(state.entropy()),
        project_id: project.id.clone(),
        spec: checked(state, project, order).await?,
        created_at: state.now(),
        report: None,
    };
    let inserted = state.store.dry_runs().insert(&dry_run).await;
    if !inserted.map_err(store_error)? {
        let message = format!(
            "This project already has {MAX_UNFINISHED} unfinished dry runs. Please wait until one has ended."
        );
        let error = ApiError::new(Kind::TooManyRequests, message);
        return Err(error.code("rate_limit_exceeded").retry_after(1));
    }
    let dry_run = reported(state, project, dry_run).await?;
    told(state, dry_run).await
}

/// The dry run of a job on the file. Errors: 404 for the file; 400 as for a job on it; 429.
pub async fn of_file(
    state: &State,
    project: &Project,
    file: &str,
    file_order: FileOrder,
) -> Result<DryRunObject, ApiError> {
    let file = files::get(state, project, file).await?;
    order(state, project, file_order.on(file.id.to_string())).await
}

/// Errors: 404.
pub async fn get(state: &State, project: &Project, id: &str) -> Result<DryRunObject, ApiError> {
    let dry_run = find(state, project, id).await?;
    told(state, dry_run).await
}

async fn find(state: &State, project: &Project, id: &str) -> Result<DryRun, ApiError> {
    let unknown = || ApiError::not_found(format!("No such dry run: {}", echo(id))).param("id");
    let dry_run = DryRunId::parse(id).map_err(|_| unknown())?;
    let found = state.store.dry_runs().find(&project.id, &dry_run).await;
    found.map_err(store_error)?.ok_or_else(unknown)
}

/// The dry run once it has its report, or as it is when the time is up.
async fn reported(
    state: &State,
    project: &Project,
    mut dry_run: DryRun,
) -> Result<DryRun, ApiError> {
    let deadline = Instant::now() + WAIT;
    let [mut pause, longest] = PAUSES;
    while dry_run.report.is_none() && Instant::now() < deadline {
        sleep(pause).await;
        pause = (pause * 3 / 2).min(longest);
        dry_run = find(state, project, dry_run.id.as_str()).await?;
    }
    Ok(dry_run)
}

/// The dry run beside what is estimated of it.
async fn told(state: &State, dry_run: DryRun) -> Result<DryRunObject, ApiError> {
    let report = dry_run.report.as_ref();
    let planned = report.and_then(|report| Some((report, report.plan.as_ref()?)));
    let estimates = match planned {
        Some((report, plan)) => estimates(state, &dry_run.spec, report, plan).await?,
        None => Estimates::default(),
    };
    Ok(DryRunObject::new(dry_run, estimates))
}

async fn estimates(
    state: &State,
    spec: &JobSpec,
    report: &Report,
    plan: &Plan,
) -> Result<Estimates, ApiError> {
    let speeds = state.store.training_speeds();
    let speeds = speeds.latest(&spec.model, spec.method.name(), SPEEDS).await;
    let speeds = speeds.map_err(store_error)?;
    Ok(Estimates {
        price: price_of(state, &spec.model, plan),
        seconds: seconds_for(plan.trained_tokens, &speeds),
        memory: Some(memory(state, spec, report).await),
    })
}

/// What a worker says that the job would take of its memory, or why none does.
async fn memory(state: &State, spec: &JobSpec, report: &Report) -> Result<MemoryPlan, String> {
    let base = state.store.base_models().find(&spec.model).await;
    let base = base.map_err(|error| store_error(error).message)?;
    let gone = || {
        format!(
            "The model '{}' is not installed any more.",
            echo(&spec.model)
        )
    };
    let base = base.ok_or_else(gone)?;
    let files = [&report.training, &report.validation].into_iter().flatten();
    let longest = files.map(|file| file.longest.max(file.longest_together));
    let request = PlanRequest {
        base_model: base.name,
        training: spec.training(base.context_length),
        preference: spec.method.preference(),
        longest: longest.max().unwrap_or(0),
    };
    workers::plan(state, &request).await
}

fn price_of(state: &State, base_model: &str, plan: &Plan) -> Option<Price> {
    let per_million_tokens = price(&state.prices, base_model)?.trained;
    Some(Price {
        n_tokens: plan.trained_tokens,
        per_million_tokens,
        amount: amount_of(plan.trained_tokens, per_million_tokens),
    })
}
