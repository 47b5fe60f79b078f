//! News of a job as server-sent events: each with the id to go on behind, after a break.

use bytes::Bytes;
use futures::future::ready;
use futures::{Stream, StreamExt};

use super::{DONE, push, push_error};
use crate::app::job_news::News;
use crate::error::ApiError;
use crate::wire::fine_tuning_job::{EventObject, JobObject};

/// `fine_tuning.job.event` for each event; at the end the job as `fine_tuning.job`, and `[DONE]`.
pub fn sse(
    news: impl Stream<Item = Result<News, ApiError>> + Send + 'static,
) -> impl Stream<Item = Bytes> + Send + 'static {
    news.then(|news| ready(spell(news)))
}

fn spell(news: Result<News, ApiError>) -> Bytes {
    let mut out = Vec::new();
    match news {
        Ok(News::Event(event)) => {
            let head = format!("id: {}\nevent: fine_tuning.job.event\n", event.id);
            out.extend_from_slice(head.as_bytes());
            push(&mut out, &EventObject::from(event));
        }
        Ok(News::Quiet) => out.extend_from_slice(b": no news\n\n"),
        Ok(News::Ended(job)) => {
            out.extend_from_slice(b"event: fine_tuning.job\n");
            push(&mut out, &JobObject::from(*job));
            out.extend_from_slice(DONE);
        }
        Err(error) => push_error(&mut out, &error),
    }
    out.into()
}
