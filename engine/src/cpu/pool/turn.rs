//! Owns whose turn it is on the threads: one caller at a time, and whoever holds them for long goes first.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex};

use super::lock;

/// Regions take the turn one by one and leave it between them, or earlier where it is wanted; a hold keeps it for many, and gets it before
/// any region that waits.
#[derive(Default)]
pub(super) struct Turn {
    state: Mutex<State>,
    /// Whether somebody waits to hold; for those who look often.
    is_wanted: AtomicBool,
    given_back: Condvar,
}

#[derive(Default)]
struct State {
    is_taken: bool,
    /// Callers that wait to hold, and that wait to run a region.
    n_holds: usize,
    n_regions: usize,
}

/// The turn, until it is dropped.
pub(super) struct Taken<'a>(&'a Turn);

impl Turn {
    /// For one region: after everyone who wants to hold.
    pub(super) fn take(&self) -> Taken<'_> {
        let mut state = lock(&self.state);
        state.n_regions += 1;
        while state.is_taken || state.n_holds > 0 {
            state = self.wait(state);
        }
        state.n_regions -= 1;
        state.is_taken = true;
        Taken(self)
    }

    /// For many regions: as soon as the one that runs is done, or has made way.
    pub(super) fn hold(&self) -> Taken<'_> {
        let mut state = lock(&self.state);
        state.n_holds += 1;
        self.is_wanted.store(true, Ordering::Relaxed);
        while state.is_taken {
            state = self.wait(state);
        }
        state.n_holds -= 1;
        self.is_wanted.store(state.n_holds > 0, Ordering::Relaxed);
        state.is_taken = true;
        Taken(self)
    }

    /// Whether somebody waits to hold.
    pub(super) fn is_wanted(&self) -> bool {
        self.is_wanted.load(Ordering::Relaxed)
    }

    fn wait<'a>(
        &self,
        state: std::sync::MutexGuard<'a, State>,
    ) -> std::sync::MutexGuard<'a, State> {
        let waited = self.given_back.wait(state);
        waited.unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        state.is_taken = false;
        // Waking nobody costs a call to the system, and most regions have nobody to wake.
        if state.n_holds + state.n_regions > 0 {
            self.0.given_back.notify_all();
        }
    }
}
