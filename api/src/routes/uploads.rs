//! `/v1/uploads`.

use poem::web::Data;
use poem_openapi::OpenApi;
use poem_openapi::param::Path;
use poem_openapi::payload::Json;
use poem_openapi::registry::MetaSchema;

use super::Tag;
use super::form::{self, Form, FormFields};
use super::reply::{Made, RepeatHeaders};
use crate::app::form::FormHead;
use crate::app::uploads::{self as app, Shown};
use crate::auth::Caller;
use crate::body::JsonBody;
use crate::error::ApiError;
use crate::state::Shared;
use crate::wire::uploads::{CompleteOrder, UploadObject, UploadOrder, UploadPartObject};

pub struct UploadsApi;

#[OpenApi(prefix_path = "/v1/uploads", tag = "Tag::Uploads")]
impl UploadsApi {
    /// Announces a file that comes in parts.
    ///
    /// Parts are taken for an hour.
    #[oai(path = "/", method = "post", operation_id = "createUpload")]
    async fn create(
        &self,
        state: Data<&Shared>,
        caller: Caller,
        repeat: RepeatHeaders,
        body: JsonBody<UploadOrder>,
    ) -> Result<Made<UploadObject>, ApiError> {
        let shown = app::create(&state, &caller, body.value, &body.raw, &repeat.0).await?;
        Ok(made(shown))
    }

    /// Adds a part of at most 64 MiB. Parts may be sent in any order, also at the same time.
    #[oai(
        path = "/:upload_id/parts",
        method = "post",
        operation_id = "addUploadPart"
    )]
    async fn add_part(
        &self,
        state: Data<&Shared>,
        caller: Caller,
        upload_id: Path<String>,
        form: Form<PartFields>,
    ) -> Result<Json<UploadPartObject>, ApiError> {
        let head = FormHead {
            content_type: form.content_type.as_deref(),
            content_length: form.content_length,
        };
        let part = app::add_part(&state, &caller.project, &upload_id, head, form.chunks).await?;
        Ok(Json(part.into()))
    }

    /// Makes a file of the parts, in the order in which they are named.
    #[oai(
        path = "/:upload_id/complete",
        method = "post",
        operation_id = "completeUpload"
    )]
    async fn complete(
        &self,
        state: Data<&Shared>,
        caller: Caller,
        repeat: RepeatHeaders,
        upload_id: Path<String>,
        body: JsonBody<CompleteOrder>,
    ) -> Result<Made<UploadObject>, ApiError> {
        let shown = app::complete(&state, &caller, &upload_id, body.value, &repeat.0).await?;
        Ok(made(shown))
    }

    /// Cancels an upload that is pending; its parts are dropped.
    #[oai(
        path = "/:upload_id/cancel",
        method = "post",
        operation_id = "cancelUpload"
    )]
    async fn cancel(
        &self,
        state: Data<&Shared>,
        caller: Caller,
        upload_id: Path<String>,
    ) -> Result<Made<UploadObject>, ApiError> {
        let shown = app::cancel(&state, &caller.project, &upload_id).await?;
        Ok(made(shown))
    }
}

fn made(shown: Shown) -> Made<UploadObject> {
    let object = UploadObject::new(shown.upload, shown.status, shown.file);
    Made::new(object, shown.is_replay)
}

struct PartFields;

impl FormFields for PartFields {
    fn fields() -> Vec<(&'static str, MetaSchema, bool)> {
        vec![("data", form::file(), true)]
    }
}
