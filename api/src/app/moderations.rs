//! Moderations: there is no model for them, and a verdict that was made up would be worse than none.

use crate::error::{ApiError, Kind};

/// The answer to every request. Errors: 400 `unsupported_endpoint`, always.
pub fn create<T>() -> Result<T, ApiError> {
    let message = "This service has no moderation model, so it cannot say whether a text is harmful. Use a moderation model \
                   elsewhere, or ask a chat model for a verdict: POST /v1/chat/completions with a prompt of your own and a \
                   'response_format' of type 'json_schema'.";
    Err(ApiError::new(Kind::BadRequest, message).code("unsupported_endpoint"))
}
