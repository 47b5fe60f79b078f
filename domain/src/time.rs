//! Instants. Nobody in this crate reads a clock; every function that needs the time is given it.

use serde::{Deserialize, Serialize};

/// Microseconds since the Unix epoch, UTC. Databases keep this integer, so no precision is lost on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// Whole seconds since the epoch, as every OpenAI object shows them.
    pub fn unix_s(self) -> i64 {
        self.0.div_euclid(1_000_000)
    }

    pub fn from_unix_s(seconds: i64) -> Self {
        Self(seconds * 1_000_000)
    }

    pub fn plus_s(self, seconds: i64) -> Self {
        Self(self.0 + seconds * 1_000_000)
    }

    /// Seconds from `earlier` to `self`; negative when `earlier` is later.
    pub fn since_s(self, earlier: Timestamp) -> f64 {
        (self.0 - earlier.0) as f64 / 1e6
    }
}
