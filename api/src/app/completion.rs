//! Completions of texts: each prompt is asked of a worker by itself, and their events become one stream.

use std::sync::Arc;

use domain::id::CompletionId;
use domain::message::{GenerateEvent, GenerateRequest, Prompt};
use domain::model::ServedModel;
use domain::project::Project;
use domain::rate_limit::RateStatus;
use domain::usage::TokenUsage;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt, stream};

use super::chat::{broken_off, unknown};
use super::ledger::Consumer;
use super::models::{Named, find_named};
use super::rate_limits::Admission;
use super::workers::{self, Events, Patience};
use crate::error::ApiError;
use crate::state::{Shared, State};
use crate::wire::chat_reply::finish_reason;
use crate::wire::completion::CompletionOrder;
use crate::wire::completion_reply::{Completion, CompletionChoice, CompletionLogprobs};
use crate::wire::nullable::Nullable;

/// Prompts of one request that are answered beside each other.
const AT_A_TIME: usize = 8;

/// An event of some prompt's answers, numbered through all prompts; an error ends them all.
pub type Event = Result<GenerateEvent, ApiError>;

/// Answers that have begun.
pub struct Answers {
    pub id: CompletionId,
    /// Unix seconds.
    pub created: i64,
    /// Its own name, by whichever it was asked for.
    pub model: String,
    pub n_prompts: u32,
    /// Answers to each prompt that are drawn, and that are shown.
    pub best_of: u32,
    pub n: u32,
    pub has_logprobs: bool,
    /// How the limit stands, where one was asked.
    pub rate: Option<RateStatus>,
    pub events: BoxStream<'static, Event>,
}

impl Answers {
    /// Counts what they take as one request of the consumer.
    pub fn counted(mut self, state: &State, consumer: Consumer<'_>) -> Self {
        let meter = state.ledger.meter(consumer, &self.model, state.now());
        self.events = meter.watch_all(self.events);
        self
    }
}

/// Begins to answer. Errors: 404 `model_not_found`, 429 where a limit is reached, and those of
/// [`workers::generate`] for the first prompt.
pub async fn begin(
    state: &Shared,
    project: &Project,
    mut order: CompletionOrder,
) -> Result<Answers, ApiError> {
    let Named { name, served } = find_named(state, project, &order.model)
        .await?
        .ok_or_else(|| unknown(&order.model))?;
    order.model = name;
    let tokens = order.reckoned_tokens();
    let gate = &state.gate;
    let admission = gate
        .admit(state, project, &served.base_model, order.priority, tokens)
        .await?;
    let rate = admission.status();
    let asking = Arc::new(Asking {
        state: Arc::clone(state),
        admission,
        served,
        scope: project.id.to_string(),
        order,
    });
    let order = &asking.order;
    // Of the first one a refusal is an answer of its own kind, with its status.
    let first = Arc::clone(&asking).ask(0).await?;
    let n_prompts = order.prompts.len();
    let rest = (1..n_prompts).map({
        let asking = Arc::clone(&asking);
        move |i| {
            let asked = Arc::clone(&asking).ask(i);
            let events = asked.map(move |events| match events {
                Ok(events) => numbered(events, i),
                Err(error) => stream::once(async { Err(error) }).boxed(),
            });
            events.flatten_stream().boxed()
        }
    });
    let all = stream::iter(std::iter::once(numbered(first, 0)).chain(rest));
    Ok(Answers {
        id: CompletionId::mint(state.entropy()),
        created: state.now().unix_s(),
        model: order.model.clone(),
        n_prompts: n_prompts as u32,
        best_of: order.best_of,
        n: order.n,
        has_logprobs: order.top_logprobs.is_some(),
        rate,
        events: all.flatten_unordered(AT_A_TIME).boxed(),
    })
}

/// What is the same for all prompts of a request.
struct Asking {
    state: Shared,
    admission: Arc<Admission>,
    served: ServedModel,
    scope: String,
    order: CompletionOrder,
}

