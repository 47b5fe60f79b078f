//! The public surface over real HTTP, on SQLite and a directory, with a worker that speaks the door's language.

mod access;
mod adapters;
mod auth;
mod chat;
mod export;
mod files;
mod fine_tuning;
mod jobs;
mod logs;
mod models;
mod openapi;
mod support;
mod tls;
mod transport;
mod webhooks;
mod x_training;
