//! Uploads: files that come in parts. Parts are objects of their own; completing an upload makes one object of them.

mod join;

use bytes::Bytes;
use domain::file::File;
use domain::id::{FileId, PartId, UploadId};
use domain::object_key;
use domain::project::Project;
use domain::upload::{LIFETIME_S, MAX_PART_BYTES, Upload, UploadPart, UploadState, UploadStatus};
use futures::Stream;
use platform::objects::Stored;
use serde_json::{Value, json};
use store::{AddedPart, PartLimits, StoreError};

use self::join::join;
use super::form::{Bound, FormHead, discard, missing, no_form, put, unknown};
use super::repeat::{Repeat, Request, fingerprint};
use super::storage::{self, Storage};
use super::store_error;
use crate::auth::Caller;
use crate::error::{ApiError, Kind};
use crate::multipart::Multipart;
use crate::state::State;
use crate::wire::decode::{At, echo};
use crate::wire::uploads::{CompleteOrder, UploadOrder, unknown_part};

/// An upload as it stands, with its file once it has one.
pub struct Shown {
    pub upload: Upload,
    pub status: UploadStatus,
    pub file: Option<File>,
    /// An earlier request did what this one asked for.
    pub is_replay: bool,
}

/// Announces a file, or finds what the same request announced before. Errors: 400; nothing is reserved for it, but it is refused where
/// there is no room now.
pub async fn create(
    state: &State,
    caller: &Caller,
    order: UploadOrder,
    raw: &Value,
    repeat: &Repeat,
) -> Result<Shown, ApiError> {
    let request = Request {
        caller,
        endpoint: "POST /uploads",
        repeat,
        fingerprint: fingerprint(raw),
    };
    if let Some(id) = request.made_earlier(state).await? {
        return replayed(state, &caller.project, &id).await;
    }
    let max_bytes = state
        .max_upload_bytes
        .min(order.purpose.max_bytes().unwrap_or(u64::MAX));
    let max_bytes = i64::try_from(max_bytes).unwrap_or(i64::MAX);
    At::new("bytes", order.size.into()).integer(1..=max_bytes)?;
    let storage = storage::of_project(state, &caller.project).await?;
    storage
        .check(order.size)
        .map_err(|error| error.param("bytes"))?;
    let now = state.now();
    let upload = Upload {
        id: UploadId::mint(state.entropy()),
        project_id: caller.project.id.clone(),
        filename: order.filename,
        purpose: order.purpose,
        size_bytes: order.size,
        file_lifetime_s: order.file_lifetime_s,
        created_at: now,
        expires_at: now.plus_s(LIFETIME_S),
        state: UploadState::Pending,
    };
    match state
        .store
        .uploads()
        .insert(&upload, &request.entry(now))
        .await
    {
        Ok(()) => Ok(Shown {
            status: upload.status(now),
            upload,
            file: None,
            is_replay: false,
        }),
        // The same request came twice at once, and the other was faster.
        Err(StoreError::Repeated { object_id }) => {
            replayed(state, &caller.project, &object_id).await
        }
        Err(error) => Err(store_error(error)),
    }
}

/// Stores the form's `data` as a part. Errors: 404; 400 where the upload is over or full, or the project has no room; 413.
pub async fn add_part<S>(
    state: &State,
    project: &Project,
    id: &str,
    head: FormHead<'_>,
    chunks: S,
) -> Result<UploadPart, ApiError>
where
    S: Stream<Item = std::io::Result<Bytes>> + Send + Unpin,
{
    let upload = get(state, project, id).await?;
    let storage = storage::of_project(state, project).await?;
    storage.check_form(head.content_length)?;
    let mut multipart = Multipart::new(head.content_type, chunks).map_err(no_form)?;
    let part_id = PartId::mint(state.entropy());
    let key = object_key::upload_part(&project.id, &upload.id, &part_id);
    let mut stored = None;
    let read = read_part(state, &upload, storage, &key, &mut multipart, &mut stored);
    let outcome = match read.await {
        Ok(()) => insert_part(state, &upload, storage.limit, part_id, &key, &stored).await,
        Err(error) => Err(error),
    };
    // The row may be there although the database's answer was lost.
    let is_refused = outcome.as_ref().is_err_and(|e| e.kind != Kind::Unavailable);
    if is_refused && stored.is_some() {
        discard(state, &key).await;
    }
    outcome
}