/// The events of one prompt, and its number.
struct OfPrompt {
    events: Events,
    n: u32,
}

impl Asking {
    async fn ask(self: Arc<Self>, i: usize) -> Result<OfPrompt, ApiError> {
        let CompletionOrder {
            model,
            prompts,
            max_tokens,
            best_of,
            n,
            echo,
            top_logprobs,
            stop,
            stop_token_ids,
            sampling,
            priority,
            ..
        } = &self.order;
        let prompt: Prompt = prompts[i].clone();
        // The best are chosen by it.
        let is_chosen = best_of > n;
        let request = GenerateRequest {
            n: *best_of,
            max_tokens: Some(*max_tokens),
            stop: stop.clone(),
            stop_token_ids: stop_token_ids.clone(),
            sampling: sampling.clone(),
            top_logprobs: top_logprobs.or(is_chosen.then_some(0)),
            prompt: Some(prompt),
            echo: *echo,
            echo_logprobs: *echo && top_logprobs.is_some(),
            priority: *priority,
            ..GenerateRequest::new(self.served.clone(), self.scope.clone(), Vec::new())
        };
        let mut patience = Patience::of(*priority);
        let events = loop {
            let answered = workers::generate(&self.state, model, &request).await;
            // Of the first one a refusal is the whole request's: it has its own way of trying again.
            if i == 0 {
                break answered?;
            }
            if let Some(answered) = patience.judge(answered).await {
                break answered?;
            }
        };
        Ok(OfPrompt {
            events: self.admission.watch(events),
            n: *best_of,
        })
    }
}

/// The events of prompt `i`, with the numbers that its answers have among all.
fn numbered(OfPrompt { events, n }: OfPrompt, i: usize) -> BoxStream<'static, Event> {
    let first = n * i as u32;
    let events = events.map(move |mut event| {
        match &mut event {
            GenerateEvent::Delta { index, .. }
            | GenerateEvent::Echo { index, .. }
            | GenerateEvent::ToolCall { index, .. }
            | GenerateEvent::ToolArguments { index, .. }
            | GenerateEvent::Finished { index, .. } => *index += first,
            GenerateEvent::Failed { error } => return Err(workers::api_error(error)),
            GenerateEvent::Queued | GenerateEvent::Started { .. } | GenerateEvent::Done { .. } => {}
        }
        Ok(event)
    });
    events.boxed()
}

/// An answer as it grows.
struct Drawn {
    text: String,
    logprobs: CompletionLogprobs,
    /// Tokens of the prompt among those.
    n_echoed: usize,
    offset: u64,
    finish_reason: &'static str,
}

impl Drawn {
    /// Natural, of a token that was drawn.
    fn mean_logprob(&self) -> f64 {
        let logprobs = &self.logprobs.token_logprobs[self.n_echoed..];
        let sum: f64 = logprobs.iter().filter_map(|logprob| logprob.0).sum();
        sum / logprobs.len().max(1) as f64
    }
}

