//! Keys that were found lately, so that most requests ask the database nothing about theirs.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Known;

/// How long a key that was found is taken at its word: what is taken away in another process ends within this time.
const CACHE_TTL: Duration = Duration::from_secs(15);
/// Bound on the cache's memory; beyond it everything is looked up again.
const CACHE_KEYS: usize = 10_000;

/// Keys by their HMAC.
#[derive(Default)]
pub struct KeyCache {
    found: Mutex<HashMap<String, (Known, Instant)>>,
    /// How often everything was forgotten.
    epoch: AtomicU64,
}

impl KeyCache {
    pub(super) fn get(&self, hmac: &str) -> Option<Known> {
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let (known, since) = found.get(hmac)?;
        (since.elapsed() < CACHE_TTL).then(|| known.clone())
    }

    /// To be asked before a key is looked up.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Keeps what was looked up in this epoch; what changed meanwhile may be a change of this key.
    pub(super) fn insert(&self, hmac: String, known: Known, epoch: u64) {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if self.epoch() != epoch {
            return;
        }
        if found.len() >= CACHE_KEYS {
            found.clear();
        }
        found.insert(hmac, (known, Instant::now()));
    }

    /// After a change of what keys open: in this process it counts at once.
    pub fn forget(&self) {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        self.epoch.fetch_add(1, Ordering::AcqRel);
        found.clear();
    }
}
