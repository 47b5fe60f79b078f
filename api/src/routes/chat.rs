//! `/v1/chat/completions`.

use domain::page::Order;
use poem::web::Data;
use poem_openapi::OpenApi;
use poem_openapi::param::{Path, Query};
use poem_openapi::payload::Json;
use store::chat_completions::ChatCompletionFilter;

use super::reply::{AnswerReply, ChatReply, Head, MetadataQuery};
use super::{Tag, order};
use crate::app::ledger::Consumer;
use crate::app::{self, page_request};
use crate::auth::Caller;
use crate::body::JsonBody;
use crate::error::ApiError;
use crate::state::Shared;
use crate::stream;
use crate::wire::chat::ChatOrder;
use crate::wire::chat_completions::{MetadataOrder, StoredMessageObject};
use crate::wire::chat_reply::ChatCompletion;
use crate::wire::generation::ReplyForm;
use crate::wire::list::{Deleted, List};

/// Largest page of completions, and of messages.
const MAX_LIMIT: u64 = 100;

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
        let answer = answer.counted(&state, Consumer::Key(&caller));
        let head = Head {
            model: answer.model.clone(),
            rate: answer.rate,
        };
        Ok(match reply {
            ReplyForm::Whole => AnswerReply::whole(app::chat::whole(answer).await?.into(), head),
            ReplyForm::Stream { include_usage } => {
                AnswerReply::stream(stream::chat::sse(answer, include_usage), head)
            }
        })
    }

    /// Lists the completions that were kept, oldest first.
    ///
    /// `limit` is 1–100, default 20; `order` is `asc` or `desc`.
    #[oai(
        path = "/completions",
        method = "get",
        operation_id = "listChatCompletions"
    )]
    #[allow(clippy::too_many_arguments, reason = "the query's own parameters")]
    async fn list(
        &self,
        state: Data<&Shared>,
        caller: Caller,
        model: Query<Option<String>>,
        metadata: MetadataQuery,
        after: Query<Option<String>>,
        limit: Query<Option<i64>>,
        #[oai(name = "order")] sort: Query<Option<String>>,
    ) -> Result<Json<List<ChatCompletion>>, ApiError> {
        let page = page_request(after.0, limit.0, 20, MAX_LIMIT, oldest_first(sort.0)?)?;
        let filter = ChatCompletionFilter {
            model: model.0,
            metadata: metadata.0,
        };
        let stored = app::chat_completions::list(&state, &caller.project, &filter, &page).await?;
        Ok(Json(List::page(stored)))
    }

    /// Retrieves a completion that was kept.
    #[oai(
        path = "/completions/:completion_id",
        method = "get",
        operation_id = "getChatCompletion"
    )]
    async fn retrieve(
        &self,
        state: Data<&Shared>,
        caller: Caller,
        completion_id: Path<String>,
    ) -> Result<Json<ChatCompletion>, ApiError> {
        let stored = app::chat_completions::get(&state, &caller.project, &completion_id).await?;
        Ok(Json(stored.into()))
    }

    /// Puts other metadata in place of what a completion has.
    #[oai(
        path = "/completions/:completion_id",
        method = "post",
        operation_id = "updateChatCompletion"
    )]
    async fn update(
        &self,
        state: Data<&Shared>,
        caller: Caller,
        completion_id: Path<String>,
        body: JsonBody<MetadataOrder>,
    ) -> Result<Json<ChatCompletion>, ApiError> {
        let (project, metadata) = (&caller.project, body.value.0);
        let stored =
            app::chat_completions::set_metadata(&state, project, &completion_id, metadata).await?;
        Ok(Json(stored.into()))
    }

    /// Deletes a completion that was kept, with its messages.
    #[oai(
        path = "/completions/:completion_id",
        method = "delete",
        operation_id = "deleteChatCompletion"
    )]
    async fn delete(
        &self,
        state: Data<&Shared>,
        caller: Caller,
        completion_id: Path<String>,
    ) -> Result<Json<Deleted>, ApiError> {
        app::chat_completions::delete(&state, &caller.project, &completion_id).await?;
        Ok(Json(Deleted {
            id: completion_id.0,
            object: "chat.completion.deleted",
            deleted: true,
        }))
    }

    /// Lists the messages that a completion answers, in order.
    ///
    /// `limit` is 1–100, default 20; `order` is `asc` or `desc`.
    #[oai(
        path = "/completions/:completion_id/messages",
        method = "get",
        operation_id = "getChatCompletionMessages"
    )]
    async fn messages(
        &self,
        state: Data<&Shared>,
        caller: Caller,
        completion_id: Path<String>,
        after: Query<Option<String>>,
        limit: Query<Option<i64>>,
        #[oai(name = "order")] sort: Query<Option<String>>,
    ) -> Result<Json<List<StoredMessageObject>>, ApiError> {
        let page = page_request(after.0, limit.0, 20, MAX_LIMIT, oldest_first(sort.0)?)?;
        let project = &caller.project;
        let found = app::chat_completions::messages(&state, project, &completion_id, &page).await?;
        Ok(Json(List::page(found)))
    }
}

/// `asc`, the default, or `desc`.
fn oldest_first(text: Option<String>) -> Result<Order, ApiError> {
    order(Some(text.unwrap_or_else(|| "asc".to_owned())))
}
