//! `/v1/embeddings`.

use poem::web::Data;
use poem_openapi::OpenApi;

use super::Tag;
use super::reply::{Head, ModelReply};
use crate::app;
use crate::app::ledger::Consumer;
use crate::auth::Caller;
use crate::body::JsonBody;
use crate::error::ApiError;
use crate::state::Shared;
use crate::wire::embeddings::{EmbeddingList, EmbeddingOrder};

pub struct EmbeddingsApi;

#[OpenApi(prefix_path = "/v1/embeddings", tag = "Tag::Embeddings")]
impl EmbeddingsApi {
    /// Makes a vector of each text: the mean of the model's last states over its tokens, of unit length.
    #[oai(path = "/", method = "post", operation_id = "createEmbedding")]
    async fn create(
        &self,
        state: Data<&Shared>,
        caller: Caller,
        body: JsonBody<EmbeddingOrder>,
    ) -> Result<ModelReply<EmbeddingList>, ApiError> {
        let consumer = Consumer::Key(&caller);
        let made = app::embeddings::create(&state, consumer, body.value).await?;
        let head = Head {
            model: made.list.model.clone(),
            rate: made.rate,
        };
        Ok(ModelReply {
            object: made.list,
            head,
        })
    }
}
