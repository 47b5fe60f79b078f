//! Answers as a worker's events add them up.

use domain::chat_completion::{ChatCompletion, Choice};
use domain::generation::{FinishReason, ToolCall};
use domain::message::GenerateEvent;
use domain::usage::TokenUsage;

use super::{Answer, broken_off};
use crate::app::workers;
use crate::error::ApiError;

/// Answers that grow.
pub struct Gathered {
    completion: ChatCompletion,
    /// The last event was taken.
    is_done: bool,
}

impl Gathered {
    /// Nothing of the answer yet.
    pub fn new(answer: &Answer) -> Self {
        let empty = Choice {
            text: String::new(),
            tool_calls: Vec::new(),
            logprobs: answer.has_logprobs.then(Vec::new),
            finish_reason: FinishReason::Stop,
        };
        Self {
            completion: ChatCompletion {
                id: answer.id.clone(),
                created_at: answer.created_at,
                model: answer.model.clone(),
                choices: vec![empty; answer.n as usize],
                usage: TokenUsage::default(),
            },
            is_done: false,
        }
    }

    /// Errors: the worker's own, and an event that does not fit the ones before it.
    pub fn take(&mut self, event: GenerateEvent) -> Result<(), ApiError> {
        match event {
            // Only completions of texts begin with their prompt.
            GenerateEvent::Queued | GenerateEvent::Started { .. } | GenerateEvent::Echo { .. } => {}
            GenerateEvent::Delta {
                index,
                text,
                logprobs,
            } => {
                let choice = self.choice(index)?;
                choice.text += &text;
                if let Some(all) = &mut choice.logprobs {
                    all.extend(logprobs);
                }
            }
            GenerateEvent::ToolCall {
                index, id, name, ..
            } => self.choice(index)?.tool_calls.push(ToolCall {
                id,
                name,
                arguments: String::new(),
            }),
            GenerateEvent::ToolArguments {
                index,
                call,
                arguments,
            } => {
                let call = self.choice(index)?.tool_calls.get_mut(call as usize);
                let call = call.ok_or_else(|| {
                    ApiError::internal("the worker sent arguments before their call")
                })?;
                call.arguments += &arguments;
            }
            GenerateEvent::Finished {
                index,
                finish_reason,
            } => self.choice(index)?.finish_reason = finish_reason,
            GenerateEvent::Done { usage } => {
                self.completion.usage = usage;
                self.is_done = true;
            }
            GenerateEvent::Failed { error } => return Err(workers::api_error(&error)),
        }
        Ok(())
    }

    /// The whole of it, once the last event was taken.
    pub fn whole(&self) -> Option<&ChatCompletion> {
        self.is_done.then_some(&self.completion)
    }

    /// Errors: the events ended too early.
    pub fn into_whole(self) -> Result<ChatCompletion, ApiError> {
        match self.is_done {
            true => Ok(self.completion),
            false => Err(workers::api_error(&broken_off())),
        }
    }

    fn choice(&mut self, index: u32) -> Result<&mut Choice, ApiError> {
        let n = self.completion.choices.len();
        let place = usize::try_from(index).unwrap_or(usize::MAX);
        let choice = self.completion.choices.get_mut(place);
        choice.ok_or_else(|| ApiError::internal(format!("the worker named answer {index} of {n}")))
    }
}
