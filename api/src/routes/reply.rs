//! Requests and replies that are more than parameters and JSON.

use std::io;
use std::marker::PhantomData;

use bytes::Bytes;
use domain::rate_limit::RateStatus;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt, TryStreamExt};
use platform::objects::ByteStream;
use poem::http::{HeaderValue, header};
use poem::{Body, IntoResponse, Request, RequestBody, Response};
use poem_openapi::payload::{Json, Payload};
use poem_openapi::registry::{
    MetaMediaType, MetaParamIn, MetaResponse, MetaResponses, MetaSchema, MetaSchemaRef, Registry,
};
use poem_openapi::types::{ToJSON, Type};
use poem_openapi::{ApiExtractor, ApiExtractorType, ApiResponse, ExtractParamOptions};
use serde_json::json;
use store::MetadataFilter;

use crate::app::repeat::{Created, Repeat};
use crate::error::ApiError;
use crate::wire::chat_reply::{ChatCompletion, ChatCompletionChunk};
use crate::wire::completion_reply::{Completion, CompletionChunk};
use crate::wire::decode::{At, metadata};
use crate::wire::dry_runs::DryRunObject;
use crate::wire::fine_tuning_job::JobObject;
use crate::wire::response_reply::{ResponseEvent, ResponseObject};

/// What the headers say of being a repetition.
pub struct RepeatHeaders(pub Repeat);

impl<'a> ApiExtractor<'a> for RepeatHeaders {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::PoemExtractor];
    type ParamType = ();
    type ParamRawType = ();

    async fn from_request(
        request: &'a Request,
        _body: &mut RequestBody,
        _options: ExtractParamOptions<Self::ParamType>,
    ) -> poem::Result<Self> {
        Ok(Self(Repeat::of(request)))
    }
}

/// `metadata[k]=v` (several must all hold) or `metadata=null`: jobs without metadata.
pub struct MetadataQuery(pub MetadataFilter);

impl<'a> ApiExtractor<'a> for MetadataQuery {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::Parameter];
    type ParamType = ();
    type ParamRawType = ();

    fn param_in() -> Option<MetaParamIn> {
        Some(MetaParamIn::Query)
    }

    fn param_schema_ref() -> Option<MetaSchemaRef> {
        Some(MetaSchemaRef::Inline(Box::new(MetaSchema {
            additional_properties: Some(Box::new(String::schema_ref())),
            nullable: true,
            ..MetaSchema::new("object")
        })))
    }

    async fn from_request(
        request: &'a Request,
        _body: &mut RequestBody,
        _options: ExtractParamOptions<Self::ParamType>,
    ) -> poem::Result<Self> {
        Ok(Self(metadata_filter(
            request.uri().query().unwrap_or_default(),
        )?))
    }
}

/// The values of `name` and of `name[]`, as SDKs spell lists.
pub struct QueryList(pub Vec<String>);

impl<'a> ApiExtractor<'a> for QueryList {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::Parameter];
    type ParamType = Vec<String>;
    type ParamRawType = Vec<String>;

    fn param_in() -> Option<MetaParamIn> {
        Some(MetaParamIn::Query)
    }

    fn param_schema_ref() -> Option<MetaSchemaRef> {
        Some(Vec::<String>::schema_ref())
    }

    async fn from_request(
        request: &'a Request,
        _body: &mut RequestBody,
        options: ExtractParamOptions<Self::ParamType>,
    ) -> poem::Result<Self> {
        let url = parsed(request.uri().query().unwrap_or_default())?;
        let is_own = |name: &str| name.strip_suffix("[]").unwrap_or(name) == options.name;
        let own = url.query_pairs().filter(|(name, _)| is_own(name));
        Ok(Self(own.map(|(_, value)| value.into_owned()).collect()))
    }
}

