//! Batches as clients see them, and the lines of their files.

use domain::batch::{Batch, BatchEndpoint, LineError, RequestCounts};
use domain::id::{BatchRequestId, FileId, RequestId};
use domain::time::Timestamp;
use domain::usage::TokenUsage;
use poem_openapi::Object;
use serde_json::{Value, json};

use super::decode::{At, Fields, metadata};
use super::files::{ExpiresAfterRequest, expires_after_s};
use super::fine_tuning::file_id;

use super::list::Listed;
use super::nullable::Nullable;
use super::reply::{pairs, reply};
use crate::body::Decode;
use crate::error::ApiError;

/// What names the input file in a request, and in a refusal.
pub const INPUT_FILE: &str = "input_file_id";
/// Longest `custom_id`. Characters.
const MAX_CUSTOM_ID: usize = 512;

/// The body of `POST /v1/batches`.
#[derive(Debug, Clone, PartialEq, Object)]
pub struct CreateBatchRequest {
    /// A JSONL file of purpose `batch`: one request a line, `{"custom_id": …, "method": "POST", "url": …, "body": …}`.
    pub input_file_id: String,
    /// The route of every request, such as `/v1/chat/completions`.
    pub endpoint: String,
    /// `24h`.
    pub completion_window: String,
    /// At most 16 pairs.
    pub metadata: Option<std::collections::BTreeMap<String, String>>,
    /// How long the files that the batch writes are kept; default: until they are deleted.
    pub output_expires_after: Option<ExpiresAfterRequest>,
}

/// The request, judged as far as it can be without a look at its file.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchOrder {
    pub input_file: FileId,
    pub endpoint: BatchEndpoint,
    pub metadata: Option<Vec<(String, String)>>,
    pub output_expires_after_s: Option<i64>,
}

impl Decode for BatchOrder {
    type Schema = CreateBatchRequest;

    fn decode(mut body: Fields) -> Result<Self, ApiError> {
        let input_file = file_id(INPUT_FILE, &body.require(INPUT_FILE)?.string()?)?;
        let path = body.require("endpoint")?.one_of(BatchEndpoint::PATHS)?;
        body.require("completion_window")?.one_of(&["24h"])?;
        let order = Self {
            input_file,
            endpoint: BatchEndpoint::parse(path).expect("one of its own paths — a bug in one_of"),
            metadata: body.take("metadata").map(metadata).transpose()?,
            output_expires_after_s: body
                .take("output_expires_after")
                .map(expires_after_s)
                .transpose()?,
        };
        body.finish()?;
        Ok(order)
    }
}

/// A line of the input file.
#[derive(Debug, Clone, PartialEq)]
pub struct RequestLine {
    pub custom_id: String,
    /// As the client spelled it; `model` is in it.
    pub body: Value,
    pub model: String,
}

impl RequestLine {
    /// Judges a line of a batch for `endpoint`, all but what the endpoint itself says of its body.
    pub fn decode(line: &[u8], endpoint: BatchEndpoint) -> Result<Self, ApiError> {
        let value = serde_json::from_slice(line).map_err(|error| {
            let message = format!("This line is not valid JSON: {error}.");
            ApiError::new(crate::error::Kind::BadRequest, message).code("invalid_json_line")
        })?;
        let mut fields = Fields::root(value)?;
        let custom_id = fields.require("custom_id")?.string_up_to(MAX_CUSTOM_ID)?;
        fields.require("method")?.one_of(&["POST"])?;
        let url = fields.require("url")?.string()?;
        if url != endpoint.as_str() {
            let message = format!(
                "Invalid 'url': the batch is for {}, but this request is for {}.",
                endpoint.as_str(),
                super::decode::echo(&url)
            );
            return Err(ApiError::invalid("url", "invalid_url", message));
        }
        let body = fields.require("body")?.json_object()?;
        let model = At::new("body", body.clone()).object()?.require("model")?;
        fields.finish()?;
        Ok(Self {
            custom_id,
            body,
            model: model.string()?,
        })
    }
}

