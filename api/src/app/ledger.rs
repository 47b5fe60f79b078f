//! What answers take, counted in memory and stored every few seconds: an answer costs no write of its own, and a
//! process that dies forgets what it counted since.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use domain::message::GenerateEvent;
use domain::project::Project;
use domain::time::Timestamp;
use domain::usage::{Service, Tally, TokenUsage, UsageKey};
use futures::StreamExt;
use futures::stream::BoxStream;
use store::Store;

use super::tokens_taken::TokensTaken;
use crate::auth::Caller;

/// What a crash may cost.
const FLUSH_EVERY: Duration = Duration::from_secs(2);

/// Whose request it is.
#[derive(Clone, Copy)]
pub enum Consumer<'a> {
    /// Of a client, with its key.
    Key(&'a Caller),
    /// Of a batch of the project.
    Batch(&'a Project),
}

impl Consumer<'_> {
    pub fn project(&self) -> &Project {
        match self {
            Consumer::Key(caller) => &caller.project,
            Consumer::Batch(project) => project,
        }
    }

    fn key(&self, service: Service, model: &str, now: Timestamp) -> UsageKey {
        let api_key_id = match self {
            Consumer::Key(caller) => Some(caller.key_id.clone()),
            Consumer::Batch(_) => None,
        };
        UsageKey {
            minute_s: now.unix_s() - now.unix_s().rem_euclid(60),
            project_id: self.project().id.clone(),
            model: model.to_owned(),
            service,
            is_batch: api_key_id.is_none(),
            api_key_id,
        }
    }
}

/// What this process has counted and not stored.
#[derive(Default)]
pub struct Ledger {
    counted: Mutex<HashMap<UsageKey, Tally>>,
}

impl Ledger {
    /// Counts one request for generated text; what it takes is counted as its events pass by.
    pub fn meter(self: &Arc<Self>, consumer: Consumer<'_>, model: &str, now: Timestamp) -> Meter {
        Meter {
            ledger: Arc::clone(self),
            key: consumer.key(Service::Completions, model, now),
            taken: TokensTaken::default(),
        }
    }

    /// Counts one request for embeddings.
    pub fn count_embedding(
        &self,
        consumer: Consumer<'_>,
        model: &str,
        prompt_tokens: u64,
        now: Timestamp,
    ) {
        let tokens = TokenUsage {
            prompt_tokens,
            ..TokenUsage::default()
        };
        let tally = Tally {
            n_requests: 1,
            tokens,
        };
        self.add(consumer.key(Service::Embeddings, model, now), tally);
    }

    fn add(&self, key: UsageKey, tally: Tally) {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        *counted.entry(key).or_default() += tally;
    }

    /// Stores what was counted; what cannot be stored now stays for the next time.
    pub async fn flush(&self, store: &Store) {
        let counted =
            std::mem::take(&mut *self.counted.lock().unwrap_or_else(PoisonError::into_inner));
        if counted.is_empty() {
            return;
        }
        let mut rows: Vec<(UsageKey, Tally)> = counted.into_iter().collect();
        // In one order everywhere, so that two processes do not wait for each other's rows.
        rows.sort_by(|(a, _), (b, _)| a.cmp(b));
        if let Err(error) = store.usage().add_served(&rows).await {
            tracing::warn!(%error, n_rows = rows.len(), "usage not stored yet");
            for (key, tally) in rows {
                self.add(key, tally);
            }
        }
    }

    /// Flushes every few seconds until `end`.
    pub async fn keep(&self, store: &Store, end: impl Future<Output = ()>) {
        let mut end = std::pin::pin!(end);
        loop {
            tokio::select! {
                () = &mut end => return,
                () = tokio::time::sleep(FLUSH_EVERY) => self.flush(store).await,
            }
        }
    }
}

/// Counts one request; it is in the ledger once this is dropped.
pub struct Meter {
    ledger: Arc<Ledger>,
    key: UsageKey,
    taken: TokensTaken,
}

impl Meter {
    /// The same events, counted.
    pub fn watch(
        mut self,
        events: BoxStream<'static, GenerateEvent>,
    ) -> BoxStream<'static, GenerateEvent> {
        events.inspect(move |event| self.taken.see(event)).boxed()
    }

    /// As [`Meter::watch`], of several prompts whose answers may be refused.
    pub fn watch_all<E: Send + 'static>(
        mut self,
        events: BoxStream<'static, Result<GenerateEvent, E>>,
    ) -> BoxStream<'static, Result<GenerateEvent, E>> {
        let see = move |event: &Result<GenerateEvent, E>| {
            if let Ok(event) = event {
                self.taken.see(event);
            }
        };
        events.inspect(see).boxed()
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        let tally = Tally {
            n_requests: 1,
            tokens: self.taken.tokens(),
        };
        self.ledger.add(self.key.clone(), tally);
    }
}