/// Only the query matters; the rest is what a URL needs to be one.
fn parsed(query: &str) -> Result<reqwest::Url, ApiError> {
    reqwest::Url::parse(&format!("http://localhost/?{query}"))
        .map_err(|error| ApiError::internal(format!("an unreadable query: {error}")))
}

fn metadata_filter(query: &str) -> Result<MetadataFilter, ApiError> {
    let mut pairs = serde_json::Map::new();
    let url = parsed(query)?;
    for (name, value) in url.query_pairs() {
        if name == "metadata" && value == "null" {
            return Ok(MetadataFilter::None_);
        }
        let key = name
            .strip_prefix("metadata[")
            .and_then(|rest| rest.strip_suffix(']'));
        let refused = |reason: &str| {
            let message = format!("Invalid 'metadata': {reason}.");
            Err(ApiError::invalid("metadata", "invalid_value", message))
        };
        match key {
            Some("") => return refused("a key is empty"),
            Some(key) if pairs.insert(key.to_owned(), json!(value)).is_some() => {
                return refused("a key is there twice");
            }
            None if name == "metadata" => {
                return refused("expected metadata[key]=value or metadata=null");
            }
            _ => {}
        }
    }
    if pairs.is_empty() {
        return Ok(MetadataFilter::Any);
    }
    metadata(At::new("metadata", pairs.into())).map(MetadataFilter::All)
}

/// An object that was made, or found because the same request made it before.
pub struct Made<T> {
    object: T,
    is_replay: bool,
}

impl<T> Made<T> {
    pub fn new(object: T, is_replay: bool) -> Self {
        Self { object, is_replay }
    }
}

impl<T, U: Into<T>> From<Created<U>> for Made<T> {
    fn from(created: Created<U>) -> Self {
        Self::new(created.object.into(), created.is_replay)
    }
}

impl<T: ToJSON> IntoResponse for Made<T> {
    fn into_response(self) -> Response {
        let mut response = Json(self.object).into_response();
        if self.is_replay {
            say_replayed(&mut response);
        }
        response
    }
}

/// The header of an answer that an earlier request was given.
pub fn say_replayed(response: &mut Response) {
    let replayed = HeaderValue::from_static("true");
    let headers = response.headers_mut();
    headers.insert("idempotent-replayed", replayed);
}

impl<T: ToJSON> ApiResponse for Made<T> {
    fn meta() -> MetaResponses {
        Json::<T>::meta()
    }

    fn register(registry: &mut Registry) {
        T::register(registry);
    }
}

/// A job that was made, or what one would do.
pub enum Ordered {
    Job(Box<Made<JobObject>>),
    DryRun(Box<DryRunObject>),
}

impl IntoResponse for Ordered {
    fn into_response(self) -> Response {
        match self {
            Ordered::Job(made) => made.into_response(),
            Ordered::DryRun(dry_run) => Json(*dry_run).into_response(),
        }
    }
}

impl ApiResponse for Ordered {
    fn meta() -> MetaResponses {
        let either = MetaSchema {
            one_of: vec![JobObject::schema_ref(), DryRunObject::schema_ref()],
            ..MetaSchema::ANY
        };
        ok(vec![MetaMediaType {
            content_type: Json::<JobObject>::CONTENT_TYPE,
            schema: MetaSchemaRef::Inline(Box::new(either)),
        }])
    }

    fn register(registry: &mut Registry) {
        JobObject::register(registry);
        DryRunObject::register(registry);
    }
}

/// Bytes to be saved under a name.
pub struct Download {
    disposition: String,
    size_bytes: Option<u64>,
    bytes: ByteStream,
}

impl Download {
    /// With a size, a transfer that breaks off is seen as broken.
    pub fn new(filename: &str, size_bytes: Option<u64>, bytes: ByteStream) -> Self {
        Self {
            disposition: content_disposition(filename),
            size_bytes,
            bytes,
        }
    }
}

