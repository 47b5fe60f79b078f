//! The one that decides: it owns every job after its creation. It validates, offers, leases,
//! finishes and sweeps, and answers the workers at its door. It must never compute on a model.
//!
//! The database is the truth. A message is a hint, an object without a row is an orphan, and
//! everything in this process's memory may be lost at any moment.

mod base_text;
mod clock;
mod dispatch;
mod door;
mod error;
mod finish;
mod hints;
mod leases;
mod loops;
mod relay;
mod scheduler;
mod server;
mod sweep;
mod validate;
mod webhooks;

pub use clock::Clock;
pub use error::PassError;
pub use hints::{HintError, HintSink, Hints};
pub use scheduler::{Scheduler, SchedulerOptions};
pub use server::{SchedulerServer, StartError, bind};
