//! `/v1/chat/completions`.

use poem::web::Data;
use poem_openapi::OpenApi;

use super::Tag;
use super::reply::{AnswerReply, ChatReply, Head};
use crate::app;
use crate::auth::Caller;
use crate::body::JsonBody;
use crate::error::ApiError;
use crate::state::Shared;
use crate::stream;
use crate::wire::chat::ChatOrder;
use crate::wire::generation::ReplyForm;

pub struct ChatApi;

#[OpenApi(prefix_path = "/v1/chat", tag = "Tag::Chat")]
impl ChatApi {
    /// Answers a conversation with a base model, a tuned model or a checkpoint.
    #[oai(
        path = "/completions",
        method = "post",
        operation_id = "createChatCompletion"
    )]
    async fn create(
        &self,
        state: Data<&Shared>,
        caller: Caller,
        body: JsonBody<ChatOrder>,
    ) -> Result<ChatReply, ApiError> {
        let reply = body.value.reply;
        let answer = app::chat::begin(&state, &caller.project, body.value).await?;
        let head = Head {
            model: answer.model.clone(),
            rate: answer.rate,
        };
        Ok(match reply {
            ReplyForm::Whole => AnswerReply::whole(app::chat::whole(answer).await?, head),
            ReplyForm::Stream { include_usage } => {
                AnswerReply::stream(stream::chat::sse(answer, include_usage), head)
            }
        })
    }
}
