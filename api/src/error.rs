//! What goes wrong, as a client reads it: OpenAI's envelope and its status. The only file with status codes.

use domain::rate_limit::RateStatus;
use poem::error::ResponseError;
use poem::http::{HeaderValue, Method, StatusCode, header};
use poem::{IntoResponse, Response};
use poem_openapi::registry::{MetaMediaType, MetaResponse, MetaResponses, Registry};
use poem_openapi::types::Type;
use poem_openapi::{ApiResponse, payload::Json, payload::Payload};

use crate::wire::error::{ErrorBody, ErrorResponse};
use crate::wire::nullable::Nullable;

/// What kind of refusal it is; decides status and `type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    BadRequest,
    Unauthorized,
    Forbidden,
    NotFound,
    MethodNotAllowed,
    RequestTimeout,
    /// The same request is under way.
    Conflict,
    TooLarge,
    UnsupportedMediaType,
    TooManyRequests,
    /// Too many requests for a limit; OpenAI's `type` names what ran out.
    RequestLimit,
    /// Too many tokens for a limit.
    TokenLimit,
    /// The project has spent what it may: no wait of an SDK mends that.
    InsufficientQuota,
    Internal,
    Unavailable,
}

impl Kind {
    const ALL: [Kind; 15] = [
        Kind::BadRequest,
        Kind::Unauthorized,
        Kind::Forbidden,
        Kind::NotFound,
        Kind::MethodNotAllowed,
        Kind::RequestTimeout,
        Kind::Conflict,
        Kind::TooLarge,
        Kind::UnsupportedMediaType,
        Kind::TooManyRequests,
        Kind::RequestLimit,
        Kind::TokenLimit,
        Kind::InsufficientQuota,
        Kind::Internal,
        Kind::Unavailable,
    ];

    fn status(self) -> StatusCode {
        match self {
            Kind::BadRequest => StatusCode::BAD_REQUEST,
            Kind::Unauthorized => StatusCode::UNAUTHORIZED,
            Kind::Forbidden => StatusCode::FORBIDDEN,
            Kind::NotFound => StatusCode::NOT_FOUND,
            Kind::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Kind::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
            Kind::Conflict => StatusCode::CONFLICT,
            Kind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Kind::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Kind::TooManyRequests
            | Kind::RequestLimit
            | Kind::TokenLimit
            | Kind::InsufficientQuota => StatusCode::TOO_MANY_REQUESTS,
            Kind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Kind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// As the OpenAPI document names the status.
    pub fn code(self) -> String {
        self.status().as_str().to_owned()
    }

    fn of(status: StatusCode) -> Self {
        let kind = Self::ALL.into_iter().find(|kind| kind.status() == status);
        match kind {
            Some(kind) => kind,
            None if status.is_client_error() => Kind::BadRequest,
            None => Kind::Internal,
        }
    }

    fn error_type(self) -> &'static str {
        match self {
            Kind::Internal => "server_error",
            Kind::Unavailable => "service_unavailable_error",
            Kind::TooManyRequests => "rate_limit_error",
            Kind::RequestLimit => "requests",
            Kind::TokenLimit => "tokens",
            Kind::InsufficientQuota => "insufficient_quota",
            _ => "invalid_request_error",
        }
    }
}

/// A refused request. What the client reads (`message`) and what the log keeps (`detail`) are two fields.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    pub kind: Kind,
    pub message: String,
    pub param: Option<String>,
    pub code: Option<&'static str>,
    /// Seconds after which the same request may work.
    pub retry_after_s: Option<u32>,
    /// The limit that was reached.
    pub rate: Option<Box<RateStatus>>,
    /// For the operator's log only.
    pub detail: Option<String>,
}

