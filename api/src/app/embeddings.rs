//! Embeddings: each text is asked of a worker by itself.

use domain::message::{EmbedRequest, Embedded};
use domain::rate_limit::RateStatus;
use futures::{StreamExt, TryStreamExt, stream};

use super::chat::unknown;
use super::ledger::Consumer;
use super::models::{Named, find_named};
use super::workers::{self, Patience};
use crate::error::ApiError;
use crate::state::State;
use crate::wire::embeddings::{EmbeddingList, EmbeddingOrder, shown};

/// Texts of one request that are read beside each other.
const AT_A_TIME: usize = 8;

/// Vectors, and how the limit stands, where one was asked.
pub struct Made {
    pub list: EmbeddingList,
    pub rate: Option<RateStatus>,
}

/// What the model makes of each text. Errors: 404 `model_not_found`, 400 for `dimensions` that the model has not, 429 where a
/// limit is reached, and those of [`workers::embed`].
pub async fn create(
    state: &State,
    consumer: Consumer<'_>,
    order: EmbeddingOrder,
) -> Result<Made, ApiError> {
    let project = consumer.project();
    let named = find_named(state, project, &order.model).await?;
    let Named {
        name: model,
        served,
    } = named.ok_or_else(|| unknown(&order.model))?;
    let (base, tokens) = (&served.base_model, order.reckoned_tokens());
    let gate = &state.gate;
    let admission = gate.admit(state, project, base, order.priority, tokens);
    let admission = admission.await?;
    let embed = async |input| {
        let request = EmbedRequest {
            model: served.clone(),
            input,
            priority: order.priority,
        };
        let mut patience = Patience::of(order.priority);
        let embedded = loop {
            let answered = workers::embed(state, &model, &request).await;
            if let Some(answered) = patience.judge(answered).await {
                break answered?;
            }
        };
        let Embedded {
            embedding,
            prompt_tokens,
        } = embedded;
        admission.spend(prompt_tokens);
        let cut = cut(embedding, order.dimensions)?;
        Ok::<_, ApiError>((shown(&cut, order.encoding), prompt_tokens))
    };
    let embedded = stream::iter(order.inputs).map(embed).buffered(AT_A_TIME);
    let embedded: Vec<_> = embedded.try_collect().await?;
    let total_tokens = embedded.iter().map(|(_, n)| n).sum();
    let ledger = &state.ledger;
    ledger.count_embedding(consumer, &model, total_tokens, state.now());
    let vectors = embedded.into_iter().map(|(vector, _)| vector);
    Ok(Made {
        list: EmbeddingList::new(model, vectors, total_tokens),
        rate: admission.status(),
    })
}

/// The first `n` numbers, of unit length again.
fn cut(mut embedding: Vec<f32>, n: Option<usize>) -> Result<Vec<f32>, ApiError> {
    let (width, n) = (embedding.len(), n.unwrap_or(embedding.len()));
    if n > width {
        let message = format!(
            "Invalid 'dimensions': this model's embeddings have {width} dimensions, but {n} were asked for."
        );
        let error = ApiError::invalid("dimensions", "integer_above_max_value", message);
        return Err(error);
    }
    if n < width {
        embedding.truncate(n);
        let length = embedding.iter().map(|x| x * x).sum::<f32>().sqrt();
        // Nothing has no direction.
        if length > 0.0 {
            embedding.iter_mut().for_each(|x| *x /= length);
        }
    }
    Ok(embedding)
}
