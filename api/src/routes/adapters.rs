//! `/v1/x/adapters`.

use std::io;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use poem::web::Data;
use poem::{Request, RequestBody};
use poem_openapi::registry::{MetaMediaType, MetaRequest, MetaSchema, MetaSchemaRef};
use poem_openapi::{ApiExtractor, ApiExtractorType, ExtractParamOptions, OpenApi};

use super::Tag;
use super::reply::{Made, RepeatHeaders};
use crate::app;
use crate::auth::Caller;
use crate::body::{paced, refuse_encoding};
use crate::error::ApiError;
use crate::state::Shared;
use crate::wire::models::Model;

pub struct AdaptersApi;

#[OpenApi(prefix_path = "/v1/x", tag = "Tag::Extensions")]
impl AdaptersApi {
    /// Makes a model of a PEFT adapter.
    ///
    /// The zip holds `adapter_config.json` and `adapter_model.safetensors`, at the top or in one folder. The model can
    /// be talked to, trained on from, exported and deleted like one that was trained here.
    #[oai(path = "/adapters", method = "post", operation_id = "createAdapter")]
    async fn create(
        &self,
        state: Data<&Shared>,
        caller: Caller,
        repeat: RepeatHeaders,
        form: AdapterForm,
    ) -> Result<Made<Model>, ApiError> {
        let AdapterForm {
            content_type,
            chunks,
        } = form;
        let content_type = content_type.as_deref();
        let created =
            app::adapters::create(&state, &caller, content_type, &repeat.0, chunks).await?;
        Ok(Made::new(created.model.into(), created.is_replay))
    }
}

/// A multipart body as it comes.
struct AdapterForm {
    content_type: Option<String>,
    chunks: BoxStream<'static, io::Result<Bytes>>,
}

impl<'a> ApiExtractor<'a> for AdapterForm {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::RequestObject];
    type ParamType = ();
    type ParamRawType = ();

    fn request_meta() -> Option<MetaRequest> {
        let inline = |schema| MetaSchemaRef::Inline(Box::new(schema));
        let described = |schema: MetaSchema, text| {
            inline(MetaSchema {
                description: Some(text),
                ..schema
            })
        };
        let text = || MetaSchema::new("string");
        let suffix = "1–64 characters of `[A-Za-z0-9_.-]`, a part of the model's name.";
        let form = MetaSchema {
            required: vec!["file", "base_model"],
            properties: vec![
                (
                    "file",
                    inline(MetaSchema::new_with_format("string", "binary")),
                ),
                (
                    "base_model",
                    described(text(), "The base model that the adapter was trained on."),
                ),
                ("suffix", described(text(), suffix)),
            ],
            ..MetaSchema::new("object")
        };
        Some(MetaRequest {
            description: Some("The fields may come in any order."),
            content: vec![MetaMediaType {
                content_type: "multipart/form-data",
                schema: inline(form),
            }],
            required: true,
        })
    }

    async fn from_request(
        request: &'a Request,
        body: &mut RequestBody,
        _options: ExtractParamOptions<Self::ParamType>,
    ) -> poem::Result<Self> {
        refuse_encoding(request.headers())?;
        Ok(Self {
            content_type: request.content_type().map(str::to_owned),
            chunks: paced(body.take()?.into_bytes_stream()).boxed(),
        })
    }
}