impl IntoResponse for Download {
    fn into_response(self) -> Response {
        let body = Body::from_bytes_stream(self.bytes.inspect_err(|error| {
            tracing::warn!(%error, "a download broke off");
        }));
        let mut response = Response::builder()
            .content_type("application/octet-stream")
            .body(body);
        let headers = response.headers_mut();
        let disposition = HeaderValue::try_from(self.disposition);
        let disposition = disposition.expect("only printable ASCII — a bug in content_disposition");
        headers.insert(header::CONTENT_DISPOSITION, disposition);
        // Should a browser show it all the same, it runs nothing and belongs to nobody.
        let sandbox = HeaderValue::from_static("sandbox");
        headers.insert(header::CONTENT_SECURITY_POLICY, sandbox);
        if let Some(size_bytes) = self.size_bytes {
            headers.insert(header::CONTENT_LENGTH, size_bytes.into());
        }
        response
    }
}

impl ApiResponse for Download {
    fn meta() -> MetaResponses {
        let bytes = MetaSchema::new_with_format("string", "binary");
        ok(vec![MetaMediaType {
            content_type: "application/octet-stream",
            schema: MetaSchemaRef::Inline(Box::new(bytes)),
        }])
    }

    fn register(_registry: &mut Registry) {}
}

/// A plain name for old clients, the whole one for the rest. Source: RFC 6266, RFC 8187.
fn content_disposition(filename: &str) -> String {
    let plain: String = filename
        .chars()
        .map(|c| {
            if c.is_ascii_graphic() && !matches!(c, '"' | '\\' | '%' | '/') || c == ' ' {
                c
            } else {
                '_'
            }
        })
        .collect();
    let mut whole = String::new();
    for byte in filename.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b'~') {
            whole.push(byte as char);
        } else {
            whole.push_str(&format!("%{byte:02X}"));
        }
    }
    format!("attachment; filename=\"{plain}\"; filename*=UTF-8''{whole}")
}

/// What the headers of what a model made say.
pub struct Head {
    /// As it was asked for.
    pub model: String,
    pub rate: Option<RateStatus>,
}

/// The reply of a route that always refuses.
pub enum Never {}

impl IntoResponse for Never {
    fn into_response(self) -> Response {
        match self {}
    }
}

impl ApiResponse for Never {
    fn meta() -> MetaResponses {
        MetaResponses { responses: vec![] }
    }

    fn register(_registry: &mut Registry) {}
}

/// Generated text: whole as `W`, or chunk by chunk as `C`.
pub enum AnswerReply<W, C> {
    Whole(Box<W>, Head),
    Stream(BoxStream<'static, Bytes>, Head, PhantomData<C>),
}

pub type ChatReply = AnswerReply<ChatCompletion, ChatCompletionChunk>;
pub type ResponseReply = AnswerReply<ResponseObject, ResponseEvent>;
pub type CompletionReply = AnswerReply<Completion, CompletionChunk>;

impl<W, C> AnswerReply<W, C> {
    pub fn whole(answer: W, head: Head) -> Self {
        Self::Whole(Box::new(answer), head)
    }

