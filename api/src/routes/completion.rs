//! `/v1/completions`.

use poem::web::Data;
use poem_openapi::OpenApi;

use super::Tag;
use super::reply::{AnswerReply, CompletionReply, Head};
use crate::app;
use crate::app::ledger::Consumer;
use crate::auth::Caller;
use crate::body::JsonBody;
use crate::error::ApiError;
use crate::state::Shared;
use crate::stream;
use crate::wire::completion::CompletionOrder;
use crate::wire::generation::ReplyForm;

pub struct CompletionApi;

#[OpenApi(prefix_path = "/v1", tag = "Tag::Completions")]
impl CompletionApi {
    /// Goes on with texts, without a chat template.
    #[oai(
        path = "/completions",
        method = "post",
        operation_id = "createCompletion"
    )]
    async fn create(
        &self,
        state: Data<&Shared>,
        caller: Caller,
        body: JsonBody<CompletionOrder>,
    ) -> Result<CompletionReply, ApiError> {
        let reply = body.value.reply;
        let answers = app::completion::begin(&state, &caller.project, body.value).await?;
        let answers = answers.counted(&state, Consumer::Key(&caller));
        let head = Head {
            model: answers.model.clone(),
            rate: answers.rate,
        };
        Ok(match reply {
            ReplyForm::Whole => AnswerReply::whole(app::completion::whole(answers).await?, head),
            ReplyForm::Stream { include_usage } => {
                AnswerReply::stream(stream::completion::sse(answers, include_usage), head)
            }
        })
    }
}
