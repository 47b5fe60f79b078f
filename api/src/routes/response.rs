//! `/v1/responses`.

use poem::web::Data;
use poem_openapi::OpenApi;
use poem_openapi::param::{Path, Query};
use poem_openapi::payload::Json;

use super::reply::{AnswerReply, Head, ResponseReply};
use super::{Tag, order};
use crate::app::ledger::Consumer;
use crate::app::{page_request, response as app};
use crate::auth::Caller;
use crate::body::JsonBody;
use crate::error::ApiError;
use crate::state::Shared;
use crate::stream;
use crate::wire::list::{Deleted, List};
use crate::wire::response::{ResponseForm, ResponseOrder};
use crate::wire::response_items::ItemObject;
use crate::wire::response_reply::{InputTokens, ResponseObject};

/// Largest page of items.
const MAX_LIMIT: u64 = 100;

pub struct ResponseApi;

#[OpenApi(prefix_path = "/v1/responses", tag = "Tag::Responses")]
impl ResponseApi {
    /// Answers a conversation with a base model, a tuned model or a checkpoint.
    ///
    /// Kept unless `store` is false; the next one goes on from it by `previous_response_id`.
    #[oai(path = "/", method = "post", operation_id = "createResponse")]
    async fn create(
        &self,
        state: Data<&Shared>,
        caller: Caller,
        body: JsonBody<ResponseOrder>,
    ) -> Result<ResponseReply, ApiError> {
        let form = body.value.form;
        let answering = app::begin(&state, Consumer::Key(&caller), body.value).await?;
        let head = Head {
            model: answering.model.clone(),
            rate: answering.rate,
        };
        Ok(match form {
            ResponseForm::Whole => AnswerReply::whole(app::whole(answering).await?.into(), head),
            ResponseForm::Stream => AnswerReply::stream(stream::response::sse(answering), head),
        })
    }

    /// Says how many tokens a model would be given for a request.
    #[oai(
        path = "/input_tokens",
        method = "post",
        operation_id = "Getinputtokencounts"
    )]
    async fn count_tokens(
        &self,
        state: Data<&Shared>,
        caller: Caller,
        body: JsonBody<ResponseOrder>,
    ) -> Result<Json<InputTokens>, ApiError> {
        let input_tokens = app::count_tokens(&state, &caller.project, body.value).await?;
        Ok(Json(InputTokens {
            object: "response.input_tokens",
            input_tokens,
        }))
    }

    /// Retrieves a response that was kept.
    #[oai(path = "/:response_id", method = "get", operation_id = "getResponse")]
    async fn retrieve(
        &self,
        state: Data<&Shared>,
        caller: Caller,
        response_id: Path<String>,
        stream: Query<Option<bool>>,
    ) -> Result<Json<ResponseObject>, ApiError> {
        if stream.0 == Some(true) {
            let message = "Unsupported value: 'stream' does not support true here: a response is streamed while it is made.";
            return Err(ApiError::unsupported("stream", message));
        }
        let stored = app::get(&state, &caller.project, &response_id).await?;
        Ok(Json(stored.response.into()))
    }

    /// Deletes a response that was kept, with the conversation it answers.
    #[oai(
        path = "/:response_id",
        method = "delete",
        operation_id = "deleteResponse"
    )]
    async fn delete(
        &self,
        state: Data<&Shared>,
        caller: Caller,
        response_id: Path<String>,
    ) -> Result<Json<Deleted>, ApiError> {
        app::delete(&state, &caller.project, &response_id).await?;
        Ok(Json(Deleted {
            id: response_id.0,
            object: "response",
            deleted: true,
        }))
    }

    /// Refuses: what is made in the background could be cancelled, and nothing is.
    #[oai(
        path = "/:response_id/cancel",
        method = "post",
        operation_id = "cancelResponse"
    )]
    async fn cancel(
        &self,
        state: Data<&Shared>,
        caller: Caller,
        response_id: Path<String>,
    ) -> Result<Json<ResponseObject>, ApiError> {
        match app::cancel(&state, &caller.project, &response_id).await? {}
    }

    /// Lists the items that a response answers, the newest first, those of earlier turns among them.
    ///
    /// `limit` is 1–100, default 20; `order` is `asc` or `desc`.
    #[oai(
        path = "/:response_id/input_items",
        method = "get",
        operation_id = "listInputItems"
    )]
    async fn input_items(
        &self,
        state: Data<&Shared>,
        caller: Caller,
        response_id: Path<String>,
        after: Query<Option<String>>,
        limit: Query<Option<i64>>,
        #[oai(name = "order")] sort: Query<Option<String>>,
    ) -> Result<Json<List<ItemObject>>, ApiError> {
        let page = page_request(after.0, limit.0, 20, MAX_LIMIT, order(sort.0)?)?;
        let items = app::input_items(&state, &caller.project, &response_id, &page).await?;
        Ok(Json(List::page(items)))
    }
}