async fn read_part<S>(
    state: &State,
    upload: &Upload,
    storage: Storage,
    key: &str,
    multipart: &mut Multipart<S>,
    stored: &mut Option<Stored>,
) -> Result<(), ApiError>
where
    S: Stream<Item = std::io::Result<Bytes>> + Send + Unpin,
{
    // What is refused is read all the same, so that the client, who is still sending, gets to read the answer.
    let mut refused = check_pending(upload, state).err();
    while let Some(part) = multipart.next_part().await.map_err(no_form)? {
        match part.name.as_str() {
            "data" if stored.is_none() => {
                if refused.is_none() {
                    let bound = Bound::of_size(MAX_PART_BYTES).within(storage);
                    *stored = Some(put(state, key, multipart, bound).await?);
                }
            }
            other => refused = refused.or_else(|| Some(unknown(other))),
        }
    }
    refused.map_or(Ok(()), Err)
}

async fn insert_part(
    state: &State,
    upload: &Upload,
    max_stored_bytes: u64,
    id: PartId,
    key: &str,
    stored: &Option<Stored>,
) -> Result<UploadPart, ApiError> {
    let stored = stored.as_ref().ok_or_else(|| missing("data"))?;
    let part = UploadPart {
        id,
        upload_id: upload.id.clone(),
        size_bytes: stored.size_bytes,
        object_key: key.to_owned(),
        created_at: state.now(),
    };
    let limits = PartLimits {
        upload_bytes: state.max_upload_bytes,
        stored_bytes: max_stored_bytes,
    };
    let uploads = state.store.uploads();
    let added = uploads.add_part(&upload.project_id, &part, limits).await;
    match added.map_err(store_error)? {
        AddedPart::Added => Ok(part),
        AddedPart::NotPending => Err(over(state, upload).await),
        AddedPart::Full => {
            let message = format!(
                "The upload {} takes no more parts: at most {} bytes are accepted.",
                upload.id, state.max_upload_bytes
            );
            Err(ApiError::invalid("data", "invalid_value", message))
        }
    }
}

/// Makes the upload's file of its parts, or finds what the same request made before.
/// Errors: 404; 400 where the upload is over, or the parts are not what was announced.
pub async fn complete(
    state: &State,
    caller: &Caller,
    id: &str,
    order: CompleteOrder,
    repeat: &Repeat,
) -> Result<Shown, ApiError> {
    let project = &caller.project;
    let upload = get(state, project, id).await?;
    let part_ids: Vec<&str> = order.part_ids.iter().map(PartId::as_str).collect();
    let request = Request {
        caller,
        endpoint: "POST /uploads/{upload_id}/complete",
        repeat,
        fingerprint: fingerprint(&json!([upload.id.as_str(), part_ids, order.md5])),
    };
    if let Some(id) = request.made_earlier(state).await? {
        return replayed(state, project, &id).await;
    }
    check_pending(&upload, state)?;
    let parts = chosen(state, &upload, &order.part_ids).await?;
    let file_id = FileId::mint(state.entropy());
    let key = object_key::file(&project.id, &file_id);
    let stored = match join(&state.objects, &key, parts, order.md5).await {
        Ok(stored) => stored,
        // It may have ended meanwhile, and its parts with it: by the same request, perhaps.
        Err(error) => {
            if let Some(id) = request.made_earlier(state).await? {
                return replayed(state, project, &id).await;
            }
            check_pending(&get(state, project, id).await?, state)?;
            return Err(error);
        }
    };
    let file = upload.file(file_id, key, stored.sha256, state.now());
    finish(state, upload, file, &request).await
}

async fn finish(
    state: &State,
    mut upload: Upload,
    file: File,
    request: &Request<'_>,
) -> Result<Shown, ApiError> {
    let (project, entry) = (&request.caller.project, request.entry(file.created_at));
    let uploads = state.store.uploads();
    let completed = uploads.complete(&project.id, &upload.id, &file, &entry);
    let completed = completed.await;
    // The file may be there although the answer was lost: its object stays then, at worst until the sweep.
    if !matches!(completed, Ok(true) | Err(StoreError::Unavailable(_))) {
        discard(state, &file.object_key).await;
    }
    match completed {
        Ok(true) => {
            upload.state = UploadState::Completed(file.id.clone());
            Ok(Shown {
                status: UploadStatus::Completed,
                upload,
                file: Some(file),
                is_replay: false,
            })
        }
        Ok(false) => Err(over(state, &upload).await),
        // The same request came twice at once, and the other was faster.
        Err(StoreError::Repeated { object_id }) => replayed(state, project, &object_id).await,
        Err(error) => Err(store_error(error)),
    }
}

