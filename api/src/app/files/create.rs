//! A file that comes whole: the bytes go straight into the bucket, then the row is written. Fields may come in any order.

use bytes::Bytes;
use domain::file::{File, Purpose};
use domain::id::FileId;
use domain::object_key;
use domain::project::Project;
use futures::Stream;
use platform::objects::Stored;
use serde_json::{Map, Value, json};
use store::StoreError;

use crate::app::form::{Bound, FormHead, discard, missing, no_form, put, text, unknown};
use crate::app::repeat::{Created, Repeat, Request, fingerprint};
use crate::app::storage::{self, Storage};
use crate::app::store_error;
use crate::auth::Caller;
use crate::body::too_large;
use crate::error::{ApiError, Kind};
use crate::multipart::Multipart;
use crate::state::State;
use crate::wire::decode::At;
use crate::wire::files::{display_name, lifetime_s, purpose};

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

/// Stores the form's file, or finds the one that the same request made before.
/// Errors: 400 for what the form says and where the project has no room, which is told before the bytes are read if the client says
/// how many they are; 413 for its size; nothing is kept then.
pub async fn create<S>(
    state: &State,
    caller: &Caller,
    head: FormHead<'_>,
    repeat: &Repeat,
    chunks: S,
) -> Result<Created<File>, ApiError>
where
    S: Stream<Item = std::io::Result<Bytes>> + Send + Unpin,
{
    let project = &caller.project;
    let room = room(state, project, repeat).await?;
    room.map_or(Ok(()), |room| room.check_form(head.content_length))?;
    let mut multipart = Multipart::new(head.content_type, chunks).map_err(no_form)?;
    let mut form = Form::default();
    let outcome = match read(state, project, room, &mut multipart, &mut form).await {
        Ok(()) => insert(state, caller, &form, repeat).await,
        Err(error) => Err(error),
    };
    let needs_object = match &outcome {
        Ok(created) => !created.is_replay,
        // The row may be there although the database's answer was lost.
        Err(error) => error.kind == Kind::Unavailable,
    };
    if let (false, Some(uploaded)) = (needs_object, &form.file) {
        discard(state, &object_key::file(&project.id, &uploaded.id)).await;
    }
    outcome
}

/// How the project's storage stands; `None` for what may be a repetition: it is read to be recognised, since a file that is there needs no
/// room.
async fn room(
    state: &State,
    project: &Project,
    repeat: &Repeat,
) -> Result<Option<Storage>, ApiError> {
    if repeat.key.is_some() || repeat.retry_count > 0 {
        return Ok(None);
    }
    storage::of_project(state, project).await.map(Some)
}

async fn read<S>(
    state: &State,
    project: &Project,
    room: Option<Storage>,
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
                let known = form.purpose.as_deref();
                // When the purpose is known to be wrong the bytes are read and dropped, so that the client, who is
                // still sending, gets to read the answer.
                match known
                    .map(|word| purpose(word, "file", &filename))
                    .transpose()
                {
                    Err(error) => refused = Some(error),
                    Ok(purpose) => {
                        let bound = Bound::of_size(max_bytes(state, purpose));
                        let bound = match room {
                            Some(room) => bound.within(room),
                            None => bound,
                        };
                        let id = FileId::mint(state.entropy());
                        let key = object_key::file(&project.id, &id);
                        let stored = put(state, &key, multipart, bound).await?;
                        form.file = Some(Uploaded {
                            id,
                            filename,
                            stored,
                        });
                    }
                }
                continue;
            }
            "purpose" => &mut form.purpose,
            "expires_after[anchor]" => &mut form.anchor,
            "expires_after[seconds]" => &mut form.seconds,
            other => {
                refused = Some(unknown(other));
                continue;
            }
        };
        *slot = Some(text(multipart, &part.name).await?);
    }
    refused.map_or(Ok(()), Err)
}

/// How large a file may be that comes whole. Bytes.
fn max_bytes(state: &State, purpose: Option<Purpose>) -> u64 {
    let of_purpose = purpose.and_then(Purpose::max_bytes).unwrap_or(u64::MAX);
    state.max_file_bytes.min(of_purpose)
}

async fn insert(
    state: &State,
    caller: &Caller,
    form: &Form,
    repeat: &Repeat,
) -> Result<Created<File>, ApiError> {
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
    let (files, limit) = (state.store.files(), storage::limit(state, &caller.project));
    match files.insert_within(&file, Some(&entry), limit).await {
        Ok(()) => Ok(Created::new(file)),
        // The same request came twice at once, and the other was faster.
        Err(StoreError::Repeated { object_id }) => {
            let file = super::get(state, &caller.project, &object_id).await?;
            Ok(Created::replay(file))
        }
        Err(error) => Err(store_error(error)),
    }
}

async fn replayed(state: &State, request: &Request<'_>) -> Result<Option<Created<File>>, ApiError> {
    let Some(id) = request.made_earlier(state).await? else {
        return Ok(None);
    };
    match super::get(state, &request.caller.project, &id).await {
        Ok(file) => Ok(Some(Created::replay(file))),
        // What an SDK sends again is new when the first one was deleted meanwhile; a key is never used twice.
        Err(gone) if gone.kind == Kind::NotFound && request.repeat.key.is_none() => {
            request.forget(state, &id).await?;
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn judged(state: &State, project: &Project, form: &Form) -> Result<File, ApiError> {
    let uploaded = form.file.as_ref().ok_or_else(|| missing("file"))?;
    let word = form.purpose.as_deref().ok_or_else(|| missing("purpose"))?;
    let purpose = purpose(word, "file", &uploaded.filename)?;
    let max_bytes = max_bytes(state, Some(purpose));
    if uploaded.stored.size_bytes > max_bytes {
        return Err(too_large(max_bytes));
    }
    let lifetime_s = lifetime_s(purpose, expires_after(form))?;
    let now = state.now();
    Ok(File {
        id: uploaded.id.clone(),
        project_id: project.id.clone(),
        filename: uploaded.filename.clone(),
        purpose,
        size_bytes: uploaded.stored.size_bytes,
        sha256: uploaded.stored.sha256.clone(),
        object_key: object_key::file(&project.id, &uploaded.id),
        created_at: now,
        expires_at: lifetime_s.map(|seconds| now.plus_s(seconds)),
    })
}

/// The object that the bracketed fields spell.
fn expires_after(form: &Form) -> Option<At> {
    let mut fields = Map::new();
    if let Some(anchor) = &form.anchor {
        fields.insert("anchor".to_owned(), anchor.as_str().into());
    }
    if let Some(seconds) = &form.seconds {
        let number = seconds.trim().parse::<i64>();
        let value = number.map_or_else(|_| Value::from(seconds.as_str()), Value::from);
        fields.insert("seconds".to_owned(), value);
    }
    (!fields.is_empty()).then(|| At::new("expires_after", fields.into()))
}
