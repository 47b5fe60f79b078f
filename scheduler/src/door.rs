//! The door: what workers ask and report over HTTP. Each call is one transaction on the job, and
//! its answer is the fence: a worker whose attempt is no longer current is told so.

mod attempt;
mod auth;
mod checkpoint;
mod claim;
mod error;
mod routes;

pub(crate) use checkpoint::check_current;
pub(crate) use error::DoorError;
pub(crate) use routes::endpoint;
