//! Uploads as clients announce, complete and see them.

use domain::file::{File, Purpose};
use domain::id::PartId;
use domain::upload::{MAX_PARTS, Upload, UploadPart, UploadStatus};
use poem_openapi::Object;

use super::decode::{At, Fields, echo};
use super::files::{ExpiresAfterRequest, FileObject, display_name, lifetime_s, purpose};
use super::nullable::Nullable;
use super::reply::reply;
use crate::body::Decode;
use crate::error::ApiError;

reply! {
    /// A file that comes in parts.
    UploadObject as "Upload" {
        id: String,
        /// `upload`.
        object: &'static str,
        /// What the parts must sum up to.
        bytes: u64,
        /// Unix seconds.
        created_at: i64,
        filename: String,
        purpose: &'static str,
        /// `pending`, `completed`, `cancelled` or `expired`.
        status: &'static str,
        /// Unix seconds; until then parts are taken.
        expires_at: i64,
        /// What the parts became; null until then, and once the file is deleted.
        file: Nullable<FileObject>,
    }

    /// A piece of a file.
    UploadPartObject as "UploadPart" {
        id: String,
        /// Unix seconds.
        created_at: i64,
        /// `upload.part`.
        object: &'static str,
        upload_id: String,
    }
}

impl UploadObject {
    pub fn new(upload: Upload, status: UploadStatus, file: Option<File>) -> Self {
        Self {
            id: upload.id.to_string(),
            object: "upload",
            bytes: upload.size_bytes,
            created_at: upload.created_at.unix_s(),
            filename: upload.filename,
            purpose: upload.purpose.as_str(),
            status: status.as_str(),
            expires_at: upload.expires_at.unix_s(),
            file: Nullable(file.map(FileObject::from)),
        }
    }
}

impl From<UploadPart> for UploadPartObject {
    fn from(part: UploadPart) -> Self {
        Self {
            id: part.id.to_string(),
            created_at: part.created_at.unix_s(),
            object: "upload.part",
            upload_id: part.upload_id.to_string(),
        }
    }
}

/// The body of `POST /v1/uploads`.
#[derive(Debug, Clone, PartialEq, Object)]
pub struct CreateUploadRequest {
    /// Of the file to be; `.jsonl` for purposes `fine-tune` and `batch`.
    pub filename: String,
    pub purpose: String,
    /// The size of the whole file.
    pub bytes: i64,
    /// Any; the content is judged by whoever uses the file.
    pub mime_type: String,
    pub expires_after: Option<ExpiresAfterRequest>,
}

/// The body of `POST /v1/uploads/{upload_id}/complete`.
#[derive(Debug, Clone, PartialEq, Object)]
pub struct CompleteUploadRequest {
    /// In the order in which the parts make the file, each once.
    pub part_ids: Vec<String>,
    /// Of the whole file, in hexadecimal.
    pub md5: Option<String>,
}

/// A file that is announced.
#[derive(Debug, Clone, PartialEq)]
pub struct UploadOrder {
    pub filename: String,
    pub purpose: Purpose,
    /// `bytes`, for whoever knows how many are allowed.
    pub size: u64,
    pub file_lifetime_s: Option<i64>,
}

impl Decode for UploadOrder {
    type Schema = CreateUploadRequest;

    fn decode(mut body: Fields) -> Result<Self, ApiError> {
        let filename = display_name(&body.require("filename")?.string()?);
        let purpose = purpose(&body.require("purpose")?.string()?, "filename", &filename)?;
        let size = body.require("bytes")?.integer(1..=i64::MAX)?.unsigned_abs();
        body.require("mime_type")?.string()?;
        let file_lifetime_s = lifetime_s(purpose, body.take("expires_after"))?;
        body.finish()?;
        Ok(Self {
            filename,
            purpose,
            size,
            file_lifetime_s,
        })
    }
}

/// The parts that make the file, each named once.
#[derive(Debug, Clone, PartialEq)]
pub struct CompleteOrder {
    pub part_ids: Vec<PartId>,
    /// In lower case.
    pub md5: Option<String>,
}

impl Decode for CompleteOrder {
    type Schema = CompleteUploadRequest;

    fn decode(mut body: Fields) -> Result<Self, ApiError> {
        let items = body.require("part_ids")?.items(1, MAX_PARTS)?;
        let mut seen = std::collections::HashSet::new();
        let mut part_ids = Vec::new();
        for item in items {
            let path = item.path.clone();
            let text = item.string()?;
            let id = PartId::parse(&text).map_err(|_| unknown_part(&path, &text))?;
            if !seen.insert(id.clone()) {
                let message = format!("Invalid '{path}': the part {id} is named twice.");
                return Err(ApiError::invalid(path, "invalid_value", message));
            }
            part_ids.push(id);
        }
        let md5 = body.take("md5").map(md5).transpose()?;
        body.finish()?;
        Ok(Self { part_ids, md5 })
    }
}

fn md5(at: At) -> Result<String, ApiError> {
    let path = at.path.clone();
    let text = at.string()?;
    if text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Ok(text.to_ascii_lowercase());
    }
    let message = format!("Invalid '{path}': expected 32 hexadecimal digits.");
    Err(ApiError::invalid(path, "invalid_value", message))
}

/// The upload has no such part, or it is another upload's: the same answer for both.
pub fn unknown_part(path: &str, text: &str) -> ApiError {
    let message = format!(
        "Invalid '{path}': no such part of this upload: {}",
        echo(text)
    );
    ApiError::invalid(path, "invalid_value", message)
}
