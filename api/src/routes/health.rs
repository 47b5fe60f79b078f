//! `/healthz` and `/readyz`, on both listeners; without a key.

use poem::web::Data;
use poem_openapi::OpenApi;
use poem_openapi::payload::{Json, Response};

use super::Tag;
use crate::error::readiness_status;
use crate::state::{Shared, State};
use crate::wire::reply::reply;

pub struct HealthApi;

reply! {
    /// Whether the process answers.
    Health as "Health" {
        /// `ok`.
        status: &'static str,
    }

    /// Whether the process can do its work.
    Readiness as "Readiness" {
        /// `ready` or `unavailable`.
        status: &'static str,
        /// `ok` or `unavailable`.
        database: &'static str,
        /// `ok` or `unavailable`.
        objects: &'static str,
    }
}

#[OpenApi(tag = "Tag::Operations")]
impl HealthApi {
    /// Answers as long as the process lives.
    #[oai(path = "/healthz", method = "get", operation_id = "health")]
    async fn health(&self) -> Json<Health> {
        alive()
    }

    /// Answers 200 when the database and the bucket can be used, else 503.
    #[oai(path = "/readyz", method = "get", operation_id = "readiness")]
    async fn ready(&self, state: Data<&Shared>) -> Response<Json<Readiness>> {
        readiness(&state).await
    }
}

pub fn alive() -> Json<Health> {
    Json(Health { status: "ok" })
}

pub async fn readiness(state: &State) -> Response<Json<Readiness>> {
    let (database, objects) = tokio::join!(state.store.ping(), state.objects.check());
    if let Err(error) = &database {
        tracing::warn!(%error, "the database is not ready");
    }
    if let Err(error) = &objects {
        tracing::warn!(%error, "the bucket is not ready");
    }
    let word = |ok: bool| if ok { "ok" } else { "unavailable" };
    let is_ready = database.is_ok() && objects.is_ok();
    let readiness = Readiness {
        status: if is_ready { "ready" } else { "unavailable" },
        database: word(database.is_ok()),
        objects: word(objects.is_ok()),
    };
    Response::new(Json(readiness)).status(readiness_status(is_ready))
}