    /// Server-sent events of chunks.
    pub fn stream(bytes: impl Stream<Item = Bytes> + Send + 'static, head: Head) -> Self {
        Self::Stream(bytes.boxed(), head, PhantomData)
    }
}

/// No cache may keep it.
const NO_CACHE: HeaderValue = HeaderValue::from_static("no-cache, must-revalidate");

fn event_stream(bytes: BoxStream<'static, Bytes>) -> Response {
    let mut response = Response::builder()
        .content_type("text/event-stream; charset=utf-8")
        .body(Body::from_bytes_stream(bytes.map(Ok::<_, io::Error>)));
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, NO_CACHE);
    // A proxy that waits for more would undo the stream.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

fn event_stream_meta<C: Type>() -> MetaMediaType {
    let events = MetaSchema {
        items: Some(Box::new(C::schema_ref())),
        ..MetaSchema::new_with_format("array", "event-stream")
    };
    MetaMediaType {
        content_type: "text/event-stream",
        schema: MetaSchemaRef::Inline(Box::new(events)),
    }
}

/// Server-sent events whose data are `C`.
pub struct EventStream<C>(BoxStream<'static, Bytes>, PhantomData<C>);

impl<C> EventStream<C> {
    pub fn new(bytes: impl Stream<Item = Bytes> + Send + 'static) -> Self {
        Self(bytes.boxed(), PhantomData)
    }
}

impl<C: Send> IntoResponse for EventStream<C> {
    fn into_response(self) -> Response {
        event_stream(self.0)
    }
}

impl<C: Type> ApiResponse for EventStream<C> {
    fn meta() -> MetaResponses {
        ok(vec![event_stream_meta::<C>()])
    }

    fn register(registry: &mut Registry) {
        C::register(registry);
    }
}

impl<W: ToJSON + Send, C: Send> IntoResponse for AnswerReply<W, C> {
    fn into_response(self) -> Response {
        let (mut response, head) = match self {
            AnswerReply::Whole(answer, head) => (Json(*answer).into_response(), head),
            AnswerReply::Stream(bytes, head, _) => (event_stream(bytes), head),
        };
        head.write(&mut response);
        response
    }
}

impl Head {
    fn write(self, response: &mut Response) {
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, NO_CACHE);
        if let Ok(model) = HeaderValue::try_from(self.model) {
            headers.insert("openai-model", model);
        }
        if let Some(rate) = self.rate {
            response.set_data(rate);
        }
    }
}

/// What a model made, in one piece.
pub struct ModelReply<T> {
    pub object: T,
    pub head: Head,
}

impl<T: ToJSON> IntoResponse for ModelReply<T> {
    fn into_response(self) -> Response {
        let mut response = Json(self.object).into_response();
        self.head.write(&mut response);
        response
    }
}

impl<T: ToJSON> ApiResponse for ModelReply<T> {
    fn meta() -> MetaResponses {
        Json::<T>::meta()
    }

    fn register(registry: &mut Registry) {
        T::register(registry);
    }
}

impl<W: ToJSON, C: Type> ApiResponse for AnswerReply<W, C> {
    fn meta() -> MetaResponses {
        let whole = MetaMediaType {
            content_type: Json::<W>::CONTENT_TYPE,
            schema: W::schema_ref(),
        };
        ok(vec![whole, event_stream_meta::<C>()])
    }

    fn register(registry: &mut Registry) {
        W::register(registry);
        C::register(registry);
    }
}

fn ok(content: Vec<MetaMediaType>) -> MetaResponses {
    MetaResponses {
        responses: vec![MetaResponse {
            description: "",
            status: Some(200),
            status_range: None,
            content,
            headers: vec![],
        }],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_name_cannot_leave_its_header() {
        assert_eq!(
            content_disposition("a\"b/\r\nX: ä.jsonl"),
            "attachment; filename=\"a_b___X: _.jsonl\"; filename*=UTF-8''a%22b%2F%0D%0AX%3A%20%C3%A4.jsonl"
        );
    }

    #[test]
    fn metadata_filters_are_read() {
        let all = |pairs: &[(&str, &str)]| {
            MetadataFilter::All(
                pairs
                    .iter()
                    .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                    .collect(),
            )
        };
        for (query, filter) in [
            ("", MetadataFilter::Any),
            ("limit=2", MetadataFilter::Any),
            ("metadata=null", MetadataFilter::None_),
            (
                "metadata%5Ba%20b%5D=c&metadata[d]=&limit=2",
                all(&[("a b", "c"), ("d", "")]),
            ),
        ] {
            assert_eq!(metadata_filter(query).unwrap(), filter, "{query}");
        }
        for bad in ["metadata=5", "metadata[]=5", "metadata[a]=b&metadata[a]=c"] {
            assert!(metadata_filter(bad).is_err(), "{bad}");
        }
    }
}
