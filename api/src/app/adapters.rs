//! An adapter that a client brings becomes a model: it is unpacked and judged here, put where trained ones lie, and
//! announced only once a worker has answered with it.

mod archive;

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use domain::adapter_file::{CONFIG_FILE, WEIGHTS_FILE};
use domain::generation::{ChatMessage, Role};
use domain::id::{AdapterId, base62};
use domain::message::{GenerateEvent, GenerateRequest};
use domain::model::{AdapterRef, ServedModel, TunedModel, is_valid_suffix, tuned_model_name};
use domain::object_key;
use domain::project::Project;
use domain::x_training::{Adapter, FrozenWeights};
use futures::{Stream, StreamExt};
use platform::objects::Stored;
use serde_json::json;
use store::StoreError;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use self::archive::{BadArchive, unpack};
use super::fine_tuning::NONCE_CHARS;
use super::form::{missing, no_form, text, unknown};
use super::repeat::{Created, Repeat, Request, fingerprint};
use super::x_training::find_base;
use super::{models, objects_error, store_error, workers};
use crate::auth::Caller;
use crate::body::too_large;
use crate::error::ApiError;
use crate::multipart::Multipart;
use crate::state::State;

/// Bytes of a file in memory at a time.
const CHUNK_BYTES: usize = 256 * 1024;

/// What the form held. The archive lies in the scratch folder.
#[derive(Default)]
struct Form {
    has_file: bool,
    base_model: Option<String>,
    suffix: Option<String>,
}

/// Makes a model of the form's adapter, or finds the one that the same request made before.
/// Errors: 400 for what the form or the archive says, 413 for its size, 503 where no worker can try it; nothing is
/// kept then.
pub async fn create<S>(
    state: &State,
    caller: &Caller,
    content_type: Option<&str>,
    repeat: &Repeat,
    chunks: S,
) -> Result<Created<TunedModel>, ApiError>
where
    S: Stream<Item = io::Result<Bytes>> + Send + Unpin,
{
    let mut multipart = Multipart::new(content_type, chunks).map_err(no_form)?;
    let scratch = Scratch::new(&state.scratch_dir).await.map_err(host)?;
    let form = read(state, &scratch, &mut multipart).await?;
    let (base_model, suffix) = judged(state, &caller.project, form).await?;
    let (zip, weights) = (scratch.zip(), scratch.weights());
    let max_bytes = state.max_file_bytes;
    let unpacking = tokio::task::spawn_blocking(move || unpack(&zip, &weights, max_bytes));
    let unpacked = unpacking
        .await
        .map_err(|error| ApiError::internal(error.to_string()))?;
    let config = unpacked.map_err(|error| match error {
        BadArchive::Host(error) => host(error),
        error => invalid(error.to_string()),
    })?;
    Adapter::from_peft(&config).map_err(|error| invalid(error.to_string()))?;
    let prefix = object_key::adapter(&caller.project.id, &AdapterId::mint(state.entropy()));
    let brought = Brought {
        state,
        caller,
        repeat,
        base_model,
        suffix,
        prefix,
        config,
    };
    let outcome = brought.become_model(&scratch.weights()).await;
    if !matches!(&outcome, Ok(created) if !created.is_replay) {
        brought.discard().await;
    }
    outcome
}

async fn read<S>(
    state: &State,
    scratch: &Scratch,
    multipart: &mut Multipart<S>,
) -> Result<Form, ApiError>
where
    S: Stream<Item = io::Result<Bytes>> + Send + Unpin,
{
    let mut form = Form::default();
    let mut refused = None;
    while let Some(part) = multipart.next_part().await.map_err(no_form)? {
        let slot = match part.name.as_str() {
            "file" if !form.has_file => {
                save(multipart, &scratch.zip(), state.max_file_bytes).await?;
                form.has_file = true;
                continue;
            }
            "base_model" => &mut form.base_model,
            "suffix" => &mut form.suffix,
            // The rest is read all the same, so that the client, who is still sending, gets to read the answer.
            name => {
                refused = Some(unknown(name));
                continue;
            }
        };
        *slot = Some(text(multipart, &part.name).await?);
    }
    refused.map_or(Ok(form), Err)
}

