//! What things are: the nouns every process shares, and the one state machine of a fine-tuning job.
//! Pure: no I/O, no async, no clock, no ambient randomness; time and entropy are arguments.

pub mod adapter_file;
pub mod api_key;
pub mod attempt;
pub mod base_model;
pub mod batch;
pub mod chat_completion;
pub mod checkpoint;
pub mod error;
pub mod event;
pub mod file;
pub mod generation;
pub mod hyperparameters;
pub mod id;
pub mod job;
pub mod job_event;
pub mod message;
pub mod method;
pub mod metrics;
pub mod model;
pub mod model_permissions;
pub mod object_key;
pub mod page;
pub mod preference;
pub mod project;
pub mod project_user;
pub mod rate_limit;
pub mod scope;
pub mod service_account;
pub mod time;
pub mod upload;
pub mod usage;
pub mod user;
pub mod webhook;
mod words;
pub mod worker;
pub mod x_training;
