//! The rows as sea-orm sees them. Private: nothing outside this crate knows a column.

pub mod admin_api_key;
pub mod api_key;
pub mod attempt;
pub mod base_model;
pub mod checkpoint;
pub mod event;
pub mod file;
pub mod idempotency_key;
pub mod job;
pub mod job_metadata;
pub mod job_transition;
pub mod leader;
pub mod metric;
pub mod model;
pub mod organization;
pub mod outbox;
pub mod project;
pub mod project_user;
pub mod service_account;
pub mod usage;
pub mod user;
pub mod webhook_delivery;
pub mod webhook_endpoint;
pub mod webhook_secret;
pub mod worker;