async fn save<S>(multipart: &mut Multipart<S>, path: &Path, max_bytes: u64) -> Result<(), ApiError>
where
    S: Stream<Item = io::Result<Bytes>> + Send + Unpin,
{
    let mut file = tokio::fs::File::create_new(path).await.map_err(host)?;
    let mut n_bytes = 0;
    while let Some(chunk) = multipart.chunk().await.map_err(no_form)? {
        n_bytes += chunk.len() as u64;
        if n_bytes > max_bytes {
            return Err(too_large(max_bytes));
        }
        file.write_all(&chunk).await.map_err(host)?;
    }
    file.flush().await.map_err(host)
}

/// The base model's name and the suffix.
async fn judged(
    state: &State,
    project: &Project,
    form: Form,
) -> Result<(String, Option<String>), ApiError> {
    if !form.has_file {
        return Err(missing("file"));
    }
    let name = form.base_model.ok_or_else(|| missing("base_model"))?;
    let base = find_base(state, "base_model", &name).await?;
    models::check_allowed(project, &base.name)?;
    if form.suffix.as_deref().is_some_and(|s| !is_valid_suffix(s)) {
        let message = "Invalid 'suffix': expected 1 to 64 letters, digits, '.', '_' or '-': it becomes a part of the \
                       model's name.";
        return Err(ApiError::invalid("suffix", "invalid_value", message));
    }
    Ok((base.name, form.suffix))
}

/// An adapter on its way to be a model.
struct Brought<'a> {
    state: &'a State,
    caller: &'a Caller,
    repeat: &'a Repeat,
    base_model: String,
    suffix: Option<String>,
    /// Its folder in the bucket.
    prefix: String,
    config: String,
}

