//! The store on SQLite and PostgreSQL: one suite for both.

mod harness;
mod rate_limits;
mod sample;

mod apply;
mod batches;
mod chat_completions;
mod connect;
mod files;
mod idempotency;
mod jobs;
mod models;
mod outbox;
mod pages;
mod pick;
mod responses;
mod shared;
mod tenancy;
mod tenants;
mod uploads;
mod webhooks;
