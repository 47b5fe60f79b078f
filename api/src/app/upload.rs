//! An upload: the bytes go straight into the bucket, then the row is written. Fields may come in any order.

use bytes::Bytes;
use domain::file::{EXPIRES_AFTER_S, File, Purpose};
use domain::id::FileId;
use domain::object_key;
use domain::project::Project;
use futures::Stream;
use platform::objects::{ObjectsError, Stored};
use serde_json::json;
use store::StoreError;

use super::repeat::{Repeat, Request, fingerprint};
use super::{objects_error, store_error};
use crate::auth::Caller;
use crate::body::{too_large, unread};
use crate::error::{ApiError, Kind};
use crate::multipart::{Multipart, MultipartError};
use crate::state::State;
use crate::wire::decode::{At, echo};

/// A display name is cut here. Characters.
const MAX_FILENAME: usize = 255;
/// A field that is no file holds a word or a number. Bytes.
const MAX_FIELD: usize = 4096;

/// What the form held so far.
#[derive(Default)]
struct Form {
    file: Option<Uploaded>,
    purpose: Option<String>,
    anchor: Option<String>,
    seconds: Option<String>,
}

/// Bytes that lie in the bucket and have no row yet.
struct Uploaded {
    id: FileId,
    filename: String,
    stored: Stored,
}

/// A file, and whether an earlier request made it.
pub struct Created {
    pub file: File,
    pub is_replay: bool,
}

/// Stores the form's file, or finds the one that the same request made before.
/// Errors: 400 for what the form says, 413 for its size; nothing is kept then.
pub async fn create<S>(
    state: &State,
    caller: &Caller,
    content_type: Option<&str>,
    repeat: &Repeat,
    chunks: S,
) -> Result<Created, ApiError>
where
    S: Stream<Item = std::io::Result<Bytes>> + Send + Unpin,
{
    let project = &caller.project;
    let mut multipart = Multipart::new(content_type, chunks).map_err(no_form)?;
    let mut form = Form::default();
    let outcome = match read(state, project, &mut multipart, &mut form).await {
        Ok(()) => insert(state, caller, &form, repeat).await,
        Err(error) => Err(error),
    };
    let is_kept = matches!(&outcome, Ok(created) if !created.is_replay);
    if let (false, Some(uploaded)) = (is_kept, &form.file) {
        let key = object_key::file(&project.id, &uploaded.id);
        if let Err(error) = state.objects.delete(&key).await {
            tracing::warn!(%key, %error, "an object without a row stays until the next sweep");
        }
    }
    outcome
}

async fn read<S>(
    state: &State,
    project: &Project,
    multipart: &mut Multipart<S>,
    form: &mut Form,
) -> Result<(), ApiError>
where
    S: Stream<Item = std::io::Result<Bytes>> + Send + Unpin,
{
    let mut refused = None;
    while let Some(part) = multipart.next_part().await.map_err(no_form)? {
        let slot = match part.name.as_str() {
            "file" if form.file.is_none() => {
                let filename = display_name(part.filename.as_deref().unwrap_or("file"));
                // When the purpose is known to be wrong the bytes are read and dropped, so that the client, who is
                // still sending, gets to read the answer.
                let judged = form
                    .purpose
                    .as_deref()
                    .map(|purpose| judge(purpose, &filename));
                match judged.transpose() {
                    Err(error) => refused = Some(error),
                    Ok(_) => form.file = Some(put(state, project, filename, multipart).await?),
                }
                continue;
            }
            "purpose" => &mut form.purpose,
            "expires_after[anchor]" => &mut form.anchor,
            "expires_after[seconds]" => &mut form.seconds,
            other => {
                let name = echo(other);
                let message = format!("Unknown parameter: '{name}'.");
                refused = Some(ApiError::invalid(name, "unknown_parameter", message));
                continue;
            }
        };
        *slot = Some(text(multipart, &part.name).await?);
    }
    refused.map_or(Ok(()), Err)
}

async fn put<S>(
    state: &State,
    project: &Project,
    filename: String,
    multipart: &mut Multipart<S>,
) -> Result<Uploaded, ApiError>
where
    S: Stream<Item = std::io::Result<Bytes>> + Send + Unpin,
{
    let id = FileId::mint(state.entropy());
    let max = state.max_file_bytes;
    let content = futures::stream::try_unfold((multipart, 0_u64), |(multipart, n)| async move {
        match multipart.chunk().await {
            Ok(None) => Ok(None),
            Ok(Some(chunk)) => {
                let n = n + chunk.len() as u64;
                if n > max {
                    return Err(std::io::Error::other(too_large(max)));
                }
                Ok(Some((chunk, (multipart, n))))
            }
            Err(error) => Err(std::io::Error::other(no_form(error))),
        }
    });
    let key = object_key::file(&project.id, &id);
    match state.objects.put(&key, content).await {
        Ok(stored) => Ok(Uploaded {
            id,
            filename,
            stored,
        }),
        Err(ObjectsError::Body(error)) => Err(match error.downcast::<ApiError>() {
            Ok(refusal) => refusal,
            Err(error) => unread(error),
        }),
        Err(error) => Err(objects_error(error)),
    }
}