impl Brought<'_> {
    async fn become_model(&self, weights: &Path) -> Result<Created<TunedModel>, ApiError> {
        let state = self.state;
        let stored = self.put(weights).await?;
        let request = Request {
            caller: self.caller,
            endpoint: "POST /x/adapters",
            repeat: self.repeat,
            fingerprint: fingerprint(&json!([
                self.base_model,
                self.suffix,
                self.config,
                stored.sha256
            ])),
        };
        if let Some(created) = replayed(state, &request).await? {
            return Ok(created);
        }
        let model = self.model(stored);
        self.answers(&model).await?;
        let entry = request.entry(model.created_at);
        match state.store.models().insert(&model, Some(&entry)).await {
            Ok(()) => Ok(Created::new(model)),
            // The same request came twice at once, and the other was faster.
            Err(StoreError::Repeated { object_id: name }) => {
                let found = models::find_tuned(state, &self.caller.project, &name).await?;
                let found = found.ok_or_else(|| models::unknown(&name))?;
                Ok(Created::replay(found))
            }
            Err(error) => Err(store_error(error)),
        }
    }

    /// Puts both files where a trained adapter's lie.
    async fn put(&self, weights: &Path) -> Result<Stored, ApiError> {
        let objects = &self.state.objects;
        let config = Bytes::from(self.config.clone());
        objects
            .put_bytes(&format!("{}/{CONFIG_FILE}", self.prefix), config)
            .await
            .map_err(objects_error)?;
        let file = tokio::fs::File::open(weights).await.map_err(host)?;
        let content = futures::stream::try_unfold(file, |mut file| async move {
            let mut chunk = Vec::with_capacity(CHUNK_BYTES);
            let n = (&mut file)
                .take(CHUNK_BYTES as u64)
                .read_to_end(&mut chunk)
                .await?;
            Ok((n > 0).then(|| (Bytes::from(chunk), file)))
        });
        let key = format!("{}/{WEIGHTS_FILE}", self.prefix);
        objects.put(&key, content).await.map_err(objects_error)
    }

    fn model(&self, stored: Stored) -> TunedModel {
        let project = &self.caller.project;
        let nonce = base62(&self.state.entropy()[..NONCE_CHARS]);
        let (slug, suffix) = (&project.organization_slug, self.suffix.as_deref());
        TunedModel {
            name: tuned_model_name(&self.base_model, slug, suffix, &nonce),
            project_id: project.id.clone(),
            job_id: None,
            base_model: self.base_model.clone(),
            adapter: AdapterRef {
                object_prefix: self.prefix.clone(),
                sha256: stored.sha256,
                size_bytes: stored.size_bytes,
                frozen_weights: FrozenWeights::Stored,
            },
            owned_by: slug.clone(),
            created_at: self.state.now(),
        }
    }

    /// The proof: a worker loads the adapter onto its base and computes one token with it.
    async fn answers(&self, model: &TunedModel) -> Result<(), ApiError> {
        let message = ChatMessage::new(Role::User, "Hello");
        let served = ServedModel {
            base_model: model.base_model.clone(),
            adapter: Some(model.adapter.clone()),
        };
        let request = GenerateRequest {
            max_tokens: Some(1),
            ..GenerateRequest::new(served, model.project_id.to_string(), vec![message])
        };
        let begun = workers::generate(self.state, &model.base_model, &request).await;
        let mut events = begun.map_err(|error| match error.code {
            Some(workers::ADAPTER_UNFIT) => error.param("file"),
            _ => error,
        })?;
        while let Some(event) = events.next().await {
            match event {
                GenerateEvent::Done { .. } => return Ok(()),
                GenerateEvent::Failed { error } => {
                    let message = "The base model computes nothing of sense with this adapter.";
                    return Err(invalid(message.to_owned()).detail(error.to_string()));
                }
                _ => {}
            }
        }
        Err(workers::api_error(&super::chat::broken_off()))
    }

    /// Takes the objects back. What stays is swept later, as no row names it.
    async fn discard(&self) {
        for file in [CONFIG_FILE, WEIGHTS_FILE] {
            let key = format!("{}/{file}", self.prefix);
            if let Err(error) = self.state.objects.delete(&key).await {
                tracing::warn!(%key, %error, "an object without a row stays until the next sweep");
            }
        }
    }
}

async fn replayed(
    state: &State,
    request: &Request<'_>,
) -> Result<Option<Created<TunedModel>>, ApiError> {
    let Some(name) = request.made_earlier(state).await? else {
        return Ok(None);
    };
    match models::find_tuned(state, &request.caller.project, &name).await? {
        Some(model) => Ok(Some(Created::replay(model))),
        // What an SDK sends again is new when the first one was deleted meanwhile; a key is never used twice.
        None if request.repeat.key.is_none() => {
            request.forget(state, &name).await?;
            Ok(None)
        }
        None => Err(models::unknown(&name)),
    }
}

/// A folder of one request, which goes with it.
struct Scratch(PathBuf);

impl Scratch {
    async fn new(parent: &Path) -> io::Result<Self> {
        let folder = parent.join(format!("{:032x}", rand::random::<u128>()));
        tokio::fs::create_dir_all(&folder).await?;
        Ok(Self(folder))
    }

    fn zip(&self) -> PathBuf {
        self.0.join("adapter.zip")
    }

    fn weights(&self) -> PathBuf {
        self.0.join(WEIGHTS_FILE)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(folder = %self.0.display(), %error, "a scratch folder stays");
        }
    }
}

fn invalid(reason: String) -> ApiError {
    let message = format!("This is not an adapter that can be used: {reason}.");
    ApiError::invalid("file", "invalid_adapter", message)
}

fn host(error: io::Error) -> ApiError {
    let detail = format!("a file of the API's own: {error}");
    if error.kind() == io::ErrorKind::StorageFull {
        return ApiError::unavailable(detail);
    }
    ApiError::internal(detail)
}
