//! Paths and bodies; what they mean stands in the other modules.

use domain::id::JobId;
use domain::message::{
    AttemptReply, BeatRequest, CheckpointRequest, ClaimReply, ClaimRequest, FailRequest,
    FinishRequest, HelloReply, HelloRequest,
};
use platform::service_token::ServiceKey;
use poem::web::{Data, Json, Path};
use poem::{Endpoint, EndpointExt, Response, Route, get, handler, post};

use super::DoorError;
use super::auth::ServiceTokens;
use crate::scheduler::Scheduler;

/// A beat may carry the measurements of many steps, when the door was away for a while. Bytes.
const MAX_BODY_BYTES: usize = 4 << 20;

type Answer<T> = Result<Json<T>, DoorError>;

/// The whole door.
pub(crate) fn endpoint(scheduler: Scheduler, key: ServiceKey) -> impl Endpoint<Output = Response> {
    let door = Route::new()
        .at("/hello", post(hello))
        .at("/claim", post(claim))
        .at("/jobs/:job/attempts/:attempt/beat", post(beat))
        .at("/jobs/:job/attempts/:attempt/checkpoint", post(checkpoint))
        .at("/jobs/:job/attempts/:attempt/finalizing", post(finalizing))
        .at("/jobs/:job/attempts/:attempt/finish", post(finish))
        .at("/jobs/:job/attempts/:attempt/fail", post(fail))
        .at("/jobs/:job/attempts/:attempt/stopped", post(stopped))
        .with(poem::middleware::SizeLimit::new(MAX_BODY_BYTES))
        .data(scheduler)
        .map_to_response()
        .with(ServiceTokens(key));
    Route::new()
        .at("/healthz", get(healthz))
        .nest("/door/v1", door)
        .map_to_response()
}

/// The job and the attempt a worker acts for.
pub(super) struct Named {
    pub job: JobId,
    pub attempt: u32,
}

fn named(Path((job, attempt)): Path<(String, u32)>) -> Result<Named, DoorError> {
    let job = JobId::parse(&job).map_err(|_| DoorError::NotFound)?;
    Ok(Named { job, attempt })
}

#[handler]
fn healthz() -> &'static str {
    "ok"
}

#[handler]
async fn hello(
    Data(scheduler): Data<&Scheduler>,
    Json(request): Json<HelloRequest>,
) -> Answer<HelloReply> {
    scheduler.hello(request).await.map(Json)
}

#[handler]
async fn claim(
    Data(scheduler): Data<&Scheduler>,
    Json(request): Json<ClaimRequest>,
) -> Answer<ClaimReply> {
    scheduler.claim(request).await.map(Json)
}

#[handler]
async fn beat(
    Data(scheduler): Data<&Scheduler>,
    path: Path<(String, u32)>,
    Json(request): Json<BeatRequest>,
) -> Answer<AttemptReply> {
    scheduler.beat(named(path)?, request).await.map(Json)
}

#[handler]
async fn checkpoint(
    Data(scheduler): Data<&Scheduler>,
    path: Path<(String, u32)>,
    Json(request): Json<CheckpointRequest>,
) -> Answer<AttemptReply> {
    scheduler.checkpoint(named(path)?, request).await.map(Json)
}

#[handler]
async fn finalizing(
    Data(scheduler): Data<&Scheduler>,
    path: Path<(String, u32)>,
) -> Answer<AttemptReply> {
    scheduler.finalizing(named(path)?).await.map(Json)
}

#[handler]
async fn finish(
    Data(scheduler): Data<&Scheduler>,
    path: Path<(String, u32)>,
    Json(request): Json<FinishRequest>,
) -> Answer<AttemptReply> {
    let Named { job, attempt } = named(path)?;
    scheduler.finish(job, attempt, request).await.map(Json)
}

#[handler]
async fn fail(
    Data(scheduler): Data<&Scheduler>,
    path: Path<(String, u32)>,
    Json(request): Json<FailRequest>,
) -> Answer<AttemptReply> {
    scheduler.fail(named(path)?, request).await.map(Json)
}

#[handler]
async fn stopped(
    Data(scheduler): Data<&Scheduler>,
    path: Path<(String, u32)>,
) -> Answer<AttemptReply> {
    scheduler.stopped(named(path)?).await.map(Json)
}
