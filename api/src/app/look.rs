//! A look at the database that serves all requests of the next moment: what changes rarely, or was told some time ago anyway.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a look is good for.
const FRESH: Duration = Duration::from_millis(500);

/// What was found last.
pub struct Look<T>(Mutex<Option<(Instant, Arc<T>)>>);

impl<T> Default for Look<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T> Look<T> {
    /// `None`: look again, and [`Look::keep`] what you find.
    pub fn last(&self) -> Option<Arc<T>> {
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, found) = last.as_ref()?;
        (at.elapsed() < FRESH).then(|| found.clone())
    }

    /// `at`: when the look began.
    pub fn keep(&self, at: Instant, found: T) -> Arc<T> {
        let found = Arc::new(found);
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Another request may have begun later and ended before.
        if last.as_ref().is_none_or(|(before, _)| *before < at) {
            *last = Some((at, found.clone()));
        }
        found
    }
}