/// A line of the output or the error file: what the endpoint answered.
pub fn answered_line(
    id: &BatchRequestId,
    custom_id: &str,
    status_code: u16,
    request_id: &RequestId,
    body: &Value,
) -> String {
    let response = json!({
        "status_code": status_code, "request_id": request_id.as_str(), "body": body,
    });
    json!({"id": id.as_str(), "custom_id": custom_id, "response": response, "error": null})
        .to_string()
}

/// A line of the error file: a request that the window left no time for.
pub fn expired_line(id: &BatchRequestId, custom_id: &str) -> String {
    let error = json!({
        "code": "batch_expired",
        "message": "This request could not be executed before the completion window expired.",
    });
    json!({"id": id.as_str(), "custom_id": custom_id, "response": null, "error": error}).to_string()
}

/// The tokens of an answer, by either family of names.
pub fn usage_of(answer: &Value) -> TokenUsage {
    let usage = &answer["usage"];
    let count = |names: [&str; 2]| {
        let found = names.iter().find_map(|name| usage[name].as_u64());
        found.unwrap_or(0)
    };
    let details = ["prompt_tokens_details", "input_tokens_details"];
    let cached = details
        .iter()
        .find_map(|name| usage[name]["cached_tokens"].as_u64());
    TokenUsage {
        prompt_tokens: count(["prompt_tokens", "input_tokens"]),
        cached_tokens: cached.unwrap_or(0),
        completion_tokens: count(["completion_tokens", "output_tokens"]),
    }
}

reply! {
    /// A file of requests, and how far they are answered.
    BatchObject as "Batch" {
        id: String,
        /// `batch`.
        object: &'static str,
        /// The route of every request.
        endpoint: &'static str,
        /// The model that all requests name; null until they are validated.
        model: Nullable<String>,
        /// Why the input was refused; null unless `failed`.
        errors: Nullable<BatchErrors>,
        input_file_id: String,
        /// `24h`.
        completion_window: &'static str,
        /// `validating`, `failed`, `in_progress`, `finalizing`, `completed`, `expired`, `cancelling` or `cancelled`.
        status: &'static str,
        /// Requests that were answered with 200, in the order of the input.
        output_file_id: Nullable<String>,
        /// Requests that were not.
        error_file_id: Nullable<String>,
        /// Unix seconds.
        created_at: i64,
        in_progress_at: Nullable<i64>,
        /// When nothing more of it is begun. Unix seconds.
        expires_at: Nullable<i64>,
        finalizing_at: Nullable<i64>,
        completed_at: Nullable<i64>,
        failed_at: Nullable<i64>,
        expired_at: Nullable<i64>,
        cancelling_at: Nullable<i64>,
        cancelled_at: Nullable<i64>,
        request_counts: BatchRequestCounts,
        /// Of the requests answered so far; null until they are validated.
        usage: Nullable<BatchUsage>,
        metadata: Nullable<Value>,
    }

    BatchErrors as "BatchErrors" {
        /// `list`.
        object: &'static str,
        data: Vec<BatchErrorObject>,
    }

    BatchErrorObject as "BatchError" {
        code: String,
        message: String,
        /// As a path within the line.
        param: Nullable<String>,
        /// Of the input file, from 1.
        line: Nullable<u32>,
    }

    BatchRequestCounts as "BatchRequestCounts" {
        total: u64,
        /// Answered with 200.
        completed: u64,
        /// Answered with anything else.
        failed: u64,
    }

    BatchUsage as "BatchUsage" {
        input_tokens: u64,
        input_tokens_details: BatchInputTokens,
        output_tokens: u64,
        output_tokens_details: BatchOutputTokens,
        total_tokens: u64,
    }

    BatchInputTokens as "BatchInputTokensDetails" {
        cached_tokens: u64,
    }

    BatchOutputTokens as "BatchOutputTokensDetails" {
        reasoning_tokens: u64,
    }
}

