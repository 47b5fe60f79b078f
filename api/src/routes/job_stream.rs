//! `/v1/x/fine_tuning/jobs/{id}/stream`.

use poem::web::Data;
use poem_openapi::OpenApi;
use poem_openapi::param::{Header, Path, Query};

use super::Tag;
use super::reply::EventStream;
use crate::app;
use crate::auth::Caller;
use crate::error::ApiError;
use crate::state::Shared;
use crate::stream;
use crate::wire::fine_tuning_job::EventObject;

pub struct JobStreamApi;

#[OpenApi(prefix_path = "/v1/x/fine_tuning/jobs", tag = "Tag::Extensions")]
impl JobStreamApi {
    /// Streams a job's events, oldest first, those that are there and those to come, until the job has ended.
    ///
    /// It ends within seconds, too, once the key is revoked or has expired, or the project is archived.
    /// `after`, or the header `Last-Event-ID` that browsers send, names the last event that was seen.
    #[oai(
        path = "/:fine_tuning_job_id/stream",
        method = "get",
        operation_id = "streamFineTuningJob"
    )]
    async fn stream(
        &self,
        state: Data<&Shared>,
        caller: Caller,
        fine_tuning_job_id: Path<String>,
        after: Query<Option<String>>,
        #[oai(name = "Last-Event-ID")] last_event_id: Header<Option<String>>,
    ) -> Result<EventStream<EventObject>, ApiError> {
        let after = after.0.or(last_event_id.0);
        let news = app::job_news::follow(&state, &caller, &fine_tuning_job_id, after.as_deref());
        Ok(EventStream::new(stream::job_news::sse(news.await?)))
    }
}
