//! `POST /v1/export`: a base model and its adapter as one, made while it is sent. The device has no part in it.

use std::sync::Arc;

use domain::message::{ExportError, ExportFormat, ExportRequest, GgufType};
use domain::x_training::FrozenWeights;
use engine::export::{FileType, Gguf, MAX_SHARD_BYTES, Merged};
use engine::lora::Adapter;
use platform::archive::{self, Archive, Entry};
use platform::service_token::ServiceKey;
use poem::http::StatusCode;
use poem::web::{Data, Json};
use poem::{Body, IntoResponse, Request, Response, handler};
use text::gguf::VocabularyError;
use tokio::sync::OwnedSemaphorePermit;

use crate::base_models::{Base, BaseError};
use crate::request::asked;
use crate::worker::Worker;

/// Exports at a time: each keeps a core busy that training could use, unless its reader is slow.
pub(crate) const MAX_EXPORTS: usize = 2;
/// Largest request. Bytes.
const MAX_BODY_BYTES: usize = 1 << 20;

#[handler]
pub(crate) async fn export(
    request: &Request,
    body: Body,
    worker: Data<&Arc<Worker>>,
    key: Data<&ServiceKey>,
) -> Response {
    let asked: ExportRequest = match asked(request, body, key.0, MAX_BODY_BYTES).await {
        Ok(asked) => asked,
        Err(refusal) => return refusal,
    };
    match begin(worker.0, asked).await {
        Ok(archive) => {
            let mut reply = Response::builder().content_type("application/octet-stream");
            if let Some(size_bytes) = archive.size_bytes {
                reply = reply.header("content-length", size_bytes);
            }
            reply.body(Body::from_bytes_stream(archive.bytes))
        }
        Err(error) => Json(&error).with_status(status_of(&error)).into_response(),
    }
}

fn status_of(error: &ExportError) -> StatusCode {
    match error {
        ExportError::Unsupported { .. } => StatusCode::BAD_REQUEST,
        ExportError::ModelNotInstalled { .. } => StatusCode::NOT_FOUND,
        ExportError::AdapterUnavailable { .. } | ExportError::Busy => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        ExportError::Internal { .. } => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// Everything that can be refused before the first byte.
async fn begin(worker: &Worker, asked: ExportRequest) -> Result<Archive, ExportError> {
    if worker.draining.is_cancelled() {
        return Err(ExportError::Busy);
    }
    let permit = Arc::clone(&worker.exports).try_acquire_owned();
    let permit = permit.map_err(|_| ExportError::Busy)?;
    let base = worker.bases.find(&asked.model.base_model).await;
    let base = base.map_err(|error| match error {
        BaseError::NotInstalled(model) => ExportError::ModelNotInstalled { model },
        error => internal(&error),
    })?;
    let adapter = match &asked.model.adapter {
        Some(reference) => {
            let adapter = worker.adapters.get(reference, &base).await;
            Some(adapter.map_err(|error| {
                let reason = error.to_string();
                ExportError::AdapterUnavailable { reason }
            })?)
        }
        None => None,
    };
    metrics::counter!("luthier_worker_exports_total").increment(1);
    let planned = tokio::task::spawn_blocking(move || entries(&base, adapter, &asked));
    let planned = planned.await.map_err(|panic| internal(&panic))??;
    Ok(match planned {
        Planned::File(entry) => archive::plain(held(permit, entry)),
        Planned::Folder(mut entries) => {
            let last = entries.pop().map(|entry| held(permit, entry));
            archive::zip(entries.into_iter().chain(last).collect())
        }
    })
}

/// What is to be sent.
enum Planned {
    File(Entry),
    Folder(Vec<Entry>),
}

/// The place among the exports is free again when the entry was written, or never will be.
fn held(permit: OwnedSemaphorePermit, entry: Entry) -> Entry {
    let content = entry.content;
    Entry {
        content: Box::new(move |out| {
            let _held = permit;
            content(out)
        }),
        ..entry
    }
}

fn entries(
    base: &Base,
    adapter: Option<Arc<Adapter>>,
    asked: &ExportRequest,
) -> Result<Planned, ExportError> {
    match asked.format {
        ExportFormat::Merged => {
            let merged = Merged::new(&base.folder.dir, adapter, MAX_SHARD_BYTES);
            let merged = Arc::new(merged.map_err(refusal)?);
            let readme = Entry::of_bytes("README.md", readme(asked));
            let file = |(i, (name, size_bytes)): (usize, (&str, u64))| {
                let merged = Arc::clone(&merged);
                Entry {
                    name: name.to_owned(),
                    size_bytes,
                    content: Box::new(move |out| merged.write(i, out)),
                }
            };
            let files = merged.files().enumerate().map(file);
            Ok(Planned::Folder([readme].into_iter().chain(files).collect()))
        }
        ExportFormat::Gguf { file_type } => {
            let dir = &base.folder.dir;
            let vocabulary = text::gguf::vocabulary(dir).map_err(|error| match error {
                VocabularyError::Load(error) => internal(&error),
                error => unsupported(&error),
            })?;
            let gguf = Gguf::new(dir, adapter, type_of(file_type), &asked.name, vocabulary);
            let gguf = gguf.map_err(refusal)?;
            Ok(Planned::File(Entry {
                name: asked.name.clone(),
                size_bytes: gguf.size_bytes(),
                content: Box::new(move |out| gguf.write(out)),
            }))
        }
    }
}

fn type_of(file_type: GgufType) -> FileType {
    match file_type {
        GgufType::F32 => FileType::F32,
        GgufType::F16 => FileType::F16,
        GgufType::Bf16 => FileType::Bf16,
        GgufType::Q8_0 => FileType::Q8_0,
    }
}

/// What the format cannot hold is the client's to know; what is wrong on this host is not.
fn refusal(error: engine::export::ExportError) -> ExportError {
    use engine::export::ExportError as Engine;
    match error {
        Engine::UnknownArchitecture { .. }
        | Engine::UnknownTensor { .. }
        | Engine::Unsupported { .. } => unsupported(&error),
        error => internal(&error),
    }
}

fn unsupported(error: &impl std::error::Error) -> ExportError {
    let reason = error.to_string();
    ExportError::Unsupported { reason }
}

fn internal(error: &impl std::error::Error) -> ExportError {
    tracing::error!(%error, "cannot export");
    let reason = error.to_string();
    ExportError::Internal { reason }
}

fn readme(asked: &ExportRequest) -> String {
    let trained_on = match asked.model.frozen_weights() {
        FrozenWeights::Stored => String::new(),
        other => format!(
            "\nThe adapter was trained with the base's weights held as {}. Here they are as the base has them, so answers \
             differ a little from those of the served model.\n",
            other.as_str()
        ),
    };
    format!(
        "---\nbase_model: {base}\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n\n# {name}\n\n\
         `{base}` with the adapter of `{name}` merged into its weights.\n{trained_on}\n```python\nfrom transformers import \
         AutoModelForCausalLM, AutoTokenizer\n\nmodel = AutoModelForCausalLM.from_pretrained(\".\")  # this folder\n\
         tokenizer = AutoTokenizer.from_pretrained(\".\")\n```\n",
        base = asked.model.base_model,
        name = asked.name,
    )
}
