//! `/v1/x/models/{model}/export`.

use poem::web::Data;
use poem_openapi::OpenApi;
use poem_openapi::param::{Path, Query};

use super::Tag;
use super::reply::Download;
use crate::app;
use crate::auth::Caller;
use crate::error::ApiError;
use crate::state::Shared;
use crate::wire::decode::At;

pub struct ExportApi;

#[OpenApi(prefix_path = "/v1/x", tag = "Tag::Extensions")]
impl ExportApi {
    /// Downloads a tuned model as a PEFT folder in one zip.
    ///
    /// `format` is `peft`, the default.
    #[oai(
        path = "/models/:model/export",
        method = "get",
        operation_id = "exportModel"
    )]
    async fn export(
        &self,
        state: Data<&Shared>,
        caller: Caller,
        model: Path<String>,
        format: Query<Option<String>>,
    ) -> Result<Download, ApiError> {
        let format = At::new(
            "format",
            format.0.unwrap_or_else(|| "peft".to_owned()).into(),
        );
        format.one_of(&["peft"])?;
        let archive = app::export::peft(&state, &caller.project, &model).await?;
        Ok(Download::new(
            &archive.filename,
            archive.size_bytes,
            archive.bytes,
        ))
    }
}
