//! A chat completion: the model's name becomes a base and perhaps an adapter, a worker's events become the answer.

use domain::id::ChatCompletionId;
use domain::message::{GenerateError, GenerateEvent, GenerateRequest};
use domain::project::Project;
use domain::rate_limit::RateStatus;
use domain::usage::TokenUsage;
use futures::StreamExt;

use super::models::find_served;
use super::workers::{self, Events};
use crate::error::ApiError;
use crate::state::State;
use crate::wire::chat::ChatOrder;
use crate::wire::chat_reply::{
    AnswerMessage, ChatCompletion, Choice, Logprobs, ToolCallObject, finish_reason,
};
use crate::wire::decode::echo;
use crate::wire::nullable::Nullable;

/// An answer that has begun.
pub struct Answer {
    pub id: ChatCompletionId,
    /// Unix seconds.
    pub created: i64,
    /// As asked for.
    pub model: String,
    pub n: u32,
    pub has_logprobs: bool,
    /// How the limit stands, where one was asked.
    pub rate: Option<RateStatus>,
    pub events: Events,
}

/// Begins an answer. Errors: 404 `model_not_found`, 429 where a limit is reached, and those of [`workers::generate`].
pub async fn begin(state: &State, project: &Project, order: ChatOrder) -> Result<Answer, ApiError> {
    let tokens = order.reckoned_tokens();
    let model = order.model;
    let served = find_served(state, project, &model)
        .await?
        .ok_or_else(|| unknown(&model))?;
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
        priority: order.priority,
    };
    let events = workers::generate(state, &model, &request).await?;
    Ok(Answer {
        id: ChatCompletionId::mint(state.entropy()),
        created: state.now().unix_s(),
        model,
        n: request.n,
        has_logprobs: request.top_logprobs.is_some(),
        rate: admission.status(),
        events: admission.watch(events),
    })
}

/// Waits for the whole answer. Errors: what the worker says when it breaks off.
pub async fn whole(mut answer: Answer) -> Result<ChatCompletion, ApiError> {
    let mut choices: Vec<Choice> = (0..answer.n)
        .map(|index| empty(index, answer.has_logprobs))
        .collect();
    let mut usage = None;
    while let Some(event) = answer.events.next().await {
        match event {
            GenerateEvent::Queued | GenerateEvent::Started { .. } => {}
            GenerateEvent::Delta {
                index,
                text,
                logprobs,
            } => {
                let choice = choice(&mut choices, index)?;
                if !text.is_empty() {
                    let content = &mut choice.message.content.0;
                    content.get_or_insert_default().push_str(&text);
                }
                if let Some(shown) = &mut choice.logprobs.0 {
                    shown.content.extend(logprobs.into_iter().map(Into::into));
                }
            }
            GenerateEvent::ToolCall {
                index, id, name, ..
            } => {
                let message = &mut choice(&mut choices, index)?.message;
                let calls = message.tool_calls.get_or_insert_default();
                calls.push(ToolCallObject::new(id, name));
            }
            GenerateEvent::ToolArguments {
                index,
                call,
                arguments,
            } => {
                let calls = &mut choice(&mut choices, index)?.message.tool_calls;
                let call = calls.iter_mut().flatten().nth(call as usize);
                let call = call.ok_or_else(|| {
                    ApiError::internal("the worker sent arguments before their call")
                })?;
                call.function.arguments += &arguments;
            }
            GenerateEvent::Finished {
                index,
                finish_reason: reason,
            } => {
                let choice = choice(&mut choices, index)?;
                choice.finish_reason = finish_reason(reason);
                if choice.message.tool_calls.is_none() {
                    choice.message.content.0.get_or_insert_default();
                }
            }
            GenerateEvent::Done { usage: done } => usage = Some(done),
            GenerateEvent::Failed { error } => return Err(workers::api_error(&error)),
        }
    }
    let usage: TokenUsage = usage.ok_or_else(|| workers::api_error(&broken_off()))?;
    Ok(ChatCompletion {
        id: answer.id.to_string(),
        object: "chat.completion",
        created: answer.created,
        model: answer.model,
        choices,
        usage: usage.into(),
    })
}

/// The worker's reply ended without saying how.
pub fn broken_off() -> GenerateError {
    GenerateError::Internal {
        reason: "the worker's reply ended too early".to_owned(),
    }
}

fn empty(index: u32, has_logprobs: bool) -> Choice {
    Choice {
        index,
        message: AnswerMessage {
            role: "assistant",
            content: Nullable(None),
            tool_calls: None,
            refusal: Nullable(None),
            annotations: Vec::new(),
        },
        logprobs: Nullable(has_logprobs.then(|| Logprobs::from(Vec::new()))),
        finish_reason: "stop",
    }
}

fn choice(choices: &mut [Choice], index: u32) -> Result<&mut Choice, ApiError> {
    let n = choices.len();
    let place = usize::try_from(index).unwrap_or(usize::MAX);
    choices
        .get_mut(place)
        .ok_or_else(|| ApiError::internal(format!("the worker named answer {index} of {n}")))
}

pub fn unknown(name: &str) -> ApiError {
    let message = format!(
        "The model `{}` does not exist or you do not have access to it.",
        echo(name)
    );
    ApiError::not_found(message).code("model_not_found")
}
