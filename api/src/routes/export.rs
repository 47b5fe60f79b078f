//! `/v1/x/models/{model}/export`.

use domain::message::{ExportFormat, GgufType};
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
    /// Downloads a tuned model.
    ///
    /// `format` is `peft`, the default: the adapter in a zip that PEFT reads; `merged`: the whole model in a zip, a folder
    /// that transformers reads; `gguf`: the whole model as one file for llama.cpp, with weights of `type` `f32`, `f16` (the
    /// default), `bf16` or `q8_0`.
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
        r#type: Query<Option<String>>,
    ) -> Result<Download, ApiError> {
        let (format, filename) = parse(format.0, r#type.0, &model)?;
        let archive = match format {
            None => app::export::peft(&state, &caller.project, &model).await?,
            Some(format) => app::export::whole(&state, &caller.project, &model, format).await?,
        };
        Ok(Download::new(&filename, archive.size_bytes, archive.bytes))
    }
}

/// What a worker is to make (`None`: the adapter needs none), and how the file is called.
/// Errors: 400 that names `format` or `type`.
fn parse(
    format: Option<String>,
    file_type: Option<String>,
    model: &str,
) -> Result<(Option<ExportFormat>, String), ApiError> {
    let stem = model.replace(':', "-");
    let format = At::new("format", format.unwrap_or_else(|| "peft".to_owned()).into());
    let format = format.one_of(&["peft", "merged", "gguf"])?;
    if format != "gguf" && file_type.is_some() {
        let message = "'type' says how a GGUF file keeps its weights: it goes with format=gguf.";
        return Err(ApiError::invalid("type", "invalid_value", message));
    }
    let word = At::new("type", file_type.unwrap_or_else(|| "f16".to_owned()).into());
    let word = word.one_of(&["f32", "f16", "bf16", "q8_0"])?;
    let file_type = match word {
        "f32" => GgufType::F32,
        "bf16" => GgufType::Bf16,
        "q8_0" => GgufType::Q8_0,
        _ => GgufType::F16,
    };
    Ok(match format {
        "gguf" => (
            Some(ExportFormat::Gguf { file_type }),
            format!("{stem}-{word}.gguf"),
        ),
        "merged" => (Some(ExportFormat::Merged), format!("{stem}-merged.zip")),
        _ => (None, format!("{stem}.zip")),
    })
}