pub(super) async fn text<S>(multipart: &mut Multipart<S>, name: &str) -> Result<String, ApiError>
where
    S: Stream<Item = std::io::Result<Bytes>> + Send + Unpin,
{
    let mut whole = Vec::new();
    while let Some(chunk) = multipart.chunk().await.map_err(no_form)? {
        if whole.len() + chunk.len() > MAX_FIELD {
            let message = format!("Invalid '{name}': at most {MAX_FIELD} bytes are accepted.");
            return Err(ApiError::invalid(name, "string_above_max_length", message));
        }
        whole.extend_from_slice(&chunk);
    }
    String::from_utf8(whole).map_err(|_| {
        let message = format!("Invalid '{name}': expected text in UTF-8.");
        ApiError::invalid(name, "invalid_value", message)
    })
}

async fn insert(
    state: &State,
    caller: &Caller,
    form: &Form,
    repeat: &Repeat,
) -> Result<Created, ApiError> {
    let file = judged(state, &caller.project, form)?;
    let request = Request {
        caller,
        endpoint: "POST /files",
        repeat,
        fingerprint: fingerprint(&json!([
            file.filename,
            file.purpose.as_str(),
            file.sha256,
            form.seconds
        ])),
    };
    if let Some(created) = replayed(state, &request).await? {
        return Ok(created);
    }
    let entry = request.entry(file.created_at);
    match state.store.files().insert(&file, Some(&entry)).await {
        Ok(()) => Ok(Created {
            file,
            is_replay: false,
        }),
        // The same key came twice at once, and the other was faster.
        Err(error @ StoreError::Conflict(_)) => replayed(state, &request)
            .await?
            .ok_or_else(|| store_error(error)),
        Err(error) => Err(store_error(error)),
    }
}

async fn replayed(state: &State, request: &Request<'_>) -> Result<Option<Created>, ApiError> {
    let Some(id) = request.made_earlier(state).await? else {
        return Ok(None);
    };
    match super::files::get(state, &request.caller.project, &id).await {
        Ok(file) => Ok(Some(Created {
            file,
            is_replay: true,
        })),
        // What an SDK sends again is new when the first one was deleted meanwhile; a key is never used twice.
        Err(gone) if gone.kind == Kind::NotFound && request.repeat.key.is_none() => Ok(None),
        Err(error) => Err(error),
    }
}

fn judged(state: &State, project: &Project, form: &Form) -> Result<File, ApiError> {
    let missing = |name: &'static str| {
        let message = format!("Missing required parameter: '{name}'.");
        ApiError::invalid(name, "missing_required_parameter", message)
    };
    let uploaded = form.file.as_ref().ok_or_else(|| missing("file"))?;
    let purpose = form.purpose.as_deref().ok_or_else(|| missing("purpose"))?;
    let now = state.now();
    Ok(File {
        id: uploaded.id.clone(),
        project_id: project.id.clone(),
        filename: uploaded.filename.clone(),
        purpose: judge(purpose, &uploaded.filename)?,
        size_bytes: uploaded.stored.size_bytes,
        sha256: uploaded.stored.sha256.clone(),
        object_key: object_key::file(&project.id, &uploaded.id),
        created_at: now,
        expires_at: expires_after_s(form)?.map(|seconds| now.plus_s(seconds)),
    })
}

/// The purpose, if a client may upload for it under this name.
fn judge(purpose: &str, filename: &str) -> Result<Purpose, ApiError> {
    let known = Purpose::UPLOADABLE
        .into_iter()
        .find(|known| known.as_str() == purpose);
    let Some(known) = known else {
        let list: Vec<String> = Purpose::UPLOADABLE
            .iter()
            .map(|p| format!("'{}'", p.as_str()))
            .collect();
        let message = format!(
            "'{}' is not one of [{}] - 'purpose'",
            echo(purpose),
            list.join(", ")
        );
        return Err(ApiError::invalid("purpose", "invalid_value", message));
    };
    if known == Purpose::FineTune && !filename.to_ascii_lowercase().ends_with(".jsonl") {
        let message = "Invalid file format for Fine-Tuning API. Must be .jsonl";
        return Err(ApiError::new(Kind::BadRequest, message).param("file"));
    }
    Ok(known)
}

fn expires_after_s(form: &Form) -> Result<Option<i64>, ApiError> {
    let (anchor, seconds) = match (&form.anchor, &form.seconds) {
        (None, None) => return Ok(None),
        (Some(anchor), Some(seconds)) => (anchor, seconds),
        (anchor, _) => {
            let name = if anchor.is_none() {
                "expires_after.anchor"
            } else {
                "expires_after.seconds"
            };
            let message = format!("Missing required parameter: '{name}'.");
            return Err(ApiError::invalid(
                name,
                "missing_required_parameter",
                message,
            ));
        }
    };
    At::new("expires_after.anchor", anchor.as_str().into()).one_of(&["created_at"])?;
    let seconds = match seconds.trim().parse::<i64>() {
        Ok(seconds) => seconds.into(),
        Err(_) => seconds.as_str().into(),
    };
    At::new("expires_after.seconds", seconds)
        .integer(EXPIRES_AFTER_S)
        .map(Some)
}

/// A name that can be shown: without control characters, of bounded length. It is no part of any path.
fn display_name(name: &str) -> String {
    let shown: String = name
        .chars()
        .filter(|c| !c.is_control())
        .take(MAX_FILENAME)
        .collect();
    if shown.is_empty() {
        "file".to_owned()
    } else {
        shown
    }
}

pub(super) fn no_form(error: MultipartError) -> ApiError {
    match error {
        MultipartError::Read(error) => unread(error),
        MultipartError::ContentType => ApiError::new(
            Kind::BadRequest,
            "Invalid content type: expected multipart/form-data with a boundary.",
        ),
        other => ApiError::new(
            Kind::BadRequest,
            format!("Could not read the form: {other}."),
        ),
    }
}
