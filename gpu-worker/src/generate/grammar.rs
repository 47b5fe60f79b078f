//! What an answer must be, as the engine asks for it: `text` knows the grammar, the engine knows tokens.

use std::sync::Arc;

use domain::message::{GenerateError, GenerateRequest};
use engine::generate::{Grammar, Walk};
use text::grammar::{GrammarError, Wanted};
use tokio::sync::Semaphore;

use crate::base_models::Base;

/// Grammars that are compiled at once: they take the cores from generation.
static TURNS: Semaphore = Semaphore::const_new(2);

/// What a request wants of its answers.
pub(super) fn wanted(asked: &GenerateRequest) -> Wanted<'_> {
    Wanted {
        format: &asked.response_format,
        tools: &asked.tools,
        choice: &asked.tool_choice,
        parallel: asked.parallel_tool_calls,
    }
}

/// The grammar of a request's answers; `None`: they may be anything. Errors: `Unanswerable`.
pub(super) async fn compile(
    base: &Arc<Base>,
    asked: &Arc<GenerateRequest>,
) -> Result<Option<Arc<dyn Grammar>>, GenerateError> {
    let (base, asked) = (Arc::clone(base), Arc::clone(asked));
    let turn = TURNS
        .acquire()
        .await
        .map_err(|error| super::internal(&error))?;
    // A large schema takes a second.
    let compile = move || {
        // Held even if the client leaves: the thread goes on.
        let _turn = turn;
        base.chat.grammar(&wanted(&asked))
    };
    let compiled = tokio::task::spawn_blocking(compile).await;
    match compiled {
        Ok(Ok(grammar)) => Ok(grammar.map(|grammar| Arc::new(Held(Arc::new(grammar))) as _)),
        Ok(Err(error)) => {
            let reason = error.to_string();
            let param = match error {
                GrammarError::Schema { param, .. } => param,
                GrammarError::UnknownSyntax => "tool_choice".to_owned(),
            };
            Err(GenerateError::Unanswerable { param, reason })
        }
        Err(error) => Err(super::internal(&error)),
    }
}

struct Held(Arc<text::grammar::Grammar>);

impl Grammar for Held {
    fn begin(&self) -> Box<dyn Walk> {
        Box::new(Steps(self.0.begin()))
    }
}

struct Steps(text::grammar::Walk);

impl Walk for Steps {
    fn allowed(&mut self) -> Result<Option<&[u32]>, String> {
        self.0.allowed()
    }

    fn take(&mut self, token: u32) -> bool {
        self.0.take(token)
    }
}