/// Errors: 404; 400 where the upload is over already.
pub async fn cancel(state: &State, project: &Project, id: &str) -> Result<Shown, ApiError> {
    let mut upload = get(state, project, id).await?;
    check_pending(&upload, state)?;
    let cancelled = state.store.uploads().cancel(&project.id, &upload.id).await;
    if !cancelled.map_err(store_error)? {
        return Err(over(state, &upload).await);
    }
    upload.state = UploadState::Cancelled;
    Ok(Shown {
        status: UploadStatus::Cancelled,
        upload,
        file: None,
        is_replay: false,
    })
}

/// Errors: 404.
async fn get(state: &State, project: &Project, id: &str) -> Result<Upload, ApiError> {
    let absent = || ApiError::not_found(format!("No such Upload object: {}", echo(id))).param("id");
    let upload_id = UploadId::parse(id).map_err(|_| absent())?;
    let found = state.store.uploads().find(&project.id, &upload_id).await;
    found.map_err(store_error)?.ok_or_else(absent)
}

async fn replayed(state: &State, project: &Project, id: &str) -> Result<Shown, ApiError> {
    let upload = get(state, project, id).await?;
    let file = match &upload.state {
        UploadState::Completed(file) => super::files::find(state, project, file).await?,
        UploadState::Pending | UploadState::Cancelled => None,
    };
    Ok(Shown {
        status: upload.status(state.now()),
        upload,
        file,
        is_replay: true,
    })
}

/// The parts in the order in which they are named. Errors: 400 for one that is not there, and for another sum than was
/// announced.
async fn chosen(
    state: &State,
    upload: &Upload,
    ids: &[PartId],
) -> Result<Vec<UploadPart>, ApiError> {
    let parts = state.store.uploads().parts(&upload.project_id, &upload.id);
    let parts = parts.await.map_err(store_error)?.into_iter();
    let mut by_id: std::collections::HashMap<_, _> =
        parts.map(|part| (part.id.clone(), part)).collect();
    let mut chosen = Vec::with_capacity(ids.len());
    for (i, id) in ids.iter().enumerate() {
        let part = by_id.remove(id);
        chosen.push(part.ok_or_else(|| unknown_part(&format!("part_ids[{i}]"), id.as_str()))?);
    }
    let n_bytes: u64 = chosen.iter().map(|part| part.size_bytes).sum();
    if n_bytes != upload.size_bytes {
        let message = format!(
            "Invalid 'part_ids': the parts have {n_bytes} bytes together, but the upload was created for {} bytes.",
            upload.size_bytes
        );
        return Err(ApiError::invalid("part_ids", "invalid_value", message));
    }
    Ok(chosen)
}

fn check_pending(upload: &Upload, state: &State) -> Result<(), ApiError> {
    let status = upload.status(state.now());
    if status == UploadStatus::Pending {
        return Ok(());
    }
    let became = match &upload.state {
        UploadState::Completed(file) => format!(" and became the file {file}"),
        UploadState::Pending | UploadState::Cancelled => String::new(),
    };
    let message = format!(
        "The upload {} is {}{became}: it can no longer be changed. Create a new upload to send another file.",
        upload.id,
        status.as_str()
    );
    Err(ApiError::new(Kind::BadRequest, message).code("invalid_upload_state"))
}

/// Why the upload, which was pending a moment ago, cannot be changed.
async fn over(state: &State, upload: &Upload) -> ApiError {
    let found = state.store.uploads().find(&upload.project_id, &upload.id);
    match found.await {
        Ok(Some(now)) => match check_pending(&now, state) {
            Err(error) => error,
            Ok(()) => ApiError::internal(format!("{} is pending — a bug in uploads", upload.id)),
        },
        Ok(None) => {
            ApiError::not_found(format!("No such Upload object: {}", upload.id)).param("id")
        }
        Err(error) => store_error(error),
    }
}
