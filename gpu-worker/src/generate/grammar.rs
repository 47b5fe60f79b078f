//! What an answer must be, as the engine asks for it: `text` knows the grammar, the engine knows tokens.

use std::sync::{Arc, Mutex, MutexGuard};

use domain::generation::ResponseFormat;
use domain::message::{GenerateError, GenerateRequest};
use engine::generate::{Grammar, Walk};
use text::grammar::{GrammarError, Wanted};
use tokio::sync::Semaphore;

use crate::adapters::sha256_hex;
use crate::base_models::Base;
use crate::lru::Lru;

/// Grammars that are compiled at once: they take the cores from generation.
const MAX_COMPILING: usize = 2;
/// Grammars that are kept for the next request: a conversation comes again with its tools at every turn.
const MAX_KEPT: u64 = 32;

/// What a request wants of its answers.
pub(super) fn wanted(asked: &GenerateRequest) -> Wanted<'_> {
    Wanted {
        format: &asked.response_format,
        tools: &asked.tools,
        choice: &asked.tool_choice,
        parallel: asked.parallel_tool_calls,
    }
}

/// Which parameter of the request a grammar follows from.
pub(super) fn param(asked: &GenerateRequest) -> &'static str {
    match asked.response_format {
        ResponseFormat::Text => "tools",
        ResponseFormat::JsonObject | ResponseFormat::JsonSchema { .. } => "response_format",
    }
}

/// Compiles grammars, and keeps those that were used last.
pub(crate) struct Grammars {
    turns: Arc<Semaphore>,
    kept: Mutex<Lru<Arc<dyn Grammar>>>,
}

impl Default for Grammars {
    fn default() -> Self {
        Self {
            turns: Arc::new(Semaphore::new(MAX_COMPILING)),
            kept: Mutex::new(Lru::new(MAX_KEPT)),
        }
    }
}

impl Grammars {
    /// The grammar of a request's answers; `None`: they may be anything. Errors: `Unanswerable`.
    pub(super) async fn get(
        &self,
        base: &Arc<Base>,
        asked: &Arc<GenerateRequest>,
    ) -> Result<Option<Arc<dyn Grammar>>, GenerateError> {
        if wanted(asked).is_anything() {
            return Ok(None);
        }
        let name = name_of(&base.model.sha256, asked);
        let (base, asked) = (Arc::clone(base), Arc::clone(asked));
        let compile = move || {
            let grammar = base.chat.grammar(&wanted(&asked))?;
            Ok(grammar.map(|grammar| Arc::new(Held(Arc::new(grammar))) as _))
        };
        self.kept_or(&name, compile).await
    }

    /// What is kept as `name`, or what `compile` gives, on a thread of its own: a large schema takes a second.
    async fn kept_or(
        &self,
        name: &str,
        compile: impl FnOnce() -> Result<Option<Arc<dyn Grammar>>, GrammarError> + Send + 'static,
    ) -> Result<Option<Arc<dyn Grammar>>, GenerateError> {
        if let Some(grammar) = self.find(name) {
            return Ok(Some(grammar));
        }
        let turn = Arc::clone(&self.turns).acquire_owned().await;
        let turn = turn.map_err(|error| super::internal(&error))?;
        // Whoever had the turn may have asked the same.
        if let Some(grammar) = self.find(name) {
            return Ok(Some(grammar));
        }
        let compile = move || {
            // Held even if the client leaves: the thread goes on.
            let _turn = turn;
            compile()
        };
        match tokio::task::spawn_blocking(compile).await {
            Ok(Ok(grammar)) => {
                if let Some(grammar) = &grammar {
                    let gone = self.kept().insert(name, Arc::clone(grammar), 1);
                    // Freed once nobody waits for us.
                    drop(gone);
                }
                Ok(grammar)
            }
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

    fn find(&self, name: &str) -> Option<Arc<dyn Grammar>> {
        self.kept().touch(name).map(Arc::clone)
    }

    fn kept(&self) -> MutexGuard<'_, Lru<Arc<dyn Grammar>>> {
        self.kept
            .lock()
            .expect("no panic while locked — a bug in grammar")
    }
}

/// Of all that a grammar follows from, and of who asks: how long a request takes tells nobody what others have asked.
fn name_of(base_sha256: &str, asked: &GenerateRequest) -> String {
    let asks = (
        base_sha256,
        &asked.scope,
        &asked.response_format,
        &asked.tools,
        &asked.tool_choice,
        asked.parallel_tool_calls,
    );
    let asks = serde_json::to_vec(&asks).expect("it was JSON — a bug in the messages");
    sha256_hex(&asks)
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use domain::generation::{ChatMessage, ResponseFormat, Role, ToolChoice};
    use domain::model::ServedModel;
    use serde_json::json;

    use super::*;

    fn asked() -> GenerateRequest {
        let message = ChatMessage::new(Role::User, "Hello");
        let model = ServedModel {
            base_model: "m".to_owned(),
            adapter: None,
        };
        GenerateRequest {
            tools: vec![json!({"type": "function", "function": {"name": "a"}})],
            ..GenerateRequest::new(model, "project".to_owned(), vec![message])
        }
    }

    #[test]
    fn a_grammar_is_kept_for_the_same_wishes_of_the_same_project() {
        let name = name_of("base", &asked());
        let mut other = asked();
        other.messages.clear();
        other.max_tokens = Some(7);
        assert_eq!(name_of("base", &other), name);
        let change = |change: fn(&mut GenerateRequest)| {
            let mut other = asked();
            change(&mut other);
            name_of("base", &other)
        };
        let others = [
            name_of("another base", &asked()),
            change(|asked| asked.scope = "another project".to_owned()),
            change(|asked| asked.tools.clear()),
            change(|asked| asked.tool_choice = ToolChoice::Required),
            change(|asked| asked.tool_choice = ToolChoice::Named("a".to_owned())),
            change(|asked| asked.parallel_tool_calls = false),
            change(|asked| asked.response_format = ResponseFormat::JsonObject),
        ];
        let distinct: std::collections::HashSet<_> = others.iter().chain([&name]).collect();
        assert_eq!(distinct.len(), others.len() + 1);
    }

    struct Anything;

    impl Grammar for Anything {
        fn begin(&self) -> Box<dyn Walk> {
            unreachable!("no answer is asked for")
        }
    }

    #[tokio::test]
    async fn a_grammar_is_compiled_once_and_an_error_every_time() {
        let (grammars, n_compiled) = (Grammars::default(), Arc::new(AtomicUsize::new(0)));
        let get = async |name: &str, is_whole: bool| {
            let n_compiled = Arc::clone(&n_compiled);
            let compile = move || {
                n_compiled.fetch_add(1, Ordering::Relaxed);
                match is_whole {
                    true => Ok(Some(Arc::new(Anything) as _)),
                    false => Err(GrammarError::UnknownSyntax),
                }
            };
            grammars.kept_or(name, compile).await.is_ok()
        };
        assert!(get("a", true).await && get("a", true).await);
        assert_eq!(n_compiled.load(Ordering::Relaxed), 1);
        assert!(!get("b", false).await && !get("b", false).await);
        assert_eq!(n_compiled.load(Ordering::Relaxed), 3);
        for i in 0..MAX_KEPT {
            assert!(get(&i.to_string(), true).await);
        }
        assert!(get("a", true).await);
        assert_eq!(n_compiled.load(Ordering::Relaxed), 4 + MAX_KEPT as usize);
    }
}
