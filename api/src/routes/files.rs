//! `/v1/files`.

use poem::web::Data;
use poem_openapi::OpenApi;
use poem_openapi::param::{Path, Query};
use poem_openapi::payload::Json;
use poem_openapi::registry::MetaSchema;
use serde_json::json;

use super::form::{self, Form, FormFields};
use super::reply::{Download, Made, RepeatHeaders};
use super::{Tag, order};
use crate::app;
use crate::app::form::FormHead;
use crate::auth::Caller;
use crate::error::ApiError;
use crate::state::Shared;
use crate::wire::files::FileObject;
use crate::wire::list::{Deleted, List};

pub struct FilesApi;

#[OpenApi(prefix_path = "/v1/files", tag = "Tag::Files")]
impl FilesApi {
    /// Lists the project's files, newest first.
    ///
    /// `limit` is 1–10000, default 10000; `order` is `asc` or `desc`.
    #[oai(path = "/", method = "get", operation_id = "listFiles")]
    async fn list(
        &self,
        state: Data<&Shared>,
        caller: Caller,
        purpose: Query<Option<String>>,
        after: Query<Option<String>>,
        limit: Query<Option<i64>>,
        #[oai(name = "order")] sort: Query<Option<String>>,
    ) -> Result<Json<List<FileObject>>, ApiError> {
        let page = app::page_request(after.0, limit.0, 10_000, 10_000, order(sort.0)?)?;
        let files = app::files::list(&state, &caller.project, purpose.as_deref(), &page).await?;
        Ok(Json(List::page(files)))
    }

    /// Uploads a file.
    ///
    /// The content is judged when a job uses it, not here.
    #[oai(path = "/", method = "post", operation_id = "createFile")]
    async fn create(
        &self,
        state: Data<&Shared>,
        caller: Caller,
        repeat: RepeatHeaders,
        form: Form<FileFields>,
    ) -> Result<Made<FileObject>, ApiError> {
        let head = FormHead {
            content_type: form.content_type.as_deref(),
            content_length: form.content_length,
        };
        let created = app::files::create(&state, &caller, head, &repeat.0, form.chunks).await?;
        Ok(Made::from(created))
    }

    /// Retrieves what is known of a file.
    #[oai(path = "/:file_id", method = "get", operation_id = "retrieveFile")]
    async fn retrieve(
        &self,
        state: Data<&Shared>,
        caller: Caller,
        file_id: Path<String>,
    ) -> Result<Json<FileObject>, ApiError> {
        let file = app::files::get(&state, &caller.project, &file_id).await?;
        Ok(Json(file.into()))
    }

    /// Deletes a file. A job that uses it keeps its copy until it ends.
    #[oai(path = "/:file_id", method = "delete", operation_id = "deleteFile")]
    async fn delete(
        &self,
        state: Data<&Shared>,
        caller: Caller,
        file_id: Path<String>,
    ) -> Result<Json<Deleted>, ApiError> {
        let id = app::files::delete(&state, &caller.project, &file_id).await?;
        Ok(Json(Deleted {
            id: id.to_string(),
            object: "file",
            deleted: true,
        }))
    }

    /// Downloads the bytes of a file.
    #[oai(
        path = "/:file_id/content",
        method = "get",
        operation_id = "downloadFile"
    )]
    async fn content(
        &self,
        state: Data<&Shared>,
        caller: Caller,
        file_id: Path<String>,
    ) -> Result<Download, ApiError> {
        let (file, bytes) = app::files::content(&state, &caller.project, &file_id).await?;
        Ok(Download::new(&file.filename, Some(file.size_bytes), bytes))
    }
}

struct FileFields;

impl FormFields for FileFields {
    fn fields() -> Vec<(&'static str, MetaSchema, bool)> {
        let words = domain::file::Purpose::UPLOADABLE.into_iter();
        let purpose = MetaSchema {
            enum_items: words.map(|purpose| json!(purpose.as_str())).collect(),
            ..MetaSchema::new("string")
        };
        let anchor = MetaSchema {
            enum_items: vec![json!("created_at")],
            ..MetaSchema::new("string")
        };
        let seconds = MetaSchema {
            minimum: Some(*domain::file::EXPIRES_AFTER_S.start() as f64),
            maximum: Some(*domain::file::EXPIRES_AFTER_S.end() as f64),
            ..MetaSchema::new("integer")
        };
        vec![
            ("file", form::file(), true),
            ("purpose", purpose, true),
            ("expires_after[anchor]", anchor, false),
            ("expires_after[seconds]", seconds, false),
        ]
    }
}
