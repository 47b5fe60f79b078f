//! Responses: items become a conversation, a chat's events become items, and what is to be kept is.

mod growing;
mod stored;

use std::sync::Arc;

use domain::generation::{ChatMessage, Role};
use domain::id::ResponseId;
use domain::message::GenerateEvent;
use domain::project::Project;
use domain::rate_limit::RateStatus;
use domain::response::{Item, Response, ResponseRequest, ResponseStatus, StoredResponse, messages};
use futures::future::ready;
use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt};

use growing::Growing;
pub use growing::Step;
pub use stored::{cancel, delete, get, input_items};

use super::chat::{self, Answer, broken_off};
use super::ledger::Consumer;
use super::store_error;
use crate::error::{ApiError, Kind};
use crate::state::{Shared, State};
use crate::wire::chat::ChatOrder;
use crate::wire::generation::ReplyForm;
use crate::wire::response::{ResponseOrder, unknown_previous};

/// A response that has begun.
pub struct Answering {
    /// Its own name, by whichever it was asked for.
    pub model: String,
    /// How the limit stands, where one was asked.
    pub rate: Option<RateStatus>,
    pub steps: BoxStream<'static, Step>,
}

/// Begins a response. Errors: 400 for a previous one that is not there and for calls without their outputs, and those of [`chat::begin`].
pub async fn begin(
    state: &Shared,
    consumer: Consumer<'_>,
    order: ResponseOrder,
) -> Result<Answering, ApiError> {
    let project = consumer.project();
    let id = ResponseId::mint(state.entropy());
    let request = order.request.clone();
    let input = conversation(state, project, &id, &order).await?;
    let answer = ask(state, project, order, &input).await?;
    let answer = answer.counted(state, consumer);
    let request = ResponseRequest {
        model: answer.model.clone(),
        ..request
    };
    let response = Response {
        id,
        created_at: answer.created_at,
        request,
        status: ResponseStatus::InProgress,
        output: Vec::new(),
        usage: None,
    };
    Ok(Answering {
        model: answer.model,
        rate: answer.rate,
        steps: steps(state, project, response, input, answer.events),
    })
}

/// Waits for the whole response. Errors: what the worker says when it breaks off, and that it cannot be kept.
pub async fn whole(mut answering: Answering) -> Result<Response, ApiError> {
    while let Some(step) = answering.steps.next().await {
        match step {
            Step::Done(response) => return Ok(response),
            Step::Failed(_, error) => return Err(error),
            _ => {}
        }
    }
    Err(ApiError::internal("a response without an end"))
}

/// How many tokens a model is given for this request. Nothing is generated or kept. Errors: those of [`begin`].
pub async fn count_tokens(
    state: &Shared,
    project: &Project,
    mut order: ResponseOrder,
) -> Result<u64, ApiError> {
    // What is reckoned of a limit.
    order.request.max_output_tokens = Some(1);
    let id = ResponseId::mint(state.entropy());
    let input = conversation(state, project, &id, &order).await?;
    let mut answer = ask(state, project, order, &input).await?;
    match answer.events.next().await {
        Some(GenerateEvent::Started { prompt_tokens }) => Ok(prompt_tokens),
        other => Err(ApiError::internal(format!(
            "{other:?} where an answer should begin"
        ))),
    }
}

/// The earlier turns' items and those that this one brings.
async fn conversation(
    state: &State,
    project: &Project,
    id: &ResponseId,
    order: &ResponseOrder,
) -> Result<Vec<Item>, ApiError> {
    let mut items = match &order.request.previous_response_id {
        None => Vec::new(),
        Some(previous) => {
            let found = state.store.responses().find(&project.id, previous).await;
            let found = found.map_err(store_error)?;
            let StoredResponse {
                response,
                mut input,
                ..
            } = found.ok_or_else(|| unknown_previous(previous.as_str()))?;
            input.extend(response.output);
            input
        }
    };
    let brought = order.input.iter().cloned().enumerate();
    items.extend(brought.map(|(place, content)| Item::of_input(id, place, content)));
    Ok(items)
}

/// Has a chat answer the items.
async fn ask(
    state: &State,
    project: &Project,
    order: ResponseOrder,
    input: &[Item],
) -> Result<Answer, ApiError> {
    let conversation = messages(input)
        .map_err(|error| ApiError::new(Kind::BadRequest, error.to_string()).param("input"))?;
    let instructions = order.request.instructions.as_deref();
    let instructions = instructions.map(|text| ChatMessage::new(Role::System, text));
    let order = ChatOrder {
        model: order.request.model,
        messages: instructions.into_iter().chain(conversation).collect(),
        tools: order.tools,
        response_format: order.response_format,
        n: 1,
        max_tokens: order.request.max_output_tokens,
        stop: Vec::new(),
        stop_token_ids: Vec::new(),
        sampling: order.sampling,
        top_logprobs: order.top_logprobs,
        reply: ReplyForm::Whole,
        priority: order.priority,
        kept: None,
    };
    let begun = chat::begin(state, project, order).await;
    begun.map_err(in_our_words)
}

/// What the events make of the response; one that is to be kept is, before its last step is passed on.
fn steps(
    state: &Shared,
    project: &Project,
    response: Response,
    input: Vec<Item>,
    events: super::workers::Events,
) -> BoxStream<'static, Step> {
    let is_kept = response.request.store;
    let clock = Arc::clone(state);
    let broken_off = GenerateEvent::Failed {
        error: broken_off(),
    };
    let steps = events
        .chain(stream::iter([broken_off]))
        .scan(Growing::new(response), move |growing, event| {
            ready(growing.take(event, clock.now()))
        })
        .flat_map(stream::iter);
    if !is_kept {
        return steps.boxed();
    }
    let keeping = Arc::new(Keeping {
        state: Arc::clone(state),
        project: project.clone(),
        input,
    });
    let kept = steps.then(move |step| match step {
        Step::Done(response) => Arc::clone(&keeping).keep(response).boxed(),
        step => ready(step).boxed(),
    });
    kept.boxed()
}

/// What a response is kept with.
struct Keeping {
    state: Shared,
    project: Project,
    input: Vec<Item>,
}

impl Keeping {
    async fn keep(self: Arc<Self>, response: Response) -> Step {
        let stored = StoredResponse {
            project_id: self.project.id.clone(),
            response,
            input: self.input.clone(),
        };
        let inserted = self.state.store.responses().insert(&stored).await;
        let mut response = stored.response;
        let Err(error) = inserted.map_err(store_error) else {
            return Step::Done(response);
        };
        response.status = ResponseStatus::Failed {
            message: error.message.clone(),
        };
        Step::Failed(response, error)
    }
}

/// A chat's refusal, with the paths that the client knows.
fn in_our_words(mut error: ApiError) -> ApiError {
    let Some(theirs) = error.param.take() else {
        return error;
    };
    let ours = match theirs.as_str() {
        "messages" => "input".to_owned(),
        "response_format" => "text.format".to_owned(),
        "response_format.json_schema.schema" => "text.format.schema".to_owned(),
        other => other.replace(".function.parameters", ".parameters"),
    };
    error.message = error
        .message
        .replace(&format!("'{theirs}'"), &format!("'{ours}'"));
    error.param(ours)
}
