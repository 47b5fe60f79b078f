//! The public surface over real HTTP, on SQLite and a directory, with a worker that speaks the door's language.

mod access;
mod adapters;
mod auth;
mod batches;
mod chat;
mod chat_completions;
mod export;
mod files;
mod fine_tuning;
mod job_stream;
mod jobs;
mod logs;
mod models;
mod moderations;
mod openapi;
mod rate_limits;
mod response;
mod support;
mod tls;
mod token;
mod transport;
mod uploads;
mod webhooks;
mod x_training;
