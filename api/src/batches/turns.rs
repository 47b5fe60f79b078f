//! Who asks next: so many requests are under way at once, and projects take turns whatever they have waiting.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use domain::id::ProjectId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A request may be under way while it is kept.
pub struct Slot {
    _permit: OwnedSemaphorePermit,
}

/// Each project has one request that waits for a slot, the others wait behind that one: so each gets every nth slot.
pub struct Turns {
    slots: Arc<Semaphore>,
    projects: Mutex<HashMap<ProjectId, Weak<tokio::sync::Mutex<()>>>>,
}

impl Turns {
    pub fn new(n_slots: usize) -> Self {
        Self {
            slots: Arc::new(Semaphore::new(n_slots)),
            projects: Mutex::default(),
        }
    }

    /// Resolves when it is this request's turn; those of a project come in their order.
    pub async fn slot(&self, project: &ProjectId) -> Slot {
        let line = self.line(project);
        let _first = line.lock().await;
        let permit = self.slots.clone().acquire_owned().await;
        Slot {
            _permit: permit.expect("slots are never closed — a bug in turns"),
        }
    }

    fn line(&self, project: &ProjectId) -> Arc<tokio::sync::Mutex<()>> {
        let mut projects = self.projects.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(line) = projects.get(project).and_then(Weak::upgrade) {
            return line;
        }
        projects.retain(|_, line| line.strong_count() > 0);
        let line = Arc::default();
        projects.insert(project.clone(), Arc::downgrade(&line));
        line
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_project_with_much_to_ask_gets_no_more_turns_than_one_with_little() {
        let turns = Turns::new(1);
        let [busy, quiet] = [1, 2].map(|n| ProjectId::mint([n; 24]));
        let taken = turns.slot(&busy).await;
        let order = [&busy, &busy, &busy, &quiet];
        let mut waiting: Vec<_> = order
            .into_iter()
            .map(|project| Box::pin(turns.slot(project).map(move |slot| (project, slot))))
            .collect();
        for slot in &mut waiting {
            assert!(futures::poll!(slot).is_pending());
        }
        drop(taken);
        let mut got = Vec::new();
        while !waiting.is_empty() {
            let ((project, slot), _, rest) = futures::future::select_all(waiting).await;
            got.push(project);
            drop(slot);
            waiting = rest;
        }
        assert_eq!(got, [&busy, &quiet, &busy, &busy]);
    }
}