impl ApiError {
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            param: None,
            code: None,
            retry_after_s: None,
            rate: None,
            detail: None,
        }
    }

    /// 400 about one parameter.
    pub fn invalid(
        param: impl Into<String>,
        code: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self::new(Kind::BadRequest, message).param(param).code(code)
    }

    /// 400: the parameter is understood, but this service does not do it.
    pub fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::invalid(param, "unsupported_value", message)
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, message)
    }

    /// 503 with `Retry-After`.
    pub fn overloaded(message: impl Into<String>) -> Self {
        Self::new(Kind::Unavailable, message)
            .code("server_is_overloaded")
            .retry_after(1)
    }

    /// 503 with `Retry-After`: the database or the bucket cannot be reached.
    pub fn unavailable(detail: impl Into<String>) -> Self {
        let message =
            "The service cannot reach its storage at the moment. Please try again shortly.";
        Self::new(Kind::Unavailable, message)
            .retry_after(1)
            .detail(detail)
    }

    /// 500. The client reads nothing but the request id.
    pub fn internal(detail: impl Into<String>) -> Self {
        let message = "The server had an error while processing your request. Please name the request id in the \
                       x-request-id header when you report it to the operator.";
        Self::new(Kind::Internal, message).detail(detail)
    }

    /// The same request may be answered a moment later.
    pub fn is_passing(&self) -> bool {
        self.kind == Kind::Unavailable
    }

    #[must_use]
    pub fn param(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    #[must_use]
    pub fn code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    #[must_use]
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }

    #[must_use]
    pub fn rate(mut self, status: RateStatus) -> Self {
        self.rate = Some(Box::new(status));
        self
    }

    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// The envelope, as it also stands in an event stream that breaks.
    pub fn body(&self) -> ErrorResponse {
        ErrorResponse {
            error: ErrorBody {
                message: self.message.clone(),
                r#type: self.kind.error_type(),
                param: Nullable(self.param.clone()),
                code: Nullable(self.code.map(str::to_owned)),
            },
        }
    }

    /// Any error of the framework, in the envelope.
    pub fn from_poem(error: poem::Error, method: &Method, path: &str) -> Self {
        if let Some(own) = error.downcast_ref::<ApiError>() {
            return own.clone();
        }
        if let Some(bad) = error.downcast_ref::<poem_openapi::error::ParseParamError>() {
            let message = format!(
                "Invalid type for '{}': the value could not be read.",
                bad.name
            );
            return Self::invalid(bad.name, "invalid_type", message);
        }
        match Kind::of(error.status()) {
            Kind::NotFound => Self::not_found(format!("Invalid URL ({method} {path})")),
            Kind::MethodNotAllowed => Self::new(
                Kind::MethodNotAllowed,
                format!("Not allowed to {method} on {path}."),
            )
            .code("method_not_supported"),
            Kind::Internal => Self::internal(error.to_string()),
            kind => Self::new(kind, "The request could not be read.").detail(error.to_string()),
        }
    }
}

impl ResponseError for ApiError {
    fn status(&self) -> StatusCode {
        self.kind.status()
    }

    fn as_response(&self) -> Response {
        let mut response = Json(self.body()).into_response();
        response.set_status(self.kind.status());
        if self.kind == Kind::Unauthorized {
            let bearer = HeaderValue::from_static("Bearer");
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, bearer);
        }
        if self.kind == Kind::InsufficientQuota {
            let never = HeaderValue::from_static("false");
            response.headers_mut().insert("x-should-retry", never);
        }
        if let Some(seconds) = self.retry_after_s {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, seconds.into());
        }
        if let Some(status) = &self.rate {
            response.set_data(**status);
        }
        response
    }
}

impl ApiResponse for ApiError {
    fn meta() -> MetaResponses {
        let response = |kind: Kind, description| MetaResponse {
            description,
            status: Some(kind.status().as_u16()),
            status_range: None,
            content: vec![MetaMediaType {
                content_type: Json::<ErrorResponse>::CONTENT_TYPE,
                schema: ErrorResponse::schema_ref(),
            }],
            headers: vec![],
        };
        MetaResponses {
            responses: vec![
                response(
                    Kind::BadRequest,
                    "The request is not as documented; `param` names the parameter.",
                ),
                response(Kind::Unauthorized, "The API key is missing or wrong."),
                response(Kind::NotFound, "No such object in this project."),
                response(
                    Kind::TooManyRequests,
                    "A limit of the project is reached; try again after `Retry-After` seconds. With `insufficient_quota` \
                     its spend limit is: trying again is of no use.",
                ),
                response(Kind::Internal, "A failure of the service."),
                response(Kind::Unavailable, "Try again after `Retry-After` seconds."),
            ],
        }
    }

    fn register(registry: &mut Registry) {
        ErrorResponse::register(registry);
    }
}

/// What readiness answers.
pub fn readiness_status(ready: bool) -> StatusCode {
    if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    }
}

/// What a batch says of a request that was answered.
pub fn answered_status() -> StatusCode {
    StatusCode::OK
}

/// The answer to a CORS preflight.
pub fn preflight_status() -> StatusCode {
    StatusCode::NO_CONTENT
}
