//! Multipart bodies, as they come.

use std::io;
use std::marker::PhantomData;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use poem::http::header;
use poem::{Request, RequestBody};
use poem_openapi::registry::{MetaMediaType, MetaRequest, MetaSchema, MetaSchemaRef};
use poem_openapi::{ApiExtractor, ApiExtractorType, ExtractParamOptions};

use crate::body::{paced, refuse_encoding};

/// A multipart body with the fields that `F` describes.
pub struct Form<F> {
    pub content_type: Option<String>,
    /// Bytes of the whole body, where the client says.
    pub content_length: Option<u64>,
    pub chunks: BoxStream<'static, io::Result<Bytes>>,
    fields: PhantomData<F>,
}

/// What the document says of a form.
pub trait FormFields: Send {
    /// Name, schema, and whether the field must be there.
    fn fields() -> Vec<(&'static str, MetaSchema, bool)>;
}

/// A field that holds bytes.
pub fn file() -> MetaSchema {
    MetaSchema::new_with_format("string", "binary")
}

impl<'a, F: FormFields> ApiExtractor<'a> for Form<F> {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::RequestObject];
    type ParamType = ();
    type ParamRawType = ();

    fn request_meta() -> Option<MetaRequest> {
        let inline = |schema| MetaSchemaRef::Inline(Box::new(schema));
        let mut form = MetaSchema::new("object");
        for (name, schema, is_required) in F::fields() {
            form.properties.push((name, inline(schema)));
            if is_required {
                form.required.push(name);
            }
        }
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
        let length = request.header(header::CONTENT_LENGTH);
        Ok(Self {
            content_type: request.content_type().map(str::to_owned),
            content_length: length.and_then(|text| text.parse().ok()),
            chunks: paced(body.take()?.into_bytes_stream()).boxed(),
            fields: PhantomData,
        })
    }
}
