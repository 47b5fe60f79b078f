//! Chat completions that clients asked to keep.

use domain::chat_completion::{StoredChatCompletion, StoredMessage};
use domain::id::{ChatCompletionId, ProjectId};
use domain::message::{GenerateError, GenerateEvent};
use domain::page::{Page, PageRequest};
use domain::project::Project;
use futures::StreamExt;
use store::Store;
use store::chat_completions::ChatCompletionFilter;

use super::chat::{Answer, Gathered};
use super::store_error;
use crate::error::ApiError;
use crate::state::State;
use crate::wire::chat::Kept;
use crate::wire::decode::echo;

/// The answer, kept before its last event is passed on: who reads to its end can read it back.
pub(super) fn keeping(state: &State, project: &Project, kept: Kept, answer: Answer) -> Answer {
    let keeper = Keeper {
        store: state.store.clone(),
        project_id: project.id.clone(),
        kept,
        gathered: Gathered::new(&answer),
    };
    let reading = (answer.events, keeper);
    let events = futures::stream::unfold(reading, |(mut events, mut keeper)| async move {
        let event = events.next().await?;
        let event = keeper.passed(event).await;
        Some((event, (events, keeper)))
    });
    Answer {
        events: events.boxed(),
        ..answer
    }
}

struct Keeper {
    store: Store,
    project_id: ProjectId,
    kept: Kept,
    gathered: Gathered,
}

impl Keeper {
    /// The event; in place of the last one a failure, where the answer could not be kept.
    async fn passed(&mut self, event: GenerateEvent) -> GenerateEvent {
        if matches!(event, GenerateEvent::Failed { .. }) {
            return event;
        }
        match self.keep(event.clone()).await {
            Ok(()) => event,
            Err(error) => GenerateEvent::Failed {
                error: GenerateError::Internal {
                    reason: error.detail.unwrap_or(error.message),
                },
            },
        }
    }

    async fn keep(&mut self, event: GenerateEvent) -> Result<(), ApiError> {
        self.gathered.take(event)?;
        let Some(completion) = self.gathered.whole() else {
            return Ok(());
        };
        let stored = StoredChatCompletion {
            project_id: self.project_id.clone(),
            completion: completion.clone(),
            metadata: self.kept.metadata.clone(),
        };
        let completions = self.store.chat_completions();
        let inserted = completions.insert(&stored, &self.kept.messages).await;
        inserted.map_err(store_error)
    }
}

/// Errors: 404 for an unknown `after`.
pub async fn list(
    state: &State,
    project: &Project,
    filter: &ChatCompletionFilter,
    page: &PageRequest,
) -> Result<Page<StoredChatCompletion>, ApiError> {
    let completions = state.store.chat_completions();
    let listed = completions.list(&project.id, filter, page).await;
    listed.map_err(store_error)
}

/// Errors: 404.
pub async fn get(
    state: &State,
    project: &Project,
    id: &str,
) -> Result<StoredChatCompletion, ApiError> {
    let completions = state.store.chat_completions();
    let found = completions.find(&project.id, &completion_id(id)?).await;
    found.map_err(store_error)?.ok_or_else(|| unknown(id))
}

/// Puts other metadata in place of what there is. Errors: 404.
pub async fn set_metadata(
    state: &State,
    project: &Project,
    id: &str,
    metadata: Option<Vec<(String, String)>>,
) -> Result<StoredChatCompletion, ApiError> {
    let completions = state.store.chat_completions();
    let changed = completions
        .set_metadata(&project.id, &completion_id(id)?, metadata)
        .await;
    changed.map_err(store_error)?.ok_or_else(|| unknown(id))
}

/// Errors: 404.
pub async fn delete(state: &State, project: &Project, id: &str) -> Result<(), ApiError> {
    let completions = state.store.chat_completions();
    let deleted = completions.delete(&project.id, &completion_id(id)?).await;
    match deleted.map_err(store_error)? {
        true => Ok(()),
        false => Err(unknown(id)),
    }
}

/// The messages that a completion answers. Errors: 404 for it, and for an unknown `after`.
pub async fn messages(
    state: &State,
    project: &Project,
    id: &str,
    page: &PageRequest,
) -> Result<Page<StoredMessage>, ApiError> {
    let completion = completion_id(id)?;
    let completions = state.store.chat_completions();
    let found = completions.messages(&project.id, &completion).await;
    let messages = found.map_err(store_error)?.ok_or_else(|| unknown(id))?;
    let messages = StoredMessage::all(&completion, messages);
    super::cut(messages, page, |message| &message.id)
}

fn completion_id(id: &str) -> Result<ChatCompletionId, ApiError> {
    ChatCompletionId::parse(id).map_err(|_| unknown(id))
}

fn unknown(id: &str) -> ApiError {
    let message = format!(
        "No stored chat completion found with id '{}'. Only completions that were made with 'store' are kept.",
        echo(id)
    );
    ApiError::not_found(message)
}
