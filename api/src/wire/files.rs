//! Files as clients see them.

use domain::file::File;

use super::list::Listed;
use super::nullable::Nullable;
use super::reply::reply;

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