impl From<Batch> for BatchObject {
    fn from(batch: Batch) -> Self {
        let (p, spec) = (batch.progress, batch.spec);
        let at = |at: Option<Timestamp>| Nullable(at.map(Timestamp::unix_s));
        let is_validated = p.model.is_some();
        Self {
            id: batch.id.to_string(),
            object: "batch",
            endpoint: spec.endpoint.as_str(),
            model: Nullable(p.model),
            errors: Nullable((!p.errors.is_empty()).then(|| p.errors.into())),
            input_file_id: spec.input_file.to_string(),
            completion_window: "24h",
            status: p.status.as_str(),
            output_file_id: Nullable(p.output_file.map(|id| id.to_string())),
            error_file_id: Nullable(p.error_file.map(|id| id.to_string())),
            created_at: batch.created_at.unix_s(),
            in_progress_at: at(p.moments.in_progress_at),
            expires_at: at(Some(batch.expires_at)),
            finalizing_at: at(p.moments.finalizing_at),
            completed_at: at(p.moments.completed_at),
            failed_at: at(p.moments.failed_at),
            expired_at: at(p.moments.expired_at),
            cancelling_at: at(p.moments.cancelling_at),
            cancelled_at: at(p.moments.cancelled_at),
            request_counts: p.counts.into(),
            usage: Nullable(is_validated.then(|| p.usage.into())),
            metadata: Nullable(spec.metadata.map(pairs)),
        }
    }
}

impl From<Vec<LineError>> for BatchErrors {
    fn from(errors: Vec<LineError>) -> Self {
        let data = errors.into_iter().map(|error| BatchErrorObject {
            code: error.code,
            message: error.message,
            param: Nullable(error.param),
            line: Nullable(error.line),
        });
        Self {
            object: "list",
            data: data.collect(),
        }
    }
}

impl From<RequestCounts> for BatchRequestCounts {
    fn from(counts: RequestCounts) -> Self {
        Self {
            total: counts.total,
            completed: counts.completed,
            failed: counts.failed,
        }
    }
}

impl From<TokenUsage> for BatchUsage {
    fn from(usage: TokenUsage) -> Self {
        Self {
            input_tokens: usage.prompt_tokens,
            input_tokens_details: BatchInputTokens {
                cached_tokens: usage.cached_tokens,
            },
            output_tokens: usage.completion_tokens,
            output_tokens_details: BatchOutputTokens {
                reasoning_tokens: 0,
            },
            total_tokens: usage.prompt_tokens + usage.completion_tokens,
        }
    }
}

impl Listed for BatchObject {
    fn id(&self) -> &str {
        &self.id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_judged_by_what_stands_around_its_body() {
        let good = json!({"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"model": "m", "x": 1}});
        let decode = |line: &Value| {
            RequestLine::decode(line.to_string().as_bytes(), BatchEndpoint::Completions)
        };
        assert_eq!(
            decode(&good).unwrap(),
            RequestLine {
                custom_id: "a".into(),
                body: json!({"model": "m", "x": 1}),
                model: "m".into()
            }
        );
        for (key, value, code, param) in [
            ("custom_id", Value::Null, "invalid_type", "custom_id"),
            (
                "custom_id",
                json!("x".repeat(513)),
                "string_above_max_length",
                "custom_id",
            ),
            ("method", json!("GET"), "invalid_value", "method"),
            ("url", json!("/v1/chat/completions"), "invalid_url", "url"),
            ("body", json!("{}"), "invalid_type", "body"),
            (
                "body",
                json!({}),
                "missing_required_parameter",
                "body.model",
            ),
            ("bodies", json!({}), "unknown_parameter", "bodies"),
        ] {
            let mut bad = good.clone();
            bad[key] = value;
            let error = decode(&bad).unwrap_err();
            assert_eq!(
                (error.code, error.param.as_deref()),
                (Some(code), Some(param)),
                "{bad}"
            );
        }
        let error = RequestLine::decode(b"{", BatchEndpoint::Completions).unwrap_err();
        assert_eq!(error.code, Some("invalid_json_line"));
    }

    #[test]
    fn tokens_are_counted_under_either_name() {
        let usage = TokenUsage {
            prompt_tokens: 7,
            cached_tokens: 4,
            completion_tokens: 3,
        };
        for answer in [
            json!({"usage": {"prompt_tokens": 7, "prompt_tokens_details": {"cached_tokens": 4}, "completion_tokens": 3}}),
            json!({"usage": {"input_tokens": 7, "input_tokens_details": {"cached_tokens": 4}, "output_tokens": 3}}),
        ] {
            assert_eq!(usage_of(&answer), usage);
        }
        assert_eq!(usage_of(&json!({"object": "list"})), TokenUsage::default());
    }
}
