//! OpenAI's JSON: what requests must look like and what replies look like. It knows no HTTP and no row.

pub mod batches;
pub mod chat;
pub mod chat_completions;
pub mod chat_messages;
pub mod chat_reply;
pub mod completion;
pub mod completion_reply;
pub mod decode;
pub mod error;
pub mod files;
pub mod fine_tuning;
pub mod fine_tuning_job;
pub mod generation;
pub mod list;
pub mod models;
pub mod nullable;
pub mod number_or_auto;
pub mod rate_limits;
pub mod reply;
pub mod response;
pub mod response_items;
pub mod response_reply;
pub mod response_tools;
pub mod uploads;
pub mod webhooks;
pub mod x_training;
