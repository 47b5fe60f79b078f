//! `POST /v1/embed`: what a model makes of one text as a whole. Until then every few seconds a line says that it lasts.

use std::pin::pin;
use std::sync::Arc;

use domain::message::{EmbedEvent, EmbedRequest, Embedded, GenerateError, Prompt};
use platform::service_token::ServiceKey;
use poem::web::{Data, Json};
use poem::{Body, IntoResponse, Request, Response, handler};
use tokio::sync::mpsc;

use super::places::Admission;
use super::{
    LINES, MAX_BODY_BYTES, QUEUED_EVERY, adapter_of, base_of, check_length, known, refusal,
    spelled, status_of, unrenderable,
};
use crate::base_models::Base;
use crate::request::asked;
use crate::worker::Worker;

#[handler]
pub(super) async fn embed(
    request: &Request,
    body: Body,
    worker: Data<&Arc<Worker>>,
    key: Data<&ServiceKey>,
) -> Response {
    let asked: EmbedRequest = match asked(request, body, key.0, MAX_BODY_BYTES).await {
        Ok(asked) => asked,
        Err(refusal) => return refusal,
    };
    match begin(Arc::clone(worker.0), asked).await {
        Ok(body) => Response::builder()
            .content_type("application/x-ndjson")
            .body(body),
        Err(error) => Json(&error).with_status(status_of(&error)).into_response(),
    }
}

/// Everything that can be refused before the first line.
async fn begin(worker: Arc<Worker>, asked: EmbedRequest) -> Result<Body, GenerateError> {
    let base = base_of(&worker, &asked.model.base_model).await?;
    let tokens = match &asked.input {
        Prompt::Text(text) => base.chat.text_prompt(text).map_err(unrenderable)?,
        Prompt::Tokens(ids) => known(&base, ids, "input")?.to_vec(),
    };
    check_length(&worker, &base, tokens.len(), 0)?;
    let admission = worker.places.admit(asked.priority);
    let admission = admission.ok_or(GenerateError::Busy)?;
    let text = Text {
        worker,
        base,
        asked,
        tokens,
    };
    let (lines, reader) = mpsc::channel(LINES);
    tokio::spawn(text.answer(admission, lines));
    Ok(spelled(reader))
}

/// A text that can be read.
struct Text {
    worker: Arc<Worker>,
    base: Arc<Base>,
    asked: EmbedRequest,
    tokens: Vec<u32>,
}

impl Text {
    /// Waits for its place and is read; the client may leave at any time.
    async fn answer(self, admission: Admission, lines: mpsc::Sender<EmbedEvent>) {
        let mut lasts = tokio::time::interval(QUEUED_EVERY);
        let mut reading = pin!(self.read(admission));
        let last = loop {
            tokio::select! {
                read = &mut reading => break read,
                _ = lasts.tick() => {
                    if lines.send(EmbedEvent::Queued).await.is_err() {
                        return;
                    }
                }
                () = lines.closed() => return,
            }
        };
        let last = last.map_or_else(EmbedEvent::from, EmbedEvent::Embedded);
        // A client that left needs no answer.
        let _ = lines.send(last).await;
    }

    async fn read(self, admission: Admission) -> Result<Embedded, GenerateError> {
        let _place = admission.place().await;
        let adapter = adapter_of(&self.worker, &self.base, &self.asked.model).await?;
        let folder = self.base.folder_as(self.asked.model.frozen_weights());
        let prompt_tokens = self.tokens.len() as u64;
        let read = self.worker.device.embed(folder, adapter, self.tokens).await;
        let embedding = read.map_err(refusal)?;
        metrics::counter!("luthier_worker_embed_requests_total").increment(1);
        metrics::counter!("luthier_worker_prompt_tokens_total").increment(prompt_tokens);
        Ok(Embedded {
            embedding,
            prompt_tokens,
        })
    }
}
