//! Which clock the scheduler judges leases by.

use std::fmt;
use std::sync::Arc;

use domain::time::Timestamp;
use store::{Store, StoreError};

/// The source of "now". Leases and offers are written and judged by it alone.
#[derive(Clone)]
pub enum Clock {
    /// The database's clock: one for all schedulers, so that hosts whose clocks differ do not
    /// take each other's leases for expired. One small query a call.
    Database,
    /// A clock of the caller's own; tests advance it.
    Given(Arc<dyn Fn() -> Timestamp + Send + Sync>),
}

impl Clock {
    pub(crate) async fn now(&self, store: &Store) -> Result<Timestamp, StoreError> {
        match self {
            Clock::Database => store.now().await,
            Clock::Given(clock) => Ok(clock()),
        }
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Clock::Database => f.write_str("Database"),
            Clock::Given(_) => f.write_str("Given"),
        }
    }
}
