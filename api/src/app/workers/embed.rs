//! What a model makes of one text as a whole.

use std::io;
use std::sync::Arc;

use domain::message::{EmbedEvent, EmbedRequest, Embedded, GenerateError};
use domain::worker::Worker;
use futures::{FutureExt, StreamExt};

use super::{Refused, events, first_able, post, refused, unless_silent, unreachable_worker};
use crate::error::ApiError;
use crate::state::State;

/// Asks the best worker, and the next one where that one cannot. Dropping the future ends the reading.
/// Errors: what the client did wrong, about `input`; 503 where no worker can answer.
pub async fn embed(
    state: &State,
    name: &str,
    request: &EmbedRequest,
) -> Result<Embedded, ApiError> {
    let last = state.workers.last();
    first_able(state, last, name, &request.model, |worker| {
        ask(state, worker, request).boxed()
    })
    .await
}

async fn ask(
    state: &State,
    worker: Arc<Worker>,
    request: &EmbedRequest,
) -> Result<Embedded, Refused> {
    let response = unless_silent(post(state, &worker, "/v1/embed", request)).await??;
    if !response.status().is_success() {
        return Err(unless_silent(refused(response, mapped)).await?);
    }
    let chunks = response.bytes_stream();
    let mut events = events(chunks.map(|chunk| chunk.map_err(io::Error::other)));
    loop {
        match unless_silent(events.next()).await? {
            Some(EmbedEvent::Queued) => {}
            Some(EmbedEvent::Embedded(embedded)) => return Ok(embedded),
            Some(EmbedEvent::Failed { error }) => return Err(mapped(error)),
            None => return Err(unreachable_worker("an empty reply".to_owned())),
        }
    }
}

fn mapped(error: GenerateError) -> Refused {
    match error {
        GenerateError::ContextLengthExceeded {
            context_length,
            prompt_tokens,
        } => Refused::Final(ApiError::invalid(
            "input",
            "context_length_exceeded",
            format!(
                "This model's maximum context length is {context_length} tokens. However, an input resulted in \
                 {prompt_tokens} tokens. Please reduce the length of the input."
            ),
        )),
        other => super::mapped(other),
    }
}
