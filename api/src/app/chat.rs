//! A chat completion: the model's name becomes a base and perhaps an adapter, a worker's events become the answer.

mod gathered;

use domain::chat_completion::ChatCompletion;
use domain::id::ChatCompletionId;
use domain::message::{GenerateError, GenerateRequest};
use domain::project::Project;
use domain::rate_limit::RateStatus;
use domain::time::Timestamp;
use futures::StreamExt;

pub use gathered::Gathered;

use super::chat_completions;
use super::ledger::Consumer;
use super::models::{Named, find_named};
use super::workers::{self, Events};
use crate::error::ApiError;
use crate::state::State;
use crate::wire::chat::ChatOrder;
use crate::wire::decode::echo;

/// An answer that has begun.
pub struct Answer {
    pub id: ChatCompletionId,
    pub created_at: Timestamp,
    /// Its own name, by whichever it was asked for.
    pub model: String,
    pub n: u32,
    pub has_logprobs: bool,
    /// How the limit stands, where one was asked.
    pub rate: Option<RateStatus>,
    pub events: Events,
}

impl Answer {
    /// Counts what it takes as the consumer's.
    pub fn counted(mut self, state: &State, consumer: Consumer<'_>) -> Self {
        let meter = state.ledger.meter(consumer, &self.model, state.now());
        self.events = meter.watch(self.events);
        self
    }
}

/// Begins an answer; one that is to be kept is, before its last event. Errors: 404 `model_not_found`, 429 where a limit is
/// reached, and those of [`workers::generate`].
pub async fn begin(state: &State, project: &Project, order: ChatOrder) -> Result<Answer, ApiError> {
    let tokens = order.reckoned_tokens();
    let Named {
        name: model,
        served,
    } = find_named(state, project, &order.model)
        .await?
        .ok_or_else(|| unknown(&order.model))?;
    let gate = &state.gate;
    let admission = gate
        .admit(state, project, &served.base_model, order.priority, tokens)
        .await?;
    let request = GenerateRequest {
        model: served,
        scope: project.id.to_string(),
        messages: order.messages,
        tools: order.tools.definitions,
        tool_choice: order.tools.choice,
        parallel_tool_calls: order.tools.parallel,
        response_format: order.response_format,
        n: order.n,
        max_tokens: order.max_tokens,
        stop: order.stop,
        stop_token_ids: order.stop_token_ids,
        sampling: order.sampling,
        top_logprobs: order.top_logprobs,
        prompt: None,
        echo: false,
        echo_logprobs: false,
        priority: order.priority,
    };
    let events = workers::generate(state, &model, &request).await?;
    let answer = Answer {
        id: ChatCompletionId::mint(state.entropy()),
        created_at: state.now(),
        model,
        n: request.n,
        has_logprobs: request.top_logprobs.is_some(),
        rate: admission.status(),
        events: admission.watch(events),
    };
    Ok(match order.kept {
        Some(kept) => chat_completions::keeping(state, project, kept, answer),
        None => answer,
    })
}

/// Waits for the whole answer. Errors: what the worker says when it breaks off.
pub async fn whole(mut answer: Answer) -> Result<ChatCompletion, ApiError> {
    let mut gathered = Gathered::new(&answer);
    while let Some(event) = answer.events.next().await {
        gathered.take(event)?;
    }
    gathered.into_whole()
}

/// The worker's reply ended without saying how.
pub fn broken_off() -> GenerateError {
    GenerateError::Internal {
        reason: "the worker's reply ended too early".to_owned(),
    }
}

pub fn unknown(name: &str) -> ApiError {
    let message = format!(
        "The model `{}` does not exist or you do not have access to it.",
        echo(name)
    );
    ApiError::not_found(message).code("model_not_found")
}