/// Waits for whole answers. Errors: what a worker says when it breaks off.
pub async fn whole(mut answers: Answers) -> Result<Completion, ApiError> {
    let n_drawn = answers.n_prompts * answers.best_of;
    let mut drawn: Vec<Drawn> = (0..n_drawn)
        .map(|_| Drawn {
            text: String::new(),
            logprobs: CompletionLogprobs::none(),
            n_echoed: 0,
            offset: 0,
            finish_reason: "stop",
        })
        .collect();
    let (mut usage, mut n_done) = (TokenUsage::default(), 0);
    while let Some(event) = answers.events.next().await {
        match event? {
            GenerateEvent::Delta {
                index,
                text,
                logprobs,
            } => {
                let answer = of(&mut drawn, index)?;
                answer.text += &text;
                for token in logprobs {
                    answer.offset = answer.logprobs.push(token, answer.offset);
                }
            }
            GenerateEvent::Echo {
                index,
                text,
                tokens,
            } => {
                let answer = of(&mut drawn, index)?;
                answer.text += &text;
                answer.offset += text.chars().count() as u64;
                answer.n_echoed += tokens.len();
                for token in tokens {
                    answer.logprobs.push_echoed(token);
                }
            }
            GenerateEvent::Finished {
                index,
                finish_reason: reason,
            } => of(&mut drawn, index)?.finish_reason = finish_reason(reason),
            GenerateEvent::Done { usage: one } => {
                usage += one;
                n_done += 1;
            }
            _ => {}
        }
    }
    if n_done < answers.n_prompts {
        return Err(workers::api_error(&broken_off()));
    }
    let (best_of, n) = (answers.best_of as usize, answers.n as usize);
    let mut choices = Vec::new();
    let mut drawn = drawn.into_iter();
    for _ in 0..answers.n_prompts {
        let mut of_prompt: Vec<Drawn> = drawn.by_ref().take(best_of).collect();
        if best_of > n {
            // Stable: of those that are as good the first ones are kept.
            of_prompt.sort_by(|a, b| b.mean_logprob().total_cmp(&a.mean_logprob()));
            of_prompt.truncate(n);
        }
        for answer in of_prompt {
            choices.push(CompletionChoice {
                text: answer.text,
                index: choices.len() as u32,
                logprobs: Nullable(answers.has_logprobs.then_some(answer.logprobs)),
                finish_reason: answer.finish_reason,
            });
        }
    }
    Ok(Completion {
        id: answers.id.to_string(),
        object: "text_completion",
        created: answers.created,
        model: answers.model,
        choices,
        usage: usage.into(),
    })
}

fn of(drawn: &mut [Drawn], index: u32) -> Result<&mut Drawn, ApiError> {
    let n = drawn.len();
    let found = drawn.get_mut(index as usize);
    found.ok_or_else(|| ApiError::internal(format!("the worker named answer {index} of {n}")))
}

#[cfg(test)]
mod tests {
    use domain::generation::{EchoedToken, TokenLogprob};

    use super::*;

    /// What an answer to "ab" is told as: each of its tokens is an "x" with `logprob`.
    fn answered(index: u32, n_tokens: usize, logprob: f32) -> Vec<GenerateEvent> {
        let echoed = |token: &str, offset, logprob| EchoedToken {
            token: token.to_owned(),
            offset,
            logprob,
            top: Vec::new(),
        };
        let drawn = TokenLogprob {
            token: "x".to_owned(),
            bytes: b"x".to_vec(),
            logprob,
            top: Vec::new(),
        };
        vec![
            GenerateEvent::Echo {
                index,
                text: "ab".to_owned(),
                tokens: vec![echoed("a", 0, None), echoed("b", 1, Some(-8.0))],
            },
            GenerateEvent::Delta {
                index,
                text: "x".repeat(n_tokens),
                logprobs: vec![drawn; n_tokens],
            },
        ]
    }

    #[tokio::test]
    async fn the_best_are_chosen_by_what_was_drawn_alone() {
        let usage = TokenUsage::default();
        let events = [answered(0, 3, -1.25), answered(1, 1, -1.0)].concat();
        let events = events.into_iter().chain([GenerateEvent::Done { usage }]);
        let answers = Answers {
            id: CompletionId::mint([0; 24]),
            created: 7,
            model: "m".to_owned(),
            n_prompts: 1,
            best_of: 2,
            n: 1,
            has_logprobs: true,
            rate: None,
            events: stream::iter(events.map(Ok)).boxed(),
        };
        let choices = whole(answers).await.unwrap().choices;
        assert_eq!((choices.len(), choices[0].text.as_str()), (1, "abx"));
        let shown = choices[0].logprobs.0.as_ref().unwrap();
        assert_eq!(shown.text_offset, [0, 1, 2]);
    }
}
