//! The store on SQLite and PostgreSQL: one suite for both.

mod harness;
mod rate_limits;
mod sample;

mod administration;
mod apply;
mod batches;
mod chat_completions;
mod connect;
mod dry_runs;
mod files;
mod idempotency;
mod jobs;
mod kept_replies;
mod model_aliases;
mod models;
mod outbox;
mod pages;
mod pick;
mod responses;
mod row_security;
mod shared;
mod tenancy;
mod tenants;
mod uploads;
mod usage;
mod webhooks;
