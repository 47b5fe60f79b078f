//! The error envelope.

use super::nullable::Nullable;
use super::reply::reply;

reply! {
    /// Every refusal, on every route.
    ErrorResponse as "ErrorResponse" {
        error: ErrorBody,
    }

    /// What went wrong. All four keys are always there.
    ErrorBody as "Error" {
        /// For people.
        message: String,
        /// `invalid_request_error`, `server_error`, `service_unavailable_error`, `rate_limit_error`.
        r#type: &'static str,
        /// The parameter at fault, as a path such as `messages[0].role`.
        param: Nullable<String>,
        /// For programs, such as `model_not_found`.
        code: Nullable<String>,
    }
}
