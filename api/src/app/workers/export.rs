//! A whole model, made by a worker while the client reads it.

use std::io;
use std::sync::Arc;

use domain::message::{ExportError, ExportRequest};
use domain::worker::Worker;
use futures::{FutureExt, TryStreamExt};
use platform::archive::Archive;

use super::{Refused, first_able, no_worker, post, refused_without_reason, unless_silent};
use crate::error::{ApiError, Kind};
use crate::state::State;

/// Asks the best worker, and the next one where that one cannot. Dropping the bytes ends the export.
/// Errors: 400 where the format cannot hold the model; 503 where no worker can make it.
pub async fn export(state: &State, request: &ExportRequest) -> Result<Archive, ApiError> {
    first_able(state, None, &request.name, &request.model, |worker| {
        let begun = unless_silent(begin(state, worker, request));
        begun.map(|begun| begun?).boxed()
    })
    .await
}

/// Sends the request and waits for the head of the reply.
async fn begin(
    state: &State,
    worker: Arc<Worker>,
    request: &ExportRequest,
) -> Result<Archive, Refused> {
    let response = post(state, &worker, "/v1/export", request).await?;
    let status = response.status();
    if status.is_success() {
        return Ok(Archive {
            size_bytes: response.content_length(),
            bytes: Box::pin(response.bytes_stream().map_err(io::Error::other)),
        });
    }
    match response.json::<ExportError>().await {
        Ok(error) => Err(mapped(error)),
        Err(_) => Err(refused_without_reason(status)),
    }
}

fn mapped(error: ExportError) -> Refused {
    Refused::Next(match error {
        ExportError::Unsupported { reason } => {
            let message = format!("This model cannot be exported in this format: {reason}.");
            return Refused::Final(ApiError::unsupported("format", message));
        }
        ExportError::ModelNotInstalled { model } => no_worker(&model),
        ExportError::AdapterUnavailable { reason } => {
            let message = "The weights of this model cannot be loaded at the moment. Please try again shortly.";
            ApiError::new(Kind::Unavailable, message)
                .retry_after(5)
                .detail(reason)
        }
        ExportError::Busy => {
            let message = "All workers are busy with other exports. Please try again shortly.";
            ApiError::overloaded(message).retry_after(10)
        }
        ExportError::Internal { reason } => {
            ApiError::internal(format!("the worker failed: {reason}"))
        }
    })
}
