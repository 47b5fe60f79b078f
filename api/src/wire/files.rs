//! Files as clients see them and announce them.

use domain::file::{EXPIRES_AFTER_S, File, Purpose};
use poem_openapi::Object;

use super::decode::{At, echo};
use super::list::Listed;
use super::nullable::Nullable;
use super::reply::reply;
use crate::error::{ApiError, Kind};

/// A display name is cut here. Characters.
const MAX_FILENAME: usize = 255;

reply! {
    /// An uploaded or produced file.
    FileObject as "File" {
        id: String,
        /// `file`.
        object: &'static str,
        bytes: u64,
        /// Unix seconds.
        created_at: i64,
        /// Unix seconds; null: kept until deleted.
        expires_at: Nullable<i64>,
        /// As the client named it; for display only.
        filename: String,
        purpose: &'static str,
        /// `processed`: a file is complete when it is listed.
        status: &'static str,
        status_details: Nullable<String>,
    }
}

impl From<File> for FileObject {
    fn from(file: File) -> Self {
        Self {
            id: file.id.to_string(),
            object: "file",
            bytes: file.size_bytes,
            created_at: file.created_at.unix_s(),
            expires_at: Nullable(file.expires_at.map(|at| at.unix_s())),
            filename: file.filename,
            purpose: file.purpose.as_str(),
            status: "processed",
            status_details: Nullable(None),
        }
    }
}

impl Listed for FileObject {
    fn id(&self) -> &str {
        &self.id
    }
}

/// When a file goes by itself.
#[derive(Debug, Clone, PartialEq, Object)]
pub struct ExpiresAfterRequest {
    /// `created_at`.
    pub anchor: String,
    /// 3600 to 2592000.
    pub seconds: i64,
}

/// The purpose, if a client may give it to a file of this name. `param`: what holds the file.
pub fn purpose(word: &str, param: &'static str, filename: &str) -> Result<Purpose, ApiError> {
    let known = Purpose::UPLOADABLE
        .into_iter()
        .find(|known| known.as_str() == word);
    let Some(known) = known else {
        let list: Vec<String> = Purpose::UPLOADABLE
            .iter()
            .map(|p| format!("'{}'", p.as_str()))
            .collect();
        let message = format!(
            "'{}' is not one of [{}] - 'purpose'",
            echo(word),
            list.join(", ")
        );
        return Err(ApiError::invalid("purpose", "invalid_value", message));
    };
    if known.is_jsonl() && !filename.to_ascii_lowercase().ends_with(".jsonl") {
        let user = match known {
            Purpose::Batch => "Batch",
            _ => "Fine-Tuning",
        };
        let message = format!("Invalid file format for {user} API. Must be .jsonl");
        return Err(ApiError::new(Kind::BadRequest, message).param(param));
    }
    Ok(known)
}

/// How long a file is kept by its `expires_after`, or by its purpose; `None`: until it is deleted. Seconds.
pub fn lifetime_s(purpose: Purpose, expires_after: Option<At>) -> Result<Option<i64>, ApiError> {
    let Some(at) = expires_after else {
        return Ok(purpose.lifetime_s());
    };
    expires_after_s(at).map(Some)
}

/// What [`ExpiresAfterRequest`] says. Seconds.
pub fn expires_after_s(at: At) -> Result<i64, ApiError> {
    let mut fields = at.object()?;
    fields.require("anchor")?.one_of(&["created_at"])?;
    let seconds = fields.require("seconds")?.integer(EXPIRES_AFTER_S)?;
    fields.finish()?;
    Ok(seconds)
}

/// A name that can be shown: without control characters, of bounded length. It is no part of any path.
pub fn display_name(name: &str) -> String {
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
