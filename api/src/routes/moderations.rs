//! `/v1/moderations`.

use poem_openapi::OpenApi;

use super::Tag;
use super::reply::Never;
use crate::app;
use crate::auth::Caller;
use crate::error::ApiError;

pub struct ModerationsApi;

#[OpenApi(prefix_path = "/v1/moderations", tag = "Tag::Moderations")]
impl ModerationsApi {
    /// Refuses: this service has no moderation model.
    ///
    /// Always 400 with the code `unsupported_endpoint`, whatever is sent; the message says what to do instead.
    #[oai(path = "/", method = "post", operation_id = "createModeration")]
    async fn create(&self, _caller: Caller) -> Result<Never, ApiError> {
        app::moderations::create()
    }
}
