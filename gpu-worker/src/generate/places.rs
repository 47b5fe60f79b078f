//! Who may hold an adapter: a conversation has a place from before its adapter is loaded until it ends. All others wait here, in the
//! order they came, and hold no more than their prompts, so that a long queue takes no memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use domain::generation::Priority;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Places beside those of the sequences that generate: their adapters are loaded while those are answered.
const READY: usize = 8;
/// Conversations that may wait; more are refused, and another worker may have room.
const MAX_WAITING: u32 = 64;

pub(crate) struct Places {
    free: Arc<Semaphore>,
    /// Of those, the ones that conversations may have for which nobody waits.
    spare: Arc<Semaphore>,
    n_waiting: Arc<AtomicU32>,
}

/// Free again when it is dropped.
pub(crate) struct Place {
    _permit: OwnedSemaphorePermit,
    _spare: Option<OwnedSemaphorePermit>,
}

/// What whoever asks for a place gets.
pub(super) enum Admission {
    Now(Place),
    Later(Waiting),
}

impl Admission {
    /// Resolves when it is this one's turn.
    pub(super) async fn place(self) -> Place {
        match self {
            Admission::Now(place) => place,
            Admission::Later(waiting) => waiting.place().await,
        }
    }
}

/// A conversation that waits.
pub(super) struct Waiting {
    free: Arc<Semaphore>,
    n_waiting: Arc<AtomicU32>,
}

impl Places {
    pub(crate) fn new(max_sequences: usize) -> Self {
        Self {
            free: Arc::new(Semaphore::new(max_sequences + READY)),
            // The others are there for whoever comes while these are long.
            spare: Arc::new(Semaphore::new((max_sequences / 2).max(1))),
            n_waiting: Arc::default(),
        }
    }

    /// Conversations that wait.
    pub(crate) fn n_waiting(&self) -> u32 {
        self.n_waiting.load(Ordering::Relaxed)
    }

    /// By who waits for the answer; `None`: there is no room.
    pub(super) fn admit(&self, priority: Priority) -> Option<Admission> {
        let later = || self.queue_up().map(Admission::Later);
        match priority {
            Priority::Live => self.now().map(Admission::Now).or_else(later),
            Priority::Spare => self.spare().map(Admission::Now),
        }
    }

    /// A place that is free; none while others wait for it.
    fn now(&self) -> Option<Place> {
        let permit = Arc::clone(&self.free).try_acquire_owned().ok()?;
        Some(Place {
            _permit: permit,
            _spare: None,
        })
    }

    /// A place for a conversation that nobody waits for: one that is free, as long as such conversations have no more than
    /// half of the sequences.
    fn spare(&self) -> Option<Place> {
        let spare = Arc::clone(&self.spare).try_acquire_owned().ok()?;
        Some(Place {
            _spare: Some(spare),
            ..self.now()?
        })
    }

    /// Joins those who wait; `None` where they are too many.
    fn queue_up(&self) -> Option<Waiting> {
        let joined = self
            .n_waiting
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| {
                (n < MAX_WAITING).then_some(n + 1)
            });
        joined.is_ok().then(|| Waiting {
            free: Arc::clone(&self.free),
            n_waiting: Arc::clone(&self.n_waiting),
        })
    }
}

impl Waiting {
    /// Resolves when it is this one's turn.
    pub(super) async fn place(self) -> Place {
        let permit = Arc::clone(&self.free).acquire_owned().await;
        Place {
            _permit: permit.expect("places are never closed — a bug in places"),
            _spare: None,
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.n_waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn those_who_wait_come_in_their_order_and_whoever_leaves_is_forgotten() {
        let places = Places::new(1);
        let mut taken: Vec<_> = (0..=READY).map(|_| places.now().unwrap()).collect();
        assert!(places.now().is_none());
        let [first, leaves, last] = [(); 3].map(|()| Box::pin(places.queue_up().unwrap().place()));
        let (mut first, mut last) = (first, last);
        assert!(futures::poll!(&mut first).is_pending());
        drop(leaves);
        assert!(futures::poll!(&mut last).is_pending());
        assert_eq!(places.n_waiting(), 2);
        taken.pop();
        assert!(places.now().is_none(), "it is the first one's");
        assert!(futures::poll!(&mut last).is_pending());
        let place = first.await;
        assert_eq!(places.n_waiting(), 1);
        drop(place);
        last.await;
        assert_eq!(places.n_waiting(), 0);
    }

    #[test]
    fn what_nobody_waits_for_leaves_room_for_the_others() {
        let places = Places::new(4);
        let spare: Vec<_> = (0..2).map(|_| places.spare().unwrap()).collect();
        assert!(places.spare().is_none(), "half is taken");
        let live: Vec<_> = (0..2 + READY).map(|_| places.now().unwrap()).collect();
        assert!(places.now().is_none());
        drop(spare);
        let _others = [places.now().unwrap(), places.now().unwrap()];
        assert!(places.spare().is_none(), "all are taken");
        drop(live);
        assert!(places.spare().is_some());
    }

    #[test]
    fn too_many_are_refused() {
        let places = Places::new(1);
        let waiting: Vec<_> = (0..MAX_WAITING)
            .map(|_| places.queue_up().unwrap())
            .collect();
        assert!(places.queue_up().is_none());
        drop(waiting);
        assert!(places.queue_up().is_some());
    }
}
